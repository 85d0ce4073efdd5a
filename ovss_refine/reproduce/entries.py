"""The values of a report: each cell's mIoU or seconds, from the evaluation that measured it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovss_refine.reproduce.cells import Cell, read_seconds
from ovss_refine.reproduce.layout import ABSENT, COSTS, MIOU, SECONDS, number_text
from ovss_refine.reproduce.tables import BASELINE, UPSAMPLING, PaperRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The state of the evaluations, by their keys."""

    folders: Mapping[str, Path]  # of finished evaluations
    machines: Mapping[str, Sequence[str]]  # that computed them
    results: Mapping[str, Mapping[str, Any]]  # of finished evaluations
    lacks: Mapping[str, Sequence[str]]  # what others lack
    failures: Mapping[str, str]  # errors of those that failed
    to_do: Mapping[str, str]  # descriptions of those that a plan would run

    def key(self, cell: Cell) -> str | None:
        """Return the key of the finished evaluation that measured a cell."""
        return next((run.key for run in cell.runs if run.key in self.folders), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One value of a report."""

    cell: Cell
    section: str = ""  # of the report
    column: str  # in that section
    quantity: str = MIOU  # mIoU, or a column of the cost
    published: float | None = None
    ours: float | None = None
    part: bool = False  # whether the evaluation had fewer images than the official set

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        if self.published is None or self.ours is None:
            return None
        return round(self.ours - self.published, 3)

    def __str__(self) -> str:
        """Show published / ours / difference; a star marks a part of the official set."""
        if self.published is None and self.ours is None:
            return ABSENT
        theirs, ours = (number_text(x, self.quantity) for x in (self.published, self.ours))
        gain, digits = self.difference, 1 if self.quantity == MIOU else 2
        gain_text = ABSENT if gain is None else f"{gain:+.{digits}f}"
        return f"{theirs} / {ours}{'*' * self.part} / {gain_text}"


def entries_of(cell: Cell, outcome: Outcome) -> Iterator[Entry]:
    """Make the values of a cell: its mIoU, or its costs."""
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


def _costs(row: PaperRow, seconds: Mapping[str, float]) -> dict[str, float]:
    """Add up the seconds per image of the parts that a row needs."""
    # The evaluation measures attention for its other rows as well.
    attends = row.attention and row.show not in (BASELINE, UPSAMPLING)
    parts = ["logits", "attention"] if attends else ["logits"]
    costs = {part: seconds[part] for part in parts}
    whole = seconds[row.show]
    bilinear = row.show.replace("_timed", "_bilinear")
    if bilinear != row.show:
        extra = max(0.0, whole - seconds[bilinear])  # two measurements: it may be below 0
        costs |= {"distribution": seconds[bilinear], "upsampling": extra}
    return {SECONDS: sum(seconds[part] for part in parts) + whole, **costs}
