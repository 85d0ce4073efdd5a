"""What each visitor has on the server: a picture, a result, a folder. Nobody else sees it."""

import secrets
import shutil
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from ovss_refine.app.uploads import Upload
from ovss_refine.segmentation import Segmentation

# A result holds 8 bytes a pixel, twice, and an attention map of up to some 70 MB.
CAPACITY = 16


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What was made of a picture.

    Attributes:
        picture: of which.
        made: the segmentation.
        attention: the name of the source of its attention, "" for an example's own.
    """

    picture: Upload
    made: Segmentation
    attention: str


@dataclass(slots=True, eq=False)
class Session:
    """What one open page has.

    Attributes:
        folder: for its downloads; the name cannot be guessed.
        picture: what was uploaded or picked last, or None.
        last: what was made last, or None. It may be of a picture that was replaced meanwhile.
    """

    folder: Path
    picture: Upload | None = None
    last: Result | None = None

    @property
    def result(self) -> Result | None:
        """What was made of the picture that is there now, if anything was."""
        last = self.last
        return last if last is not None and last.picture is self.picture else None

    def forget_result(self) -> None:
        """Drop the result and its files, before another is made."""
        self.last = None
        for path in self.folder.iterdir():
            path.unlink(missing_ok=True)


class Sessions:
    """The open pages, by the key that gradio gives each.

    Args:
        root: folder that theirs are made in, readable for nobody else.
        capacity: how many are kept; the one that was idle longest goes first.
    """

    def __init__(self, root: Path, capacity: int = CAPACITY) -> None:
        """Start without any."""
        self.root = root
        self.capacity = capacity
        self._kept: OrderedDict[str, Session] = OrderedDict()
        self._lock = Lock()

    def of(self, key: str) -> Session:
        """Return the session of a page, a new one at first."""
        with self._lock:
            if key not in self._kept:
                folder = self.root / secrets.token_hex(16)
                folder.mkdir(mode=0o700)
                self._kept[key] = Session(folder)
            self._kept.move_to_end(key)
            session = self._kept[key]
            while len(self._kept) > self.capacity:
                _remove(self._kept.popitem(last=False)[1])
        return session

    def drop(self, key: str) -> None:
        """Forget a page that was closed, and remove its files."""
        with self._lock:
            session = self._kept.pop(key, None)
        if session is not None:
            _remove(session)


def _remove(session: Session) -> None:
    shutil.rmtree(session.folder, ignore_errors=True)
