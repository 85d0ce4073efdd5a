"""Every table and curve of the paper, measured with what is at hand: `ovss-refine reproduce`.

A table's cells come from evaluations; those that have not been done and lack nothing are done, one
after the other, each going on where it was stopped. What is missing for the rest is reported.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence

import torch

from ovss_refine.evaluation.processes import ProcessGroup, join
from ovss_refine.evaluation.request import EvaluateRequest
from ovss_refine.evaluation.run import run_evaluate
from ovss_refine.folders.results import check_writable
from ovss_refine.reproduce.cells import (
    Cell,
    ResultsStore,
    Run,
    alternatives,
    machine,
    make_run,
    read_machines,
    read_results,
)
from ovss_refine.reproduce.entries import Outcome
from ovss_refine.reproduce.inputs import WeightsFolder, find_data
from ovss_refine.reproduce.report import make_report, write_sheet
from ovss_refine.reproduce.request import ReproduceRequest
from ovss_refine.reproduce.tables import COMMON, PaperRow, PaperTable, load_tables, published

# What concerns one evaluation, and not those after it.
FAILURES = (
    FileNotFoundError,
    FileExistsError,
    ModuleNotFoundError,
    ValueError,
    torch.OutOfMemoryError,
)


def reproduce(request: ReproduceRequest) -> str | None:
    """Measure what can be measured, write the reports and return their text.

    Returns:
        The text; None in a process that does not lead.

    Raises:
        FileNotFoundError: if a folder that was named is not there.
        ValueError: on options that do not fit, or where an evaluation failed; the reports are
            written before.
        OSError: if results cannot be written.
    """
    group = join(request.device)
    try:
        if group.leads:
            _check_outputs(request)
        group.wait()
        return _reproduce(request, group)
    finally:
        group.leave()


def _reproduce(request: ReproduceRequest, group: ProcessGroup) -> str | None:
    store = ResultsStore(request.out / "cells", WeightsFolder(request.models_dir))
    tables = [load_tables().tables[name] for name in request.tables]
    cells = list(_cells(request, tables, group.device))
    todo = _todo(cells, store)
    group.wait()  # nobody begins before all have looked at what there is
    failures = {} if request.only_plan else _measure(todo, request, store, group)
    if not group.leads:
        return None
    outcome = _outcome(request, cells, store, todo, failures)
    reports = [
        make_report(request.out, table, [cell for cell in cells if cell.table is table], outcome)
        for table in tables
    ]
    for report in reports:
        report.write(request.out)
    if request.csv is not None:
        write_sheet(request.csv, reports)
    text = "\n\n".join(report.text for report in reports)
    if failures:
        first = next(iter(failures.values()))
        raise ValueError(
            f"{len(failures)} of {len(todo)} evaluations failed, the first: {first} The tables so "
            f"far are in `{request.out}`."
        )
    return text


def _outcome(
    request: ReproduceRequest,
    cells: Sequence[Cell],
    store: ResultsStore,
    todo: Sequence[Run],
    failures: Mapping[str, str],
) -> Outcome:
    """Look at what there is now."""
    runs = {run.key: run for cell in cells for run in cell.runs}
    finished = ((key, store.finished(run)) for key, run in runs.items())
    folders = {key: folder for key, folder in finished if folder is not None}
    lacks = {key: store.lacks(run) for key, run in runs.items() if key not in folders}
    return Outcome(
        folders=folders,
        machines={key: read_machines(folder) for key, folder in folders.items()},
        results={key: read_results(folder) for key, folder in folders.items()},
        lacks=lacks,
        failures=failures,
        to_do={run.key: str(run) for run in todo} if request.only_plan else {},
    )


def _check_outputs(request: ReproduceRequest) -> None:
    """Check that the results can be written, before there are any."""
    check_writable(request.out)
    if request.csv is None:
        return
    if request.csv.is_dir():
        raise IsADirectoryError(f"`csv` must be a file; `{request.csv}` is a folder.")
    check_writable(request.csv.parent, "the folder of `csv`")


def _columns(request: ReproduceRequest, tables: Sequence[PaperTable]) -> list[str]:
    every = dict.fromkeys(name for table in tables for name in table.datasets)
    if unknown := [name for name in request.datasets if name not in every]:
        raise ValueError(f"`datasets` must be some of {list(every)}; got {unknown}.")
    return [name for name in every if not request.datasets or name in request.datasets]


def _cells(
    request: ReproduceRequest, tables: Sequence[PaperTable], device: torch.device
) -> Iterator[Cell]:
    """Make all cells, with the evaluations that have their numbers."""
    numbers = published()
    data = {
        name: find_data(name, request.data, request.roots) for name in _columns(request, tables)
    }
    every = [row for table in load_tables().tables.values() for row in table.rows]
    made: dict[tuple[str, str, str], Run] = {}

    def run(table: PaperTable, row: PaperRow, name: str) -> Run:
        key = (name, row.pair, row.measured)
        if key not in made:
            limit = request.limit or table.limit
            made[key] = make_run(row, data[name], limit=limit, device=device)
        return made[key]

    for table in tables:
        for row in table.rows:
            same = [] if row.missing else [row, *alternatives(row, every)]
            for name in (name for name in table.datasets if name in data):
                yield Cell(
                    table=table,
                    row=row,
                    dataset=name,
                    official=data[name].dataset.official_images,
                    published=numbers.get((row.published, row.backbone, row.method, name)),
                    runs=[run(table, one, name) for one in same],
                )


def _todo(cells: Sequence[Cell], store: ResultsStore) -> list[Run]:
    """List the evaluations that are to be done: as few as have all numbers."""
    done: dict[str, bool] = {}
    able: dict[str, bool] = {}
    begun: dict[str, bool] = {}  # and finished, but for images that were skipped
    for run in (run for cell in cells for run in cell.runs):
        if run.key not in done:
            done[run.key] = store.complete(run)
            able[run.key] = not store.lacks(run)
            begun[run.key] = able[run.key] and store.finished(run) is not None
    chosen: dict[str, Run] = {}
    # What one evaluation alone has comes first; it may have the others' numbers too.
    for cell in sorted(cells, key=lambda cell: cell.row.show in COMMON):
        if any(done[run.key] or run.key in chosen for run in cell.runs):
            continue
        ready = [run for run in cell.runs if able[run.key]]
        first = next((run for run in ready if begun[run.key]), ready[0] if ready else None)
        if first is not None:
            chosen[first.key] = first
    return list(chosen.values())


def _measure(
    todo: Sequence[Run], request: ReproduceRequest, store: ResultsStore, group: ProcessGroup
) -> dict[str, str]:
    """Do evaluations; return why some of them failed, by key."""
    failures: dict[str, str] = {}
    for number, run in enumerate(todo, 1):
        if group.leads:
            sys.stderr.write(f"[{number}/{len(todo)}] {run}\n")
        try:
            run_evaluate(_evaluation(run, request, store, machine(group.device)), group)
        except FAILURES as err:
            if group.world > 1:
                raise  # the others would wait for this process
            failures[run.key] = str(err)
            sys.stderr.write(f"failed: {err}\n")
    return failures


def _evaluation(
    run: Run, request: ReproduceRequest, store: ResultsStore, computer: str
) -> EvaluateRequest:
    logits, attention = run.sources(store.weights)
    root = run.found.root
    assert root is not None  # noqa: S101 - only what lacks nothing is to be done
    return EvaluateRequest(
        dataset=run.found.dataset,
        root=root,
        logits=logits,
        attention=attention,
        rows=run.rows,
        variants=run.variants,
        limit=run.limit,
        out=store.place(run),
        on_error=request.on_error,
        batch_size=1 if run.timed else request.batch_size,
        workers=request.workers,
        device=request.device,
        extra={"reproduce": dict(run.asked), "machine": computer},
    )
