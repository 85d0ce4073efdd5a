"""Every table and curve of the paper, measured with what is at hand: `ovss-refine reproduce`.

A table's cells come from evaluations; those that have not been done and lack nothing are done, one
after the other, each going on where it was stopped. What is missing for the rest is reported.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from ovss_refine.checks import check_count
from ovss_refine.evaluation.dataset import load_dataset
from ovss_refine.evaluation.processes import Team, join
from ovss_refine.evaluation.request import EvaluateRequest
from ovss_refine.evaluation.run import run_evaluate
from ovss_refine.reproduce.cells import (
    Cell,
    Home,
    Run,
    alternatives,
    check_places,
    machine,
    make_run,
    read_machines,
    read_results,
)
from ovss_refine.reproduce.inputs import Found, Shelf, find_data, missing_libraries
from ovss_refine.reproduce.report import Outcome, make_report, write_sheet
from ovss_refine.reproduce.tables import COMMON, Row, Table, book, published
from ovss_refine.reproduce.tiny import write_data, write_models


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the user asks for.

    Attributes:
        tables: names of tables.
        data: folder with a folder for each data set.
        roots: folders of single data sets, by name.
        models_dir: folder with a folder for each of the weights.
        datasets: only these columns; empty: all.
        limit: only the first so many images, >= 1; None: all.
        tiny: take tiny random models, and tiny data sets where none are given.
        only_plan: do nothing that has not been done.
        out: folder for evaluations and reports.
        csv: where all numbers go as well; None: nowhere else.
        device: "auto", or where to compute.
        batch_size: most images at a time, >= 1.
        workers: threads that read ahead, >= 1.
        on_error: what to do about an image or mask that cannot be read.
    """

    tables: Sequence[str]
    data: Path | None = None
    roots: Mapping[str, Path] = field(default_factory=dict)
    models_dir: Path | None = None
    datasets: Sequence[str] = ()
    limit: int | None = None
    tiny: bool = False
    only_plan: bool = False
    out: Path
    csv: Path | None = None
    device: str = "auto"
    batch_size: int = 1
    workers: int = 2
    on_error: Literal["skip", "stop"] = "stop"

    def __post_init__(self) -> None:
        """Check what can be checked at once."""
        if self.limit is not None:
            check_count("limit", self.limit, 1)
        if self.tiny and self.models_dir is not None:
            raise ValueError("`models_dir` must be left out with `tiny`, which has its own models.")
        for name in ("data", "models_dir"):
            folder = getattr(self, name)
            if folder is not None and not folder.is_dir():
                raise FileNotFoundError(f"`{name}` must be a folder; `{folder}` is none.")
        for name, root in self.roots.items():
            load_dataset(name)
            if not root.is_dir():
                raise FileNotFoundError(f"`root` must be a folder; `{root}` of {name} is none.")

    @property
    def home(self) -> Path:
        """Where everything is kept; apart from all that means something, where it is tiny."""
        return self.out / "tiny" if self.tiny else self.out


def reproduce(wanted: Wanted) -> str | None:
    """Measure what can be measured, write the reports and return their text.

    Returns:
        The text; None in a process that does not lead.

    Raises:
        FileNotFoundError: if a folder that was named is not there.
        ModuleNotFoundError: if the tiny models cannot be made for want of a library.
        ValueError: on options that do not fit, or where an evaluation failed; the reports are
            written before.
        OSError: if results cannot be written.
    """
    team = join(wanted.device)
    try:
        if team.leads:
            check_places(wanted.home, wanted.csv)
        if team.leads and wanted.tiny:
            _prepare_tiny(wanted)
        team.wait()
        return _reproduce(wanted, team)
    finally:
        team.leave()


def _reproduce(wanted: Wanted, team: Team) -> str | None:
    models = wanted.home / "models" if wanted.tiny else wanted.models_dir
    home = Home(wanted.home / "cells", Shelf(models))
    tables = [book().tables[name] for name in wanted.tables]
    cells = list(_cells(wanted, tables, team.device))
    todo = _todo(cells, home)
    team.wait()  # nobody begins before all have looked at what there is
    failures = {} if wanted.only_plan else _measure(todo, wanted, home, team)
    if not team.leads:
        return None
    outcome = _outcome(wanted, cells, home, todo, failures)
    reports = [
        make_report(wanted.home, table, [cell for cell in cells if cell.table is table], outcome)
        for table in tables
    ]
    for report in reports:
        report.write(wanted.home)
    if wanted.csv is not None:
        write_sheet(wanted.csv, reports)
    text = "\n\n".join(report.text for report in reports)
    if failures:
        first = next(iter(failures.values()))
        raise ValueError(
            f"{len(failures)} of {len(todo)} evaluations failed, the first: {first} The tables so "
            f"far are in `{wanted.home}`."
        )
    return text


def _outcome(
    wanted: Wanted,
    cells: Sequence[Cell],
    home: Home,
    todo: Sequence[Run],
    failures: Mapping[str, str],
) -> Outcome:
    """Look at what there is now."""
    runs = {run.key: run for cell in cells for run in cell.runs}
    finished = ((key, home.finished(run)) for key, run in runs.items())
    folders = {key: folder for key, folder in finished if folder is not None}
    lacks = {key: home.lacks(run) for key, run in runs.items() if key not in folders}
    return Outcome(
        tiny=wanted.tiny,
        folders=folders,
        machines={key: read_machines(folder) for key, folder in folders.items()},
        results={key: read_results(folder) for key, folder in folders.items()},
        lacks=lacks,
        failures=failures,
        to_do={run.key: str(run) for run in todo} if wanted.only_plan else {},
    )


def _prepare_tiny(wanted: Wanted) -> None:
    lack = missing_libraries()
    if lack:
        raise ModuleNotFoundError(f"`tiny` must have the real {lack}.")
    write_models(wanted.home / "models")
    for name in _columns(wanted, [book().tables[name] for name in wanted.tables]):
        write_data(wanted.home / "data" / name, load_dataset(name))


def _columns(wanted: Wanted, tables: Sequence[Table]) -> list[str]:
    every = dict.fromkeys(name for table in tables for name in table.datasets)
    if unknown := [name for name in wanted.datasets if name not in every]:
        raise ValueError(f"`datasets` must be some of {list(every)}; got {unknown}.")
    return [name for name in every if not wanted.datasets or name in wanted.datasets]


def _find(wanted: Wanted, name: str) -> Found:
    """Find a data set; a tiny one where nobody said where a real one is."""
    found = find_data(name, wanted.data, wanted.roots)
    if found.root is None and wanted.tiny and name not in wanted.roots:
        return find_data(name, None, {name: wanted.home / "data" / name})
    return found


def _cells(wanted: Wanted, tables: Sequence[Table], device: torch.device) -> Iterator[Cell]:
    """Make all cells, with the evaluations that have their numbers."""
    numbers = published()
    data = {name: _find(wanted, name) for name in _columns(wanted, tables)}
    every = [row for table in book().tables.values() for row in table.rows]
    made: dict[tuple[str, str, str], Run] = {}

    def run(table: Table, row: Row, name: str) -> Run:
        key = (name, row.pair, row.measured)
        if key not in made:
            limit = wanted.limit or table.limit
            made[key] = make_run(row, data[name], limit=limit, tiny=wanted.tiny, device=device)
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


def _todo(cells: Sequence[Cell], home: Home) -> list[Run]:
    """List the evaluations that are to be done: as few as have all numbers."""
    done: dict[str, bool] = {}
    able: dict[str, bool] = {}
    begun: dict[str, bool] = {}  # and finished, but for images that were skipped
    for run in (run for cell in cells for run in cell.runs):
        if run.key not in done:
            done[run.key] = home.complete(run)
            able[run.key] = not home.lacks(run)
            begun[run.key] = able[run.key] and home.finished(run) is not None
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


def _measure(todo: Sequence[Run], wanted: Wanted, home: Home, team: Team) -> dict[str, str]:
    """Do evaluations; return why some of them failed, by key."""
    failures: dict[str, str] = {}
    for number, run in enumerate(todo, 1):
        if team.leads:
            sys.stderr.write(f"[{number}/{len(todo)}] {run}\n")
        try:
            run_evaluate(_request(run, wanted, home, machine(team.device)), team)
        except (FileNotFoundError, ModuleNotFoundError, ValueError, torch.OutOfMemoryError) as err:
            if team.world > 1:
                raise  # the others would wait for this process
            failures[run.key] = str(err)
            sys.stderr.write(f"failed: {err}\n")
    return failures


def _request(run: Run, wanted: Wanted, home: Home, computer: str) -> EvaluateRequest:
    logits, attention = run.sources(home.shelf)
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
        out=home.place(run),
        on_error=wanted.on_error,
        batch_size=1 if run.timed else wanted.batch_size,
        workers=wanted.workers,
        device=wanted.device,
        extra={"reproduce": dict(run.asked), "machine": computer},
    )
