"""The numbers of a report: each cell's mIoU or seconds, from the evaluation that has it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovss_refine.reproduce.cells import Cell, read_seconds
from ovss_refine.reproduce.layout import COSTS, MIOU, SECONDS
from ovss_refine.reproduce.tables import BASELINE, UPSAMPLING, PaperRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of the evaluations.

    Attributes:
        folders: of the evaluations that are finished, by key.
        machines: what computed them, by key.
        results: what they found, by key.
        lacks: what others lack, by key.
        failures: why some failed, by key.
        to_do: what could be done and was not asked for, by key.
    """

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

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        if self.published is None or self.ours is None:
            return None
        return round(self.ours - self.published, 3)


def entries_of(cell: Cell, outcome: Outcome) -> Iterator[Entry]:
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


def _costs(row: PaperRow, seconds: Mapping[str, float]) -> dict[str, float]:
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
