"""The cells of a table, their evaluations, and the folders of results of the evaluations.

The folder of an evaluation is named after its settings, data and weights. A finished evaluation is
read, not repeated, even if its data or weights are gone.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ovss_refine import __version__
from ovss_refine.evaluation.rows import Variant
from ovss_refine.folders.files import read_json
from ovss_refine.folders.manifest import digest
from ovss_refine.folders.records import read_all
from ovss_refine.folders.results import MANIFEST
from ovss_refine.reproduce.inputs import Found, WeightsFolder, missing_libraries
from ovss_refine.reproduce.tables import (
    COMMON,
    CONTROLS,
    PaperRow,
    PaperTable,
    load_tables,
    variant_config,
)
from ovss_refine.sources.device import Placement
from ovss_refine.upsamplers.names import settings_of

TIMED = "cost"  # the set of variants whose seconds are reported
# The first images of each process do not count in its seconds: they are slower.
WARM_UP = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One evaluation."""

    row: PaperRow  # gives its sources, and the set of variants that it measures
    found: Found  # its data set
    asked: Mapping[str, Any]  # all of its settings, as JSON
    key: str  # short name of the settings
    limit: int | None  # only the first images, this many; None: all

    def __str__(self) -> str:
        """Describe it in one line."""
        count = f", {self.limit} images" if self.limit else ""
        rest = f", {self.row.measured}" if self.row.measured else ""
        return f"{self.found.dataset.name}{count}: {self.row.backbone} {self.row.sources}{rest}"


def variants_of(row: PaperRow) -> dict[str, Variant]:
    """Make the variants that the evaluation of a row measures."""
    options = load_tables().variants[row.measured] if row.attention else {}
    return {name: Variant(config=variant_config(one)) for name, one in options.items()}


def make_run(row: PaperRow, found: Found, *, limit: int | None, place: Placement) -> Run:
    """Make the evaluation that measures a row on a data set."""
    asked: dict[str, Any] = {
        "dataset": found.dataset.name,
        "backbone": row.backbone,
        "logits": row.logits,
        "logits options": dict(row.logits_options),
        "attention": row.attention,
        "attention options": dict(row.attention_options),
        "variants": {name: settings_of(one.config) for name, one in variants_of(row).items()},
        "limit": limit,
        "tiny": False,  # kept so that the folders of earlier versions are found
        "device": place.device.type,
        "ovss_refine": __version__,
    }
    if place.dtype is not None:
        asked["dtype"] = place.dtype
    if row.measured == TIMED:
        asked["machine"] = machine(place.device)
    key = f"{found.dataset.name}-{digest(asked)}"
    return Run(row=row, found=found, asked=asked, key=key, limit=limit)


def machine(device: torch.device) -> str:
    """Name the processor or GPU, to which seconds belong."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    processor = named[0] if named else platform.machine()
    return f"{processor}, {torch.get_num_threads()} threads"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cell:
    """One value of a table."""

    table: PaperTable
    row: PaperRow
    dataset: str  # its column
    official: int | None  # number of images of the official set
    published: float | None
    # Evaluations that measure it, the cell's own first; empty if it cannot be measured.
    runs: Sequence[Run]


@dataclass(frozen=True, slots=True)
class ResultsStore:
    """The folders of the evaluations."""

    folder: Path  # their parent
    weights: WeightsFolder

    def lacks(self, run: Run) -> list[str]:
        """List everything that an evaluation lacks."""
        if libraries := missing_libraries():
            return [text for text in (libraries, run.found.lack) if text]
        of_weights = (self.weights.lack(name) for name in load_tables().needs(run.row))
        return [text for text in (run.found.lack, *of_weights) if text]

    def place(self, run: Run) -> Path:
        """Return the folder of an evaluation that lacks nothing."""
        works_on = [run.found.digest, *map(self.weights.digest, load_tables().needs(run.row))]
        return self.folder / f"{run.key}-{digest({'works on': works_on})}"

    def finished(self, run: Run) -> Path | None:
        """Return the folder of an evaluation if it has results.

        If its data or weights are gone, its results still count, unless there are also results of
        other data or weights.
        """
        if not self.lacks(run):
            place = self.place(run)
            return place if (place / "results.json").is_file() else None
        kept = [path.parent for path in self.folder.glob(f"{run.key}-*/results.json")]
        return kept[0] if len(kept) == 1 else None

    def complete(self, run: Run) -> bool:
        """Whether nothing of an evaluation remains to be done; skipped images are retried."""
        folder = self.finished(run)
        if folder is None:
            return False
        return bool(self.lacks(run)) or not read_results(folder)["skipped"]


def read_results(folder: Path) -> dict[str, Any]:
    """Read the results of an evaluation; raises ValueError if they are damaged."""
    found: Any = read_json(folder / "results.json")
    if not isinstance(found, dict) or not {"images", "skipped", "rows"} <= found.keys():
        raise ValueError(f"`{folder / 'results.json'}` must be results of `evaluate`; remove it.")
    return found


def read_machines(folder: Path) -> list[str]:
    """Return the machines that computed an evaluation, in the order of its starts."""
    noted = read_json(folder / MANIFEST)
    return list(dict.fromkeys(start["machine"] for start in noted["starts"]))


def read_seconds(folder: Path) -> dict[str, float]:
    """Return the median seconds per image of each part of the work.

    The first images of each process do not count, unless there are no others.
    """
    records = [record for record in read_all(folder) if "seconds" in record]
    warm = [record for record in records if record["batch"] >= WARM_UP] or records
    return {part: median(record["seconds"][part] for record in warm) for part in warm[0]["seconds"]}


def alternatives(row: PaperRow, others: Sequence[PaperRow]) -> list[PaperRow]:
    """List rows whose evaluations measure the same value: rows that all evaluations share."""
    if row.measured == TIMED or row.show not in COMMON:
        return []
    same = "pair" if row.show in CONTROLS else "of_logits"
    found = {(row.pair, row.measured): row}
    for other in others:
        fits = getattr(other, same) == getattr(row, same) and other.measured != TIMED
        if fits and not other.missing:
            found.setdefault((other.pair, other.measured), other)
    return list(found.values())[1:]
