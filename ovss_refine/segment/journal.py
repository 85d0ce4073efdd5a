"""The record of a folder of segmentations: its settings, finished images, and areas.

`segment.json` has the settings, `records.N.jsonl` one line for each image that process N finished,
and `areas.csv` the areas as a table. The line of an image is written after its last file.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ovss_refine.folders.records import Record, Records, files_of, iterate
from ovss_refine.folders.results import ResultsFolder, count_starts
from ovss_refine.folders.tables import write_csv
from ovss_refine.segment.inputs import ImageFile
from ovss_refine.segment.outputs import output_names
from ovss_refine.segment.request import Outputs
from ovss_refine.segmentation import Segmentation
from ovss_refine.sources.processes import ProcessGroup

SETTINGS, TABLE = "segment.json", "areas.csv"
COLUMNS = ("name", "labels", "index", "class", "pixels", "share")
# Of two records of an image the larger is valid: the start that wrote it, its file, and its place
# there. One process has every start's records in order; of several, any may repeat an image.
Place = tuple[int, str, int]


@dataclass(frozen=True, slots=True)
class Finished:
    """An image whose files were all written."""

    file: tuple[int, int]  # size in bytes and modification time of the image
    classes: tuple[int, ...]  # indices of the classes that occur
    # The outputs besides the label map, by their fields of `Outputs`. Other files in the folder may
    # be those of an earlier run with other settings.
    outputs: frozenset[str]


@dataclass(frozen=True, slots=True)
class Area:
    """The area of a class in an image."""

    name: str
    labels: str  # "refined" or "baseline"
    index: int  # of the class
    pixels: int
    share: float  # of all pixels, in (0, 1]


class Journal:
    """The finished images of a folder, open for appending.

    Memory holds only names and a few numbers; areas are read from the file when they are needed.

    Args:
        out: the folder; created if it is missing.
        names: of the classes.
        settings: everything that the results depend on.
        group: the processes that write into the folder, each into a file of records of its own; all
            of them open the journal at the same time.
        overwrite: discard results of other settings.

    Raises:
        FileExistsError: if `out` is a file, or has other files and `overwrite` is not set.
        ValueError: if images were finished with other settings and `overwrite` is not set;
            lists the differences.
        OSError: if the folder cannot be written, or another run is writing into it.
    """

    def __init__(
        self,
        out: Path,
        names: Sequence[str],
        settings: Mapping[str, Any],
        group: ProcessGroup,
        *,
        overwrite: bool,
    ) -> None:
        """Open the folder."""
        self.out, self.names = out, names
        self._folder = (
            ResultsFolder(out, settings, manifest=SETTINGS, overwrite=overwrite)
            if group.leads
            else None
        )
        group.wait()  # no process writes before the folder is checked
        self._records = Records(out, group.rank) if self._folder is None else self._folder.records
        try:
            self._start = count_starts(out, SETTINGS)
            self.finished: dict[str, Finished] = {}
            for record in self._valid():
                self._note(record)
            group.wait()  # a line that another process is writing would look damaged
        except BaseException:
            self._records.close()
            raise

    def is_finished(self, image: ImageFile, outputs: Outputs) -> bool:
        """Whether all files of an image exist.

        Raises:
            ValueError: if they belong to another image, or the image has changed since.
        """
        done = self.finished.get(image.name)
        if done is None:
            return False
        # A missing image is reported when it is read.
        with contextlib.suppress(FileNotFoundError):
            if fingerprint(image.path) != done.file:
                raise ValueError(
                    f"`out` must not have results of another image of the same name; those of "
                    f"{image.name!r} in `{self.out}` are not of `{image.path}` as it is now. "
                    "Take another folder, or pass --overwrite."
                )
        present = [(index, self.names[index]) for index in done.classes]
        names = output_names(image.name, outputs, present)
        return _asked(outputs) <= done.outputs and all((self.out / x).is_file() for x in names)

    def add(
        self, image: ImageFile, file: tuple[int, int], found: Segmentation, outputs: Outputs
    ) -> None:
        """Record that all files of an image are written; raises OSError if that fails."""
        areas = {"refined": _areas(found.labels)}
        if found.baseline is not None:
            areas["baseline"] = _areas(found.baseline)
        record = {
            "name": image.name,
            "file": file,
            "size": found.labels.shape,
            "areas": areas,
            "kinds": sorted(_asked(outputs)),
            "start": self._start,
        }
        self._records.append(record)
        self._note(record)

    def areas(self) -> Iterator[Area]:
        """Yield the areas that all processes have found, the largest of each image first."""
        for record in self._valid():
            H, W = record["size"]
            for labels, rows in record["areas"].items():
                for index, pixels in rows:
                    yield Area(record["name"], labels, index, pixels, pixels / (H * W))

    def close(self) -> None:
        """Unlock the folder; the first process writes the table.

        An empty run leaves nothing behind.
        """
        if self._folder is None:
            self._records.close()
            return
        try:
            # Not `self.finished`: Ctrl-C may have come between writing a line and noting it.
            if self._folder.has_results():
                write_csv(self.out / TABLE, self._table())
        finally:
            self._folder.close()

    def _valid(self) -> Iterator[Record]:
        """Yield the last record of every image."""
        last: dict[str, Place] = {}
        for record, place in self._placed():
            last[record["name"]] = max(place, last.get(record["name"], place))
        # A process that is still writing may have added records in between.
        yield from (record for record, place in self._placed() if last.get(record["name"]) == place)

    def _placed(self) -> Iterator[tuple[Record, Place]]:
        for path in files_of(self.out):
            for record, end in iterate(path):
                # Before there were several processes, records did not name their start.
                yield record, (record.get("start", 0), path.name, end)

    def _note(self, record: Mapping[str, Any]) -> None:
        classes = tuple(index for index, _ in record["areas"]["refined"])
        outputs = frozenset(record["kinds"])
        self.finished[record["name"]] = Finished(tuple(record["file"]), classes, outputs)

    def _table(self) -> Iterator[Sequence[object]]:
        yield COLUMNS
        for area in self.areas():
            share, name = f"{area.share:.6f}", self.names[area.index]
            yield area.name, area.labels, area.index, name, area.pixels, share


def _asked(outputs: Outputs) -> frozenset[str]:
    return frozenset(kind for kind, wanted in asdict(outputs).items() if wanted)


def fingerprint(path: Path) -> tuple[int, int]:
    """Return the size and modification time of a file, which do not depend on its path."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _areas(labels: Tensor) -> list[tuple[int, int]]:
    """Count the pixels of the classes that occur: (index, pixels), largest first."""
    counts = np.bincount(labels.numpy().ravel())
    return [(int(i), int(counts[i])) for i in np.argsort(-counts, kind="stable") if counts[i]]
