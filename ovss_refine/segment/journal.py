"""What a folder of segmentations was made with, which images are finished, the areas of all.

`segment.json` has the settings, `records.0.jsonl` a line for each finished image, `areas.csv` the
table for people. An image's line is written after its last file.
"""

import contextlib
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from ovss_refine.folders.files import write_whole
from ovss_refine.folders.records import iterate
from ovss_refine.folders.results import ResultsFolder
from ovss_refine.segment.inputs import ImageFile
from ovss_refine.segment.outputs import output_names
from ovss_refine.segment.request import Outputs
from ovss_refine.segmentation import Segmentation

SETTINGS, TABLE = "segment.json", "areas.csv"
COLUMNS = ("name", "labels", "index", "class", "pixels", "share")


@dataclass(frozen=True, slots=True)
class Finished:
    """An image whose files were all written.

    Attributes:
        file: size in bytes and time of change of the image.
        classes: indices of those that occur.
        outputs: what was asked for besides the label map, names of fields of `Outputs`. Other files
            that lie there are of an earlier run, maybe with other settings.
    """

    file: tuple[int, int]
    classes: tuple[int, ...]
    outputs: frozenset[str]


@dataclass(frozen=True, slots=True)
class Area:
    """How much of an image a class covers.

    Attributes:
        name: of the image.
        labels: "refined" or "baseline".
        index: of the class.
        pixels: of the class, > 0.
        share: of all pixels, in (0, 1].
    """

    name: str
    labels: str
    index: int
    pixels: int
    share: float


class Journal:
    """The finished images of a folder, open for more.

    Only names and a few numbers are held in memory, areas are read again where they are needed.

    Args:
        out: the folder; created if it is missing.
        names: of the classes.
        settings: all that the results depend on.
        overwrite: discard what was made with other settings.

    Raises:
        FileExistsError: if `out` is a file, or has other files and `overwrite` is not set.
        ValueError: if images were finished with other settings and `overwrite` is not set;
            lists the differences.
        OSError: if the folder cannot be written, or another run writes into it.
    """

    def __init__(
        self, out: Path, names: Sequence[str], settings: Mapping[str, Any], *, overwrite: bool
    ) -> None:
        """Open the folder."""
        self.out, self.names = out, names
        self._folder = ResultsFolder(out, settings, manifest=SETTINGS, overwrite=overwrite)
        self._records = self._folder.records
        try:
            self.finished: dict[str, Finished] = {}
            for record, _ in iterate(self._records.path):
                self._note(record)
        except BaseException:
            self._records.close()
            raise

    def is_finished(self, image: ImageFile, outputs: Outputs) -> bool:
        """Tell whether all files of an image are there.

        Raises:
            ValueError: if they are those of another image, or of this one before it changed.
        """
        done = self.finished.get(image.name)
        if done is None:
            return False
        # An image that is missing by now fails when it is read, which is said then.
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
        """Note that all of these outputs of an image are written.

        Raises:
            OSError: if that is impossible.
        """
        areas = {"refined": _areas(found.labels)}
        if found.baseline is not None:
            areas["baseline"] = _areas(found.baseline)
        record = {
            "name": image.name,
            "file": file,
            "size": found.labels.shape,
            "areas": areas,
            "kinds": sorted(_asked(outputs)),
        }
        self._records.append(record)
        self._note(record)

    def areas(self) -> Iterator[Area]:
        """Walk over the areas of all finished images, largest first in each."""
        last = {record["name"]: end for record, end in iterate(self._records.path)}
        for record, end in iterate(self._records.path):
            if last[record["name"]] == end:  # else it was done again
                H, W = record["size"]
                for labels, rows in record["areas"].items():
                    for index, pixels in rows:
                        yield Area(record["name"], labels, index, pixels, pixels / (H * W))

    def close(self) -> None:
        """Write the table and let others write into the folder; leave nothing of an empty run."""
        try:
            # Not `self.finished`: Ctrl-C may have come after the line and before it was noted.
            if self._folder.has_results():
                write_whole(self.out / TABLE, self._write_table)
        finally:
            self._folder.close()

    def _note(self, record: Mapping[str, Any]) -> None:
        classes = tuple(index for index, _ in record["areas"]["refined"])
        outputs = frozenset(record["kinds"])
        self.finished[record["name"]] = Finished(tuple(record["file"]), classes, outputs)

    def _write_table(self, file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for area in self.areas():
            label = self.names[area.index]
            share = f"{area.share:.6f}"
            table.writerow([area.name, area.labels, area.index, label, area.pixels, share])
        text.detach()  # flushes, and leaves the file open for whoever opened it


def _asked(outputs: Outputs) -> frozenset[str]:
    return frozenset(kind for kind, wanted in asdict(outputs).items() if wanted)


def fingerprint(path: Path) -> tuple[int, int]:
    """Return size and time of change of a file, the same for the same image in another place."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _areas(labels: Tensor) -> list[tuple[int, int]]:
    """Count the pixels of the classes that occur: (index, pixels), largest first."""
    counts = np.bincount(labels.numpy().ravel())
    return [(int(i), int(counts[i])) for i in np.argsort(-counts, kind="stable") if counts[i]]
