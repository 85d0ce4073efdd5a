"""Run `ovss-refine reproduce`: measure every table and curve of the paper that can be measured.

A table's cells come from evaluations. Those that are not done and lack nothing are run one after
the other; each can be resumed. What is missing for the rest is reported.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence

import torch

from ovss_refine.evaluation.request import EvaluateRequest
from ovss_refine.evaluation.run import run_evaluate
from ovss_refine.folders.files import check_replaceable, clear_leftovers
from ovss_refine.folders.results import check_writable
from ovss_refine.reproduce.cells import (
    TIMED,
    Cell,
    ResultsStore,
    Run,
    alternatives,
    machine,
    make_run,
    read_machines,
    read_results,
    variants_of,
)
from ovss_refine.reproduce.entries import Outcome
from ovss_refine.reproduce.inputs import NO_ATTENTION, RowSource, WeightsFolder, find_data
from ovss_refine.reproduce.report import make_report, write_sheet
from ovss_refine.reproduce.request import ReproduceRequest
from ovss_refine.reproduce.tables import (
    COMMON,
    PaperRow,
    PaperTable,
    load_tables,
    published,
    rows_of,
)
from ovss_refine.sources.device import Placement
from ovss_refine.sources.processes import ProcessGroup, join

# Errors of one evaluation, after which the others are still run.
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
        The text; None in processes other than the first.

    Raises:
        ValueError: on options that do not fit together, or if an evaluation failed; the reports are
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
    cells = list(_cells(request, tables, Placement(group.device, request.dtype)))
    todo = _todo(cells, store)
    group.wait()  # no process begins before all have read the existing results
    failures = {} if request.only_plan else _measure(todo, request, store, group)
    if not group.leads:
        return None
    outcome = _outcome(cells, store, failures, todo if request.only_plan else [])
    reports = [
        make_report(request.out, table, [cell for cell in cells if cell.table is table], outcome)
        for table in tables
    ]
    for report in reports:
        report.write(request.out)
    if request.csv is not None:
        write_sheet(request.csv, reports)
    if failures:
        first = next(iter(failures.values()))
        raise ValueError(
            f"{len(failures)} of {len(todo)} evaluations failed, the first: {first} The tables so "
            f"far are in `{request.out}`."
        )
    return "\n\n".join(report.text for report in reports)


def _outcome(
    cells: Sequence[Cell], store: ResultsStore, failures: Mapping[str, str], planned: Sequence[Run]
) -> Outcome:
    """Read the state of all evaluations."""
    runs = {run.key: run for cell in cells for run in cell.runs}
    finished = ((key, store.finished(run)) for key, run in runs.items())
    folders = {key: folder for key, folder in finished if folder is not None}
    return Outcome(
        folders=folders,
        machines={key: read_machines(folder) for key, folder in folders.items()},
        results={key: read_results(folder) for key, folder in folders.items()},
        lacks={key: store.lacks(run) for key, run in runs.items() if key not in folders},
        failures=failures,
        to_do={run.key: str(run) for run in planned},
    )


def _check_outputs(request: ReproduceRequest) -> None:
    """Check that the results can be written, before there are any; clear what a kill left."""
    check_writable(request.out)
    clear_leftovers(request.out)
    if request.csv is None:
        return
    if request.csv.is_dir():
        raise IsADirectoryError(f"`csv` must be a file; `{request.csv}` is a folder.")
    check_replaceable(request.csv)
    check_writable(request.csv.parent, "csv", "the folder of ")
    clear_leftovers(request.csv.parent)


def _columns(request: ReproduceRequest, tables: Sequence[PaperTable]) -> list[str]:
    every = dict.fromkeys(name for table in tables for name in table.datasets)
    if unknown := [name for name in request.datasets if name not in every]:
        raise ValueError(f"`datasets` must be some of {list(every)}; got {unknown}.")
    return [name for name in every if not request.datasets or name in request.datasets]


def _cells(
    request: ReproduceRequest, tables: Sequence[PaperTable], place: Placement
) -> Iterator[Cell]:
    """Make all cells, with the evaluations that measure them."""
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
            made[key] = make_run(row, data[name], limit=limit, place=place)
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
    """List the evaluations to run: as few as measure every cell."""
    runs = {run.key: run for cell in cells for run in cell.runs}
    done = {key for key, run in runs.items() if store.complete(run)}
    able = {key for key, run in runs.items() if not store.lacks(run)}
    # Able and with results: they are not complete only because of skipped images.
    begun = {key for key in able if store.finished(runs[key]) is not None}
    chosen: dict[str, Run] = {}
    # First the cells that a single evaluation measures; it may measure the others as well.
    for cell in sorted(cells, key=lambda cell: cell.row.show in COMMON):
        keys = [run.key for run in cell.runs]
        if done.isdisjoint(keys) and chosen.keys().isdisjoint(keys):
            ready = sorted((key for key in keys if key in able), key=lambda key: key not in begun)
            chosen |= {key: runs[key] for key in ready[:1]}
    return list(chosen.values())


def _measure(
    todo: Sequence[Run], request: ReproduceRequest, store: ResultsStore, group: ProcessGroup
) -> dict[str, str]:
    """Run evaluations; return the errors of those that failed, by key."""
    failures: dict[str, str] = {}
    for number, run in enumerate(todo, 1):
        if group.leads:
            sys.stderr.write(f"[{number}/{len(todo)}] {run}\n")
        try:
            run_evaluate(_evaluation(run, request, store, group.device), group)
        except FAILURES as err:
            if group.world > 1:
                raise  # the other processes would wait for this one
            failures[run.key] = str(err)
            sys.stderr.write(f"failed: {err}\n")
    return failures


def _evaluation(
    run: Run, request: ReproduceRequest, store: ResultsStore, device: torch.device
) -> EvaluateRequest:
    row, weights, root = run.row, store.weights, run.found.root
    assert root is not None  # noqa: S101 - only evaluations that lack nothing are run
    attention = row.attention or NO_ATTENTION
    return EvaluateRequest(
        dataset=run.found.dataset,
        root=root,
        logits=RowSource(row.logits, row.logits_options, weights=weights, row=row),
        attention=RowSource(attention, row.attention_options, weights=weights, row=row),
        rows=rows_of(row),
        variants=variants_of(row),
        limit=run.limit,
        out=store.place(run),
        on_error=request.on_error,
        batch_size=1 if row.measured == TIMED else request.batch_size,
        workers=request.workers,
        device=request.device,
        dtype=request.dtype,
        extra={"reproduce": dict(run.asked), "machine": machine(device)},
    )
