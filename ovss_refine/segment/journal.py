"""What a folder of segmentations was made with, which pictures are finished, the areas of all.

`segment.json` has the settings, `records.0.jsonl` a line for each finished picture, `areas.csv` the
table for people. A picture's line is written after its last file.
"""

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from ovss_refine.folders import manifest
from ovss_refine.folders.files import write_whole
from ovss_refine.folders.records import Records, iterate
from ovss_refine.segment.inputs import ImageFile
from ovss_refine.segment.outputs import output_names
from ovss_refine.segment.request import Outputs
from ovss_refine.segmentation import Segmentation

SETTINGS, TABLE = "segment.json", "areas.csv"
COLUMNS = ("name", "labels", "index", "class", "pixels", "share")


@dataclass(frozen=True, slots=True)
class Finished:
    """A picture whose files were all written.

    Attributes:
        file: size in bytes and time of change of the picture.
        classes: indices of those that occur.
        kinds: what was asked for beside the label map, names of fields of `Outputs`. Other files
            that lie there are of an earlier run, maybe with other settings.
    """

    file: tuple[int, int]
    classes: tuple[int, ...]
    kinds: frozenset[str]


@dataclass(frozen=True, slots=True)
class Area:
    """How much of a picture a class covers.

    Attributes:
        name: of the picture.
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
    """The finished pictures of a folder, open for more.

    Only names and a few numbers are held in memory, areas are read again where they are needed.

    Args:
        out: the folder; made if it is missing.
        names: of the classes.
        settings: all that the results depend on.
        overwrite: forget what was made with other settings.

    Raises:
        FileExistsError: if `out` is a file, or has other files and `overwrite` is not set.
        ValueError: if pictures were finished with other settings and `overwrite` is not set;
            says which differ.
        OSError: if the folder cannot be written, or another run writes into it.
    """

    def __init__(
        self, out: Path, names: Sequence[str], settings: Mapping[str, Any], *, overwrite: bool
    ) -> None:
        """Open the folder."""
        _check_folder(out, overwrite=overwrite)
        self.out, self.names, self._is_new = out, names, not out.exists()
        self._records = _open(out)
        try:
            self._settle(manifest.plain(settings), overwrite=overwrite)
            self.finished: dict[str, Finished] = {}
            for record, _ in iterate(self._records.path):
                self._note(record)
        except BaseException:
            self._records.close()
            raise

    def is_finished(self, picture: ImageFile, kinds: Outputs) -> bool:
        """Tell whether all files of a picture are there.

        Raises:
            ValueError: if they are those of another picture, or of this one before it changed.
        """
        done = self.finished.get(picture.name)
        if done is None:
            return False
        # A picture that is missing by now fails when it is read, which is said then.
        with contextlib.suppress(FileNotFoundError):
            if fingerprint(picture.path) != done.file:
                raise ValueError(
                    f"`--out` must not have results of another picture of the same name; those of "
                    f"{picture.name!r} in `{self.out}` are not of `{picture.path}` as it is now. "
                    "Take another folder, or pass --overwrite."
                )
        present = [(index, self.names[index]) for index in done.classes]
        names = output_names(picture.name, kinds, present)
        return _asked(kinds) <= done.kinds and all((self.out / x).is_file() for x in names)

    def add(
        self, picture: ImageFile, file: tuple[int, int], found: Segmentation, kinds: Outputs
    ) -> None:
        """Note that all files of these kinds are written of a picture.

        Raises:
            OSError: if that is impossible.
        """
        areas = {"refined": _areas(found.labels)}
        if found.baseline is not None:
            areas["baseline"] = _areas(found.baseline)
        record = {
            "name": picture.name,
            "file": file,
            "size": found.labels.shape,
            "areas": areas,
            "kinds": sorted(_asked(kinds)),
        }
        self._records.append(record)
        self._note(record)

    def areas(self) -> Iterator[Area]:
        """Walk over the areas of all finished pictures, largest first in each."""
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
            if self._records.path.stat().st_size:
                write_whole(self.out / TABLE, self._write_table)
            elif {path.name for path in self.out.iterdir()} <= {SETTINGS, self._records.path.name}:
                self._records.path.unlink()
                (self.out / SETTINGS).unlink(missing_ok=True)
        finally:
            self._records.close()
        if self._is_new:
            with contextlib.suppress(OSError):  # it has results
                self.out.rmdir()

    def _note(self, record: Mapping[str, Any]) -> None:
        classes = tuple(index for index, _ in record["areas"]["refined"])
        kinds = frozenset(record["kinds"])
        self.finished[record["name"]] = Finished(tuple(record["file"]), classes, kinds)

    def _settle(self, settings: dict[str, Any], *, overwrite: bool) -> None:
        """See that the finished pictures have these settings; else forget them, or raise."""
        path = self.out / SETTINGS
        if self._records.path.stat().st_size:
            before = _read_settings(path)
            if before != settings and not overwrite:
                _refuse(self.out, before, settings)
            if before != settings:
                self._records.close()
                self._records.path.unlink()
                self._records = _open(self.out)
        content = {"settings": settings, "started": manifest.environment()}
        text = json.dumps(content, indent=1) + "\n"
        write_whole(path, lambda file: file.write(text.encode()))

    def _write_table(self, file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for area in self.areas():
            label = self.names[area.index]
            share = f"{area.share:.6f}"
            table.writerow([area.name, area.labels, area.index, label, area.pixels, share])
        text.detach()  # flushes, and leaves the file open for whoever opened it


def _asked(kinds: Outputs) -> frozenset[str]:
    return frozenset(kind for kind, wanted in asdict(kinds).items() if wanted)


def fingerprint(path: Path) -> tuple[int, int]:
    """Return size and time of change of a file, the same for the same picture in another place."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _areas(labels: Tensor) -> list[tuple[int, int]]:
    """Count the pixels of the classes that occur: (index, pixels), largest first."""
    counts = np.bincount(labels.numpy().ravel())
    return [(int(i), int(counts[i])) for i in np.argsort(-counts, kind="stable") if counts[i]]


def _open(out: Path) -> Records:
    try:
        out.mkdir(parents=True, exist_ok=True)
        return Records(out)
    except BlockingIOError:
        raise  # another run has it
    except OSError as err:
        raise OSError(f"`--out` must be a folder that can be written; got {err}.") from err


def _check_folder(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"`--out` must be a folder; `{out}` is a file.")
    if overwrite or not out.exists() or (out / SETTINGS).is_file():
        return
    if others := sorted(path.name for path in out.iterdir() if not path.name.startswith(".")):
        raise FileExistsError(
            f"`--out` must be a new or empty folder, or one that `segment` made; `{out}` has "
            f"{others[0]!r}. Take another, or pass --overwrite to write among its files."
        )


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _refuse(out: Path, before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    if before is None:
        raise ValueError(
            f"`--out` must be a folder that `segment` made; `{out}` has lost its `{SETTINGS}`. "
            "Take another folder, or pass --overwrite."
        )
    try:
        manifest.compare(out, before, now)
    except ValueError as err:
        raise ValueError(f"{str(err).removesuffix('.')}, or pass --overwrite.") from None
