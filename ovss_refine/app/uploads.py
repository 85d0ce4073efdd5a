"""Uploaded images: where they lie and for how long, and reading one, limits first."""

import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from threading import Lock

import numpy as np
from PIL import Image

from ovss_refine.images import MAX_PIXELS
from ovss_refine.images.read import RGB, read_image

# All uploads may take this many times the largest one; one that nobody read is removed.
UPLOADS = 16
MAX_AGE_S = 600
# A large image takes some 0.5 GB while it is decoded: one at a time.
_READING = Lock()


@dataclass(frozen=True, slots=True, eq=False)
class NamedImage:
    """An image to segment.

    Attributes:
        name: the file's name without folder and suffix.
        pixels: [H, W, 3] uint8.
        full_size: (W, H) of the file if that was larger, else None.
    """

    name: str
    pixels: RGB
    full_size: tuple[int, int] | None = field(default=None, kw_only=True)


class Uploads:
    """The uploads in gradio's folder, which are removed as soon as they have been read.

    Gradio writes `root`/tmp..., then renames it to `root`/SHA-256/NAME. Two visitors who upload the
    same file share it, so the readers that are still to come are counted.

    Args:
        root: gradio's temporary folder, an absolute path.
        max_bytes: the largest upload.
        clock: returns seconds, as the files' times do.
    """

    def __init__(self, root: Path, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        """Start with none."""
        self.root = root
        self.max_bytes = max_bytes
        self.clock = clock
        self._arriving: list[int] = []
        self._unread: Counter[Path] = Counter()
        self._lock = Lock()

    def admit(self, length: int) -> bool:
        """Make room for an upload of `length` bytes, the oldest go; False if too many arrive."""
        with self._lock:
            room = UPLOADS * self.max_bytes - sum(self._arriving) - length
            if room < 0:
                return False
            self._shrink(room)
            self._arriving.append(length)
            return True

    def expect(self, paths: Iterable[str]) -> None:
        """Note files that have arrived, each with one reader to come."""
        with self._lock:
            self._unread.update(map(Path, paths))

    def ended(self, length: int) -> None:
        """Note that an admitted upload has ended, well or not."""
        with self._lock:
            self._arriving.remove(length)
            self._remove_read()

    def was_read(self, path: str) -> None:
        """Remove an upload, unless another visitor's is the same file."""
        with self._lock:
            self._unread[Path(path)] = max(0, self._unread[Path(path)] - 1)
            self._remove_read()

    def tidy(self) -> None:
        """Remove what nobody read in time, and partial files."""
        with self._lock:
            self._shrink(UPLOADS * self.max_bytes)
            self._unread = Counter({p: n for p, n in self._unread.items() if p.exists()})

    def holds(self, path: object) -> bool:
        """Whether `path` is that of a complete upload."""
        if not isinstance(path, str) or "\0" in path:
            return False
        file = Path(path)
        inside = file.parent.parent == self.root and _is_hash(file.parent.name)
        return inside and file.is_file() and not file.is_symlink()

    def _shrink(self, room: int) -> None:
        """Remove the oldest uploads until the others are young and take `room` bytes at most."""
        found = [path for path in self.root.iterdir() if _is_hash(path.name)]
        found += self.root.glob("tmp*")  # those still being written changed last
        files = sorted((_facts(path), path) for path in found)
        total = sum(size for (_, size), _ in files)
        for (changed, size), path in files:
            if total > room or changed < self.clock() - MAX_AGE_S:
                _remove(path)
                total -= size

    def _remove_read(self) -> None:
        if self._arriving:
            return  # one of them may be a file that seems to have no reader left
        for path in [path for path, readers in self._unread.items() if readers <= 0]:
            del self._unread[path]
            if self.holds(str(path)):
                _remove(path.parent)


def read_upload(path: Path, *, max_bytes: int, max_pixels: int | None) -> NamedImage:
    """Read an uploaded file; nothing is decoded until its size is known to be allowed.

    Args:
        path: the file, with the name it had on the visitor's machine.
        max_bytes: the largest file accepted.
        max_pixels: larger images are reduced to so many pixels. Those of more than `MAX_PIXELS`
            too are refused, by the file's header. None: as `read_image`.

    Raises:
        ValueError: if it is too large or not a readable image; the message names the file but not
            its folder on the server.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise ValueError(
                f"`{path}` must have at most {max_bytes:,} bytes; got {size:,}. --max-bytes raises "
                "the limit."
            )
        with _READING:
            most = None if max_pixels is None else max(max_pixels, MAX_PIXELS)
            return _reduced(path.stem, read_image(path, max_pixels=most), max_pixels)
    except FileNotFoundError:
        raise ValueError(f"`{path.name}` is gone from the server; drop it again.") from None
    except ValueError as err:
        raise ValueError(str(err).replace(str(path), path.name)) from err


def _reduced(name: str, pixels: RGB, max_pixels: int | None) -> NamedImage:
    """Reduce an image to at most `max_pixels`, with its aspect ratio."""
    H, W = pixels.shape[:2]
    if max_pixels is None or max_pixels >= W * H:
        return NamedImage(name, pixels)
    w = max(1, min(int((max_pixels * W / H) ** 0.5), max_pixels))
    h = max(1, min(round(w * H / W), max_pixels // w))
    small = Image.fromarray(pixels).resize((w, h), Image.Resampling.BOX)
    return NamedImage(name, np.asarray(small), full_size=(W, H))


def _is_hash(name: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", name) is not None


def _facts(path: Path) -> tuple[float, int]:
    """Return when an upload, a file or a folder, changed last, and the bytes of its files."""
    try:
        facts = [file.stat() for file in (path, *path.glob("*"))]
    except FileNotFoundError:
        return time.time(), 0  # renamed since it was listed
    size = sum(fact.st_size for fact in facts if S_ISREG(fact.st_mode))
    return max(fact.st_mtime for fact in facts), size


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
