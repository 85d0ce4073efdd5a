"""What the server keeps for each visitor: an image, a result, a folder. Nobody else sees them."""

import secrets
import shutil
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from ovss_refine.app.uploads import NamedImage
from ovss_refine.segmentation import Segmentation

# A result holds 16 bytes per pixel, and an attention map of up to some 70 MB.
CAPACITY = 16


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A segmentation, its image, and the name of its attention source; "" for an example's own."""

    image: NamedImage
    made: Segmentation
    attention: str


@dataclass(slots=True, eq=False)
class Session:
    """The state of one open page.

    Attributes:
        folder: of its downloads, under a name that cannot be guessed.
        image: uploaded or picked last, or None.
        last: the last result, or None; its image may have been replaced since.
    """

    folder: Path
    image: NamedImage | None = None
    last: Result | None = None

    @property
    def result(self) -> Result | None:
        """The result of the present image, if there is one."""
        last = self.last
        return last if last is not None and last.image is self.image else None

    def forget_result(self) -> None:
        """Drop the result and its files."""
        self.last = None
        for path in self.folder.iterdir():
            path.unlink(missing_ok=True)


class Sessions:
    """The open pages, by the key that gradio gives each.

    Args:
        root: the parent of their folders, private to this user.
        capacity: how many are kept; beyond that, the one idle longest is dropped.
    """

    def __init__(self, root: Path, capacity: int = CAPACITY) -> None:
        """Start with no session."""
        self.root = root
        self.capacity = capacity
        self._kept: OrderedDict[str, Session] = OrderedDict()
        self._lock = Lock()

    def of(self, key: str) -> Session:
        """Return the session of a page, created on first use."""
        with self._lock:
            if key not in self._kept:
                folder = self.root / secrets.token_hex(16)
                folder.mkdir(mode=0o700)
                self._kept[key] = Session(folder)
            self._kept.move_to_end(key)
            if len(self._kept) > self.capacity:
                _remove(self._kept.popitem(last=False)[1])
            return self._kept[key]

    def drop(self, key: str) -> None:
        """Forget a page and remove its files; unknown keys are ignored."""
        with self._lock:
            session = self._kept.pop(key, None)
        if session is not None:
            _remove(session)


def _remove(session: Session) -> None:
    shutil.rmtree(session.folder, ignore_errors=True)
