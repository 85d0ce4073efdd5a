"""Published, ours, difference: as a Markdown table, as CSV, and as plots of the curves."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ovss_refine.folders.files import write_whole
from ovss_refine.images import draw
from ovss_refine.images.read import RGB
from ovss_refine.reproduce.cells import Cell, read_seconds
from ovss_refine.reproduce.plot import Axes, Line, draw_axes
from ovss_refine.reproduce.tables import (
    BASELINE,
    UPSAMPLING,
    Row,
    Table,
    book,
    published,
)

MIOU = "mIoU"
SECONDS = "seconds"
# Columns of the cost: the parts that are measured, and what is not counted here.
PARTS = {"logits": "logits", "attention": "attention", "distribution": "distribution"}
PARTS |= {"upsampling": "JBU"}
UNCOUNTED = {"gflops": "GFLOPs", "parameters": "parameters (M)"}
COSTS = {SECONDS: SECONDS, **PARTS, **UNCOUNTED, "miou": MIOU}
NOT_COUNTED = (
    "GFLOPs and parameters are not measured here; `benchmarks/sources.py` in the repository counts "
    "those of the attention sources"
)
TINY = (
    "**Random tiny models: these numbers mean nothing.** They show that the command works; no "
    "difference is made of them."
)
HEAD = (
    *("table", "backbone", "method", "dataset", "curve", "x", "quantity"),
    *("published", "ours", "difference", "images", "models", "evaluation", "missing"),
)
ABSENT = "-"
NOT_MEASURED = "not measured here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of the evaluations.

    Attributes:
        tiny: whether the models were tiny.
        folders: of the evaluations that are finished, by key.
        machines: what computed them, by key.
        results: what they found, by key.
        lacks: what others lack, by key.
        failures: why some failed, by key.
        to_do: what could be done and was not asked for, by key.
    """

    tiny: bool
    folders: Mapping[str, Path]
    machines: Mapping[str, Sequence[str]]
    results: Mapping[str, Mapping[str, Any]]
    lacks: Mapping[str, Sequence[str]]
    failures: Mapping[str, str]
    to_do: Mapping[str, str]

    def key(self, cell: Cell) -> str | None:
        """Name the finished evaluation that has a cell's number."""
        return next((run.key for run in cell.runs if run.key in self.folders), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One number of a report.

    Attributes:
        cell: where it belongs.
        section: of the report.
        column: in that section.
        quantity: what it is.
        published: the paper's number, or None.
        ours: what was measured, or None.
        part: whether the evaluation had fewer images than the official set.
    """

    cell: Cell
    section: str = ""
    column: str
    quantity: str = MIOU
    published: float | None = None
    ours: float | None = None
    part: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came out for a table.

    Attributes:
        table: of the paper.
        text: in Markdown.
        sheet: rows of a CSV, the head first.
        picture: [H, W, 3] uint8, the curves; None: there are none.
    """

    table: Table
    text: str
    sheet: Sequence[Sequence[object]]
    picture: RGB | None

    def write(self, home: Path) -> None:
        """Write .md, .csv and .png into a folder."""
        home.mkdir(parents=True, exist_ok=True)
        content = f"{self.text}\n".encode()
        write_whole(home / f"{self.table.name}.md", lambda file: file.write(content))
        write_sheet(home / f"{self.table.name}.csv", [self])
        if self.picture is not None:
            draw_it = partial(draw.write_png, image=self.picture)
            write_whole(home / f"{self.table.name}.png", draw_it)


def make_report(home: Path, table: Table, cells: Sequence[Cell], outcome: Outcome) -> Report:
    """Make the report of a table; `home` is where the evaluations are."""
    entries = [entry for cell in cells for entry in _entries(cell, outcome)]
    axes = _axes(entries)
    title = "Random tiny models: these curves mean nothing." if outcome.tiny else table.title
    return Report(
        table=table,
        text=_text(home, table, entries, outcome),
        sheet=[HEAD, *(_record(entry, outcome) for entry in entries)],
        picture=draw_axes(axes, title) if axes else None,
    )


def write_sheet(path: Path, reports: Sequence[Report]) -> None:
    """Write the numbers of some reports as CSV, one a line."""
    out = io.StringIO()
    sheet = csv.writer(out, lineterminator="\n")
    sheet.writerow(HEAD)
    sheet.writerows(line for report in reports for line in report.sheet[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(out.getvalue().encode()))


def published_text(tables: Sequence[Table]) -> str:
    """Lay out what was published of some tables, and that nothing of it was measured here."""
    numbers = published()
    parts = ["## The published tables", "mIoU in percent, by J. Li et al."]
    for table in tables:
        parts.append(f"### `{table.name}`: {table.title}")
        if table.says:
            parts.append(f"{table.says[0].upper()}{table.says[1:]}.")
        if not table.curves:
            parts.append(_layout(list(_published_lines(table, numbers))))
    return "\n\n".join(parts)


def _published_lines(table: Table, numbers: Mapping[Any, float]) -> Iterator[list[str]]:
    """Yield the rows of a table as it was published."""
    costs = COSTS if table.name == "cost" else {}
    quantities = [*costs.values()] or [MIOU] * len(table.datasets)
    yield ["backbone", "method", *(costs.values() or table.datasets), "ours"]
    for row in table.rows:
        if row.published or row.cost:
            key = (row.published, row.backbone, row.method)
            values = [row.cost.get(name) for name in costs] or [
                numbers.get((*key, name)) for name in table.datasets
            ]
            ours = row.missing or NOT_MEASURED
            texts = [_number(*pair) for pair in zip(values, quantities, strict=True)]
            yield [row.backbone, _name(row), *texts, ours]


def _entries(cell: Cell, outcome: Outcome) -> Iterator[Entry]:
    """Make the numbers of a cell: its mIoU, or its seconds by part."""
    key = outcome.key(cell)
    found = {} if key is None else outcome.results[key]
    miou = found["rows"][cell.row.show]["miou"] if found else None
    part = bool(found) and found["images"] != cell.official
    if cell.table.name == "cost":
        seconds = {} if key is None else _costs(cell.row, read_seconds(outcome.folders[key]))
        for name, column in COSTS.items():
            yield Entry(
                cell=cell,
                column=column,
                quantity=column,
                published=cell.row.cost.get(name),
                ours=miou if column == MIOU else seconds.get(name),
                part=part and column == MIOU,
            )
        return
    yield Entry(
        cell=cell,
        section=f"{cell.row.panel}, {cell.dataset}" if cell.row.panel else "",
        column=cell.dataset if cell.row.x is None else f"{cell.row.x:g}",
        published=cell.published,
        ours=miou,
        part=part,
    )


def _costs(row: Row, seconds: Mapping[str, float]) -> dict[str, float]:
    """Add up the seconds of an image that a row of the cost takes."""
    # The evaluation has attention for its other rows as well.
    attends = row.attention and row.show not in (BASELINE, UPSAMPLING)
    parts = ["logits", "attention"] if attends else ["logits"]
    costs = {part: seconds[part] for part in parts}
    whole = seconds[row.show]
    bilinear = row.show.replace("_timed", "_bilinear")
    if bilinear != row.show:
        extra = max(0.0, whole - seconds[bilinear])  # of two measurements, so it may be below 0
        costs |= {"distribution": seconds[bilinear], "upsampling": extra}
    return {SECONDS: sum(seconds[part] for part in parts) + whole, **costs}


def _text(home: Path, table: Table, entries: Sequence[Entry], outcome: Outcome) -> str:
    what = "seconds, and mIoU in percent" if table.name == "cost" else "mIoU in percent"
    parts = [f"# `{table.name}`: {table.title}"]
    if outcome.tiny:
        parts.append(TINY)
    if table.says:
        parts.append(f"The paper: {table.says}.")
    keys = dict.fromkeys(outcome.key(entry.cell) for entry in entries)
    machines = dict.fromkeys(name for key in keys if key for name in outcome.machines[key])
    where = f"; measured on {' and on '.join(machines)}" if machines else ""
    parts.append(f"Published / ours / difference, {what}{where}.")
    for section in dict.fromkeys(entry.section for entry in entries):
        within = [entry for entry in entries if entry.section == section]
        parts += [f"## {section}"] if section else []
        parts.append(_layout(list(_lines(within, outcome))))
    parts += _footnotes(entries, outcome)
    parts += [
        f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines)
        for title, lines in _lists(table, entries, outcome).items()
        if lines
    ]
    files = ".md, .csv and .png" if _axes(entries) else ".md and .csv"
    parts.append(f"In `{home}`: {table.name}{files}; the evaluations in `{home / 'cells'}`.")
    return "\n\n".join(parts)


def _lines(entries: Sequence[Entry], outcome: Outcome) -> Iterator[list[str]]:
    """Yield the rows of one section, the head first."""
    columns = list(dict.fromkeys(entry.column for entry in entries))
    yield ["backbone", "method", *columns]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for entry in entries:
        row = entry.cell.row
        difference = None if outcome.tiny else _difference(entry)
        star = "*" if entry.part else ""
        if entry.published is None and entry.ours is None:
            text = ABSENT
        else:
            quantity = entry.quantity
            ours = _number(entry.ours, quantity) + star
            theirs, gain = _number(entry.published, quantity), _signed(difference, quantity)
            text = f"{theirs} / {ours} / {gain}"
        rows.setdefault((row.backbone, _name(row)), {})[entry.column] = text
    for (backbone, method), cells in rows.items():
        if {*cells.values()} != {ABSENT}:  # of ours, and not measured
            yield [backbone, method, *(cells.get(column, "") for column in columns)]


def _name(row: Row) -> str:
    """Name a row; methods of two tables that are shown as one carry theirs."""
    table = row.published.partition("(")[2].rstrip(")")
    return f"{row.method} ({table})" if table else row.method


def _footnotes(entries: Sequence[Entry], outcome: Outcome) -> list[str]:
    """Say of which data sets only a part was taken, and what was skipped."""
    part, skipped = {}, {}
    for entry in entries:
        key = outcome.key(entry.cell)
        if key is None:
            continue
        found = outcome.results[key]
        if entry.part:
            part[entry.cell.dataset] = f"{found['images']} of {entry.cell.official}"
        if found["skipped"]:
            skipped[entry.cell.dataset] = str(len(found["skipped"]))
    notes = []
    if part:
        notes.append(f"\\* {_pairs(part)} images: not comparable with what was published.")
    if skipped:
        notes.append(f"Images that could not be read and were skipped: {_pairs(skipped)}.")
    return notes


def _lists(table: Table, entries: Sequence[Entry], outcome: Outcome) -> dict[str, list[str]]:
    """Say what is missing and for which rows, what is to be done, and how things were read."""
    missing: dict[str, dict[str, None]] = {}
    to_do: dict[str, None] = {}
    failed: dict[str, None] = {}
    for cell in {id(entry.cell): entry.cell for entry in entries}.values():
        known = {run.key for run in cell.runs}
        to_do |= {text: None for key, text in outcome.to_do.items() if key in known}
        failed |= {text: None for key, text in outcome.failures.items() if key in known}
        if outcome.key(cell) is not None:
            continue
        if cell.row.missing:
            reason = book().reasons[cell.row.missing]
            missing.setdefault(reason, {})[_name(cell.row)] = None
            continue
        own = cell.runs[0].key
        for lack in outcome.lacks.get(own, ()):
            missing.setdefault(lack, {})[cell.row.sources] = None
    lines = [f"{reason} ({', '.join(names)})" for reason, names in missing.items()]
    if table.name == "cost":
        lines.append(NOT_COUNTED)
    rows = dict.fromkeys(entry.cell.row for entry in entries if entry.cell.row.note)
    return {
        "Missing": lines,
        "Failed": list(failed),
        "To do": list(to_do),
        "How it was read": [f"{row.backbone}, {_name(row)}: {row.note}" for row in rows],
    }


def _record(entry: Entry, outcome: Outcome) -> list[object]:
    """Return the line of the CSV."""
    cell, key = entry.cell, outcome.key(entry.cell)
    row = cell.row
    lacks = () if row.missing or key else outcome.lacks.get(cell.runs[0].key, ())
    return [
        *(cell.table.name, row.backbone, _name(row), cell.dataset, row.panel, row.x),
        *(entry.quantity, entry.published, entry.ours),
        None if outcome.tiny else _difference(entry),
        outcome.results[key]["images"] if key else None,
        None if entry.ours is None else "tiny and random" if outcome.tiny else "real",
        outcome.folders[key].name if key else None,
        book().reasons.get(row.missing, "") or "; ".join(lacks),
    ]


def _axes(entries: Sequence[Entry]) -> list[Axes]:
    """Collect the curves that have points, one pair of axes for each section."""
    sections: dict[str, dict[str, list[tuple[float, float]]]] = {}
    labels = {}
    for entry in entries:
        row = entry.cell.row
        if row.x is not None and entry.ours is not None:
            lines = sections.setdefault(entry.section, {})
            lines.setdefault(row.method, []).append((row.x, entry.ours))
            labels[entry.section] = (entry.cell.dataset, row.panel)
    return [
        Axes(labels[name][0], labels[name][1], "mIoU (%)", [Line(n, p) for n, p in lines.items()])
        for name, lines in sections.items()
    ]


def _difference(entry: Entry) -> float | None:
    if entry.published is None or entry.ours is None:
        return None
    return round(entry.ours - entry.published, 3)


def _number(value: float | None, quantity: str = MIOU) -> str:
    """Round as the paper does: percent to a tenth, seconds to a hundredth."""
    if value is None:
        return ABSENT
    return f"{value:.{2 if value < 10 and quantity != MIOU else 1}f}"


def _signed(value: float | None, quantity: str) -> str:
    return ABSENT if value is None else f"{value:+.{1 if quantity == MIOU else 2}f}"


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _layout(lines: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table whose columns stand under one another."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        [*(text.ljust(w) for text, w in zip(line[:2], widths[:2], strict=True))]
        + [text.rjust(w) for text, w in zip(line[2:], widths[2:], strict=True)]
        for line in lines
    ]
    rule = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])
