"""What the server keeps for each visitor: an image, a result, a folder. Nobody else sees them."""

import re
import secrets
import shutil
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from ovss_refine.app.uploads import NamedImage
from ovss_refine.segmentation import Segmentation

CAPACITY = 256
MAX_BYTES = 4_000_000_000  # of all sessions, memory and files together
MAX_IDLE_S = 6 * 3600
REMEMBERED = 4096  # pages that were closed; more than events can wait


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A segmentation and what it is for.

    Attributes:
        image: what was segmented.
        made: the segmentation, with its logits and attention.
        asked: the choice of source and, unless it is an example's own, the labels, the source of
            logits and that of attention.
        options: the mode and its hyperparameters.
    """

    image: NamedImage
    made: Segmentation
    asked: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def attention(self) -> str:
        """The name of the source of attention; "" for an example's own."""
        return self.asked[3] if len(self.asked) > 3 else ""

    @property
    def nbytes(self) -> int:
        """The memory of its large arrays."""
        made = self.made
        held = [made.labels, made.discrepancy, made.baseline]
        if made.attention is not None:
            held += made.attention.factors or (made.attention.weights,)
        if made.logits is not None:
            held.append(made.logits.values)
        return made.image.nbytes + sum(tensor.nbytes for tensor in held if tensor is not None)


@dataclass(slots=True, eq=False)
class Session:
    """The state of one open page.

    Attributes:
        folder: of its downloads, under a name that cannot be guessed.
        used: when its visitor last did something.
        image: uploaded or picked last, or None.
        last: the last result, or None; its image may have been replaced since.
        photo: the file of its image as the page shows it.
    """

    folder: Path
    used: float
    image: NamedImage | None = None
    last: Result | None = None
    photo: str = ""

    @property
    def result(self) -> Result | None:
        """The result of the present image, if there is one."""
        last = self.last
        return last if last is not None and last.image is self.image else None

    @property
    def nbytes(self) -> int:
        """What it costs: memory and files."""
        image, last = self.image, self.last
        memory = (image.pixels.nbytes if image else 0) + (last.nbytes if last else 0)
        return memory + sum(_size(path) for path in self.folder.glob("*"))

    def forget_result(self) -> None:
        """Drop the result and its files."""
        self.last = None
        for path in self.folder.glob("*"):
            path.unlink(missing_ok=True)


class Sessions:
    """The open pages, by the key that gradio gives each.

    Args:
        root: the parent of their folders, private to this user.
        capacity: how many are kept; beyond that, the one idle longest is dropped.
        max_bytes: what they may cost. Beyond that, those idle longest lose first their results,
            then their images; the one used last keeps both.
        clock: returns seconds. A session idle for `MAX_IDLE_S` is dropped.
    """

    def __init__(
        self,
        root: Path,
        capacity: int = CAPACITY,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with no session."""
        self.root = root
        self.capacity = capacity
        self.max_bytes = max_bytes
        self.clock = clock
        self._kept: OrderedDict[str, Session] = OrderedDict()  # the one idle longest first
        self._open: Counter[str] = Counter()  # connections that pages keep open
        self._left: OrderedDict[str, None] = OrderedDict()  # the last pages that were closed
        self._lock = Lock()

    def create(self, key: str) -> Session:
        """Return the session of a page that brings an image, created on first use."""
        with self._lock:
            if key not in self._kept:
                folder = self.root / secrets.token_hex(16)
                folder.mkdir(mode=0o700)
                self._kept[key] = Session(folder, self.clock())
            session = self._touch(key)
        self.tidy()
        return session

    def find(self, key: str) -> Session | None:
        """Return the session of a page; None if it has none, or it was dropped."""
        with self._lock:
            return self._touch(key) if key in self._kept else None

    def __contains__(self, key: str) -> bool:
        """Whether the page has a session."""
        return key in self._kept

    def arrived(self, key: str) -> None:
        """Note that a page is open; one that lost its connection may come back."""
        with self._lock:
            self._open[key] += 1
            self._left.pop(key, None)

    def left(self, key: str) -> None:
        """Forget a page that was closed; an event that it had started may still make a session."""
        with self._lock:
            self._open[key] -= 1
            if self._open[key] <= 0:
                del self._open[key]
                self._left[key] = None
            while len(self._left) > REMEMBERED:
                self._left.popitem(last=False)
        self.drop(key)

    def drop(self, key: str) -> None:
        """Forget a page and remove its files; unknown keys are ignored."""
        with self._lock:
            session = self._kept.pop(key, None)
        if session is not None:
            _remove(session.folder)

    def tidy(self) -> None:
        """Apply the limits, and remove folders of sessions that ended while they were written."""
        with self._lock:
            for key in self._kept.keys() & self._left.keys():
                del self._kept[key]
            expired = self.clock() - MAX_IDLE_S
            while self._kept and (
                len(self._kept) > self.capacity or self._longest_idle().used < expired
            ):
                self._kept.popitem(last=False)
            costs = {key: session.nbytes for key, session in self._kept.items()}
            idle = list(costs)[:-1]
            for key in idle:
                if sum(costs.values()) > self.max_bytes and self._kept[key].last is not None:
                    self._kept[key].forget_result()
                    costs[key] = self._kept[key].nbytes
            for key in idle:
                if sum(costs.values()) > self.max_bytes:
                    del self._kept[key], costs[key]
            kept = {session.folder for session in self._kept.values()}
            for folder in self.root.iterdir():
                if re.fullmatch("[0-9a-f]{32}", folder.name) and folder not in kept:
                    _remove(folder)

    def _touch(self, key: str) -> Session:
        self._kept.move_to_end(key)
        self._kept[key].used = self.clock()
        return self._kept[key]

    def _longest_idle(self) -> Session:
        return next(iter(self._kept.values()))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
