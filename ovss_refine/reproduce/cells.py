"""The cells of a table, the evaluations that they come from, and where those keep their results.

An evaluation has a folder that is named after all that was asked of it and all that it works on.
One that is finished there is read, not done again, also where its data or weights are gone.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ovss_refine import __version__
from ovss_refine.evaluation.rows import Variant
from ovss_refine.folders.manifest import digest
from ovss_refine.folders.records import read_all
from ovss_refine.folders.results import MANIFEST
from ovss_refine.reproduce.inputs import (
    NO_ATTENTION,
    Found,
    RowSource,
    WeightsFolder,
    missing_libraries,
)
from ovss_refine.reproduce.tables import (
    BASELINE,
    COMMON,
    CONTROLS,
    UPSAMPLING,
    PaperRow,
    PaperTable,
    load_tables,
    split_variant,
)

TIMED = "cost"  # the set whose seconds are looked at
# Images at each start of a process whose seconds do not count: all is slower the first time.
WARM_UP = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One evaluation.

    Attributes:
        row: names its sources, and the set of variants that it measures.
        found: its data set.
        asked: all that was asked of it, as JSON.
        key: the same in short.
        limit: only the first so many images; None: all.
    """

    row: PaperRow
    found: Found
    asked: Mapping[str, Any]
    key: str
    limit: int | None

    def __str__(self) -> str:
        """Name it for people."""
        count = f", {self.limit} images" if self.limit else ""
        rest = f", {self.row.measured}" if self.row.measured else ""
        return f"{self.found.dataset.name}{count}: {self.row.backbone} {self.row.sources}{rest}"

    @property
    def timed(self) -> bool:
        """Whether its seconds are looked at."""
        return self.row.measured == TIMED

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows beside the variants."""
        return COMMON if self.row.attention else (BASELINE, UPSAMPLING)

    @property
    def variants(self) -> dict[str, Variant]:
        """The rows that the set adds."""
        return variants_of(self.row)

    def sources(self, weights: WeightsFolder) -> tuple[RowSource, RowSource]:
        """Name the sources of logits and attention."""
        row = self.row
        attention = row.attention or NO_ATTENTION
        return (
            RowSource(row.logits, row.logits_options, weights=weights, row=row),
            RowSource(attention, row.attention_options, weights=weights, row=row),
        )


def variants_of(row: PaperRow) -> dict[str, Variant]:
    """Make the variants that a row's set adds."""
    if not row.attention:
        return {}
    made = {}
    for name, options in load_tables().variants[row.measured].items():
        config, upsampling = split_variant(options)
        made[name] = Variant(config=config, upsampling=upsampling)
    return made


def make_run(row: PaperRow, found: Found, *, limit: int | None, device: torch.device) -> Run:
    """Make the evaluation that a row needs on a data set."""
    asked: dict[str, Any] = {
        "dataset": found.dataset.name,
        "backbone": row.backbone,
        "logits": row.logits,
        "logits options": dict(row.logits_options),
        "attention": row.attention,
        "attention options": dict(row.attention_options),
        "variants": {name: asdict(one) for name, one in variants_of(row).items()},
        "limit": limit,
        "tiny": False,  # as in the names of all folders so far, which are to be found again
        "device": device.type,
        "ovss_refine": __version__,
    }
    if row.measured == TIMED:
        asked["machine"] = machine(device)
    key = f"{found.dataset.name}-{digest(asked)}"
    return Run(row=row, found=found, asked=asked, key=key, limit=limit)


def machine(device: torch.device) -> str:
    """Name what computes, for seconds that are comparable."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cell:
    """One number of a table.

    Attributes:
        table: of the paper.
        row: of the table.
        dataset: its column.
        official: how many images the data set has in the paper.
        published: the paper's number; None: it has none.
        runs: evaluations that have it, the cell's own first; none where nothing can.
    """

    table: PaperTable
    row: PaperRow
    dataset: str
    official: int | None
    published: float | None
    runs: Sequence[Run]


@dataclass(frozen=True, slots=True)
class ResultsStore:
    """Where the evaluations have their folders.

    Attributes:
        folder: of all of them.
        weights: those that are found.
    """

    folder: Path
    weights: WeightsFolder

    def lacks(self, run: Run) -> list[str]:
        """Say all that an evaluation lacks."""
        libraries = missing_libraries()
        if libraries:
            return [libraries, *([run.found.lack] if run.found.lack else [])]
        of_weights = (self.weights.lack(name) for name in load_tables().needs(run.row))
        return [text for text in (run.found.lack, *of_weights) if text]

    def place(self, run: Run) -> Path:
        """Name the folder of an evaluation that lacks nothing."""
        works_on = [run.found.digest, *map(self.weights.digest, load_tables().needs(run.row))]
        return self.folder / f"{run.key}-{digest({'works on': works_on})}"

    def finished(self, run: Run) -> Path | None:
        """Find the folder of an evaluation with its results.

        Where it lacks something that it once had, its results still hold, if there are no others
        that were made with other data or weights.
        """
        if not self.lacks(run):
            place = self.place(run)
            return place if (place / "results.json").is_file() else None
        kept = [path.parent for path in self.folder.glob(f"{run.key}-*/results.json")]
        return kept[0] if len(kept) == 1 else None

    def complete(self, run: Run) -> bool:
        """Whether nothing of an evaluation is to be done: skipped images are to be tried again."""
        folder = self.finished(run)
        if folder is None:
            return False
        return bool(self.lacks(run)) or not read_results(folder)["skipped"]


def read_results(folder: Path) -> dict[str, Any]:
    """Read what an evaluation has found."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def read_machines(folder: Path) -> list[str]:
    """Name what has computed an evaluation, start by start, each once."""
    noted = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return list(dict.fromkeys(start["machine"] for start in noted["starts"]))


def read_seconds(folder: Path) -> dict[str, float]:
    """Return the median seconds of an image for each part of the work.

    The first images of each start of each process do not count, if there are others.
    """
    records = [record for record in read_all(folder) if "seconds" in record]
    warm = [record["seconds"] for record in records if record["batch"] >= WARM_UP]
    warm = warm or [record["seconds"] for record in records]
    return {part: median(record[part] for record in warm) for part in warm[0]}


def alternatives(row: PaperRow, others: Sequence[PaperRow]) -> list[PaperRow]:
    """List rows whose evaluations have the same number: what every evaluation measures alike."""
    if row.measured == TIMED or row.show not in COMMON:
        return []
    same = "pair" if row.show in CONTROLS else "of_logits"
    seen = {(row.pair, row.measured)}
    found = []
    for other in others:
        key = (other.pair, other.measured)
        fits = getattr(other, same) == getattr(row, same) and other.measured != TIMED
        if fits and not other.missing and key not in seen:
            seen.add(key)
            found.append(other)
    return found
