"""Published, ours, difference: as a Markdown table, as CSV, and as a plot of the curves."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ovss_refine.folders.files import make_folder, write_text, write_whole
from ovss_refine.folders.tables import markdown_table, write_csv
from ovss_refine.reproduce.cells import Cell
from ovss_refine.reproduce.curves import Panel, missing_library, write_plot
from ovss_refine.reproduce.entries import Entry, Outcome, entries_of
from ovss_refine.reproduce.layout import ABSENT, row_name
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
    """The report of a table."""

    table: PaperTable
    text: str  # in Markdown
    sheet: Sequence[Sequence[object]]  # rows of a CSV, without header
    curves: Sequence[Panel]  # to be plotted; empty if the table has no curves, or no points yet

    def write(self, out: Path) -> None:
        """Write .md, .csv and, if matplotlib is installed, .png into a folder."""
        make_folder(out)
        write_text(out / f"{self.table.name}.md", f"{self.text}\n")
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
        sheet=[_csv_row(entry, outcome) for entry in entries],
        curves=curves,
    )


def write_sheet(path: Path, reports: Sequence[Report]) -> None:
    """Write the values of some reports as CSV, one a line."""
    make_folder(path.parent)
    write_csv(path, [HEAD, *(row for report in reports for row in report.sheet)])


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
        parts.append(markdown_table(list(_rows(within)), text_columns=2))
    parts += _footnotes(entries, outcome)
    parts += [
        f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines)
        for title, lines in _lists(table, entries, outcome).items()
        if lines
    ]
    return "\n\n".join(parts)


def _files(out: Path, table: PaperTable, curves: Sequence[Panel]) -> str:
    """Name the files of the report, and what the plot needs."""
    missing = missing_library() if curves else ""
    files = ".md, .csv and .png" if curves and not missing else ".md and .csv"
    text = f"In `{out}`: {table.name}{files}; the evaluations in `{out / 'cells'}`."
    return f"{text}\n\nThe plot is left out: {missing}" if missing else text


def _rows(entries: Sequence[Entry]) -> Iterator[list[str]]:
    """Yield the rows of one section, the header first."""
    columns = list(dict.fromkeys(entry.column for entry in entries))
    yield ["backbone", "method", *columns]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for entry in entries:
        row = entry.cell.row
        rows.setdefault((row.backbone, row_name(row)), {})[entry.column] = str(entry)
    for (backbone, method), cells in rows.items():
        if {*cells.values()} != {ABSENT}:  # neither published nor measured
            yield [backbone, method, *(cells.get(column, "") for column in columns)]


def _footnotes(entries: Sequence[Entry], outcome: Outcome) -> list[str]:
    """Name the data sets that were evaluated in part, and those with skipped images."""
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
        notes.append(f"\\* {_pairs(part)} images: not comparable with the published values.")
    if skipped:
        notes.append(f"Images that could not be read and were skipped: {_pairs(skipped)}.")
    return notes


def _lists(table: PaperTable, entries: Sequence[Entry], outcome: Outcome) -> dict[str, list[str]]:
    """List what is missing and for which rows, what failed or remains to do, and the notes."""
    missing: dict[str, dict[str, None]] = {}
    keys: dict[str, None] = {}
    for cell in {id(entry.cell): entry.cell for entry in entries}.values():
        keys |= dict.fromkeys(run.key for run in cell.runs)
        for reason in _lacks(cell, outcome):
            name = row_name(cell.row) if cell.row.missing else cell.row.sources
            missing.setdefault(reason, {})[name] = None
    lines = [f"{reason} ({', '.join(names)})" for reason, names in missing.items()]
    if table.name == "cost":
        lines.append(NOT_COUNTED)
    rows = dict.fromkeys(entry.cell.row for entry in entries if entry.cell.row.note)
    return {
        "Missing": lines,
        "Failed": _texts(outcome.failures, keys),
        "To do": _texts(outcome.to_do, keys),
        "How it was read": [f"{row.backbone}, {row_name(row)}: {row.note}" for row in rows],
    }


def _texts(by_key: Mapping[str, str], keys: Iterable[str]) -> list[str]:
    """Return the texts of some keys, each once."""
    return list(dict.fromkeys(by_key[key] for key in keys if key in by_key))


def _lacks(cell: Cell, outcome: Outcome) -> Sequence[str]:
    """Return why a cell is not measured."""
    if cell.row.missing:
        return [load_tables().reasons[cell.row.missing]]
    return () if outcome.key(cell) else outcome.lacks.get(cell.runs[0].key, ())


def _csv_row(entry: Entry, outcome: Outcome) -> list[object]:
    cell, key = entry.cell, outcome.key(entry.cell)
    row = cell.row
    return [
        *(cell.table.name, row.backbone, row_name(row), cell.dataset, row.panel, row.x),
        *(entry.quantity, entry.published, entry.ours, entry.difference),
        outcome.results[key]["images"] if key else None,
        outcome.folders[key].name if key else None,
        "; ".join(_lacks(cell, outcome)),
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
