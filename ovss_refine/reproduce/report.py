"""Published, ours, difference: as a Markdown table, as CSV, and as a plot of the curves."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ovss_refine.folders.files import write_whole
from ovss_refine.reproduce.cells import Cell
from ovss_refine.reproduce.curves import Panel, missing_library, write_plot
from ovss_refine.reproduce.entries import Entry, Outcome, entries_of
from ovss_refine.reproduce.layout import (
    ABSENT,
    markdown_table,
    number_text,
    row_name,
    signed_text,
)
from ovss_refine.reproduce.tables import PaperTable, load_tables

NOT_COUNTED = (
    "GFLOPs and parameters are not measured here; `benchmarks/sources.py` in the repository counts "
    "those of the attention sources"
)
HEAD = (
    *("table", "backbone", "method", "dataset", "curve", "x", "quantity"),
    *("published", "ours", "difference", "images", "evaluation", "missing"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came out for a table.

    Attributes:
        table: of the paper.
        text: in Markdown.
        sheet: rows of a CSV, the head first.
        curves: to be drawn; empty: the table has none, or no points.
    """

    table: PaperTable
    text: str
    sheet: Sequence[Sequence[object]]
    curves: Sequence[Panel]

    def write(self, out: Path) -> None:
        """Write .md, .csv and, where matplotlib is installed, .png into a folder."""
        out.mkdir(parents=True, exist_ok=True)
        content = f"{self.text}\n".encode()
        write_whole(out / f"{self.table.name}.md", lambda file: file.write(content))
        write_sheet(out / f"{self.table.name}.csv", [self])
        if self.curves and not missing_library():
            draw = partial(write_plot, panels=self.curves, title=self.table.title)
            write_whole(out / f"{self.table.name}.png", draw)


def make_report(out: Path, table: PaperTable, cells: Sequence[Cell], outcome: Outcome) -> Report:
    """Make the report of a table; `out` is the folder that it will be written to."""
    entries = [entry for cell in cells for entry in entries_of(cell, outcome)]
    curves = _curves(entries)
    return Report(
        table=table,
        text=f"{_text(table, entries, outcome)}\n\n{_files(out, table, curves)}",
        sheet=[HEAD, *(_record(entry, outcome) for entry in entries)],
        curves=curves,
    )


def write_sheet(path: Path, reports: Sequence[Report]) -> None:
    """Write the numbers of some reports as CSV, one a line."""
    out = io.StringIO()
    sheet = csv.writer(out, lineterminator="\n")
    sheet.writerow(HEAD)
    sheet.writerows(line for report in reports for line in report.sheet[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(out.getvalue().encode()))


def _text(table: PaperTable, entries: Sequence[Entry], outcome: Outcome) -> str:
    what = "seconds, and mIoU in percent" if table.name == "cost" else "mIoU in percent"
    parts = [f"# `{table.name}`: {table.title}"]
    if table.says:
        parts.append(f"The paper: {table.says}.")
    keys = dict.fromkeys(outcome.key(entry.cell) for entry in entries)
    machines = dict.fromkeys(name for key in keys if key for name in outcome.machines[key])
    where = f"; measured on {' and on '.join(machines)}" if machines else ""
    parts.append(f"Published / ours / difference, {what}{where}.")
    for section in dict.fromkeys(entry.section for entry in entries):
        within = [entry for entry in entries if entry.section == section]
        parts += [f"## {section}"] if section else []
        parts.append(markdown_table(list(_lines(within, outcome))))
    parts += _footnotes(entries, outcome)
    parts += [
        f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines)
        for title, lines in _lists(table, entries, outcome).items()
        if lines
    ]
    return "\n\n".join(parts)


def _files(out: Path, table: PaperTable, curves: Sequence[Panel]) -> str:
    """Name the files that are written."""
    missing = missing_library() if curves else ""
    files = ".md, .csv and .png" if curves and not missing else ".md and .csv"
    cells = out / "cells"
    parts = [f"In `{out}`: {table.name}{files}; the evaluations in `{cells}`."]
    return "\n\n".join(parts + [f"The plot is left out: {missing}"] * bool(missing))


def _lines(entries: Sequence[Entry], outcome: Outcome) -> Iterator[list[str]]:
    """Yield the rows of one section, the head first."""
    columns = list(dict.fromkeys(entry.column for entry in entries))
    yield ["backbone", "method", *columns]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for entry in entries:
        row = entry.cell.row
        star = "*" if entry.part else ""
        if entry.published is None and entry.ours is None:
            text = ABSENT
        else:
            quantity = entry.quantity
            ours = number_text(entry.ours, quantity) + star
            theirs = number_text(entry.published, quantity)
            gain = signed_text(entry.difference, quantity)
            text = f"{theirs} / {ours} / {gain}"
        rows.setdefault((row.backbone, row_name(row)), {})[entry.column] = text
    for (backbone, method), cells in rows.items():
        if {*cells.values()} != {ABSENT}:  # of ours, and not measured
            yield [backbone, method, *(cells.get(column, "") for column in columns)]


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


def _lists(table: PaperTable, entries: Sequence[Entry], outcome: Outcome) -> dict[str, list[str]]:
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
            reason = load_tables().reasons[cell.row.missing]
            missing.setdefault(reason, {})[row_name(cell.row)] = None
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
        "How it was read": [f"{row.backbone}, {row_name(row)}: {row.note}" for row in rows],
    }


def _record(entry: Entry, outcome: Outcome) -> list[object]:
    """Return the line of the CSV."""
    cell, key = entry.cell, outcome.key(entry.cell)
    row = cell.row
    lacks = () if row.missing or key else outcome.lacks.get(cell.runs[0].key, ())
    return [
        *(cell.table.name, row.backbone, row_name(row), cell.dataset, row.panel, row.x),
        *(entry.quantity, entry.published, entry.ours),
        entry.difference,
        outcome.results[key]["images"] if key else None,
        outcome.folders[key].name if key else None,
        load_tables().reasons.get(row.missing, "") or "; ".join(lacks),
    ]


def _curves(entries: Sequence[Entry]) -> list[Panel]:
    """Collect the curves that have points, one panel for each section."""
    panels: dict[str, Panel] = {}
    for entry in entries:
        row = entry.cell.row
        if row.x is not None and entry.ours is not None:
            new = Panel(entry.cell.dataset, row.panel, "mIoU (%)", {})
            panel = panels.setdefault(entry.section, new)
            panel.lines.setdefault(row.method, []).append((row.x, entry.ours))
    return list(panels.values())


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
