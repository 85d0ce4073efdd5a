"""What happens when people do something on the page; knows nothing of gradio.

Every method takes the key of the visitor's session first and returns what changes on the page: the
names of its parts (see `page`) with a value, or with `Props` where more than the value changes.
"""

import secrets
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ovss_refine.app import views
from ovss_refine.app.choices import NUMBERS, describe_choice, options_of
from ovss_refine.app.downloads import ENDINGS, write_downloads
from ovss_refine.app.session import Result, Session, Sessions
from ovss_refine.app.uploads import read_upload
from ovss_refine.app.work import Example, OnStage, Worker, pick_example, staged
from ovss_refine.method.modes import MODES
from ovss_refine.segmentation import Segmentation

OWN, MODELS = "own", "models"
# What a visitor can cause, or a missing network or library; anything else is a fault of ours.
EXPECTED = (
    OSError,
    TypeError,
    ValueError,
    ModuleNotFoundError,
    MemoryError,
    torch.OutOfMemoryError,
)
FIRST = "astronaut"


class Props(dict[str, Any]):
    """Properties of a part of the page that change, "value" among them or not."""


Changes = dict[str, Any]


class Handlers:
    """Answers what people do.

    Args:
        worker: does the work.
        sessions: what each visitor has.
        max_bytes: most bytes of an upload.
        max_pixels: most pixels of a picture.
    """

    def __init__(
        self, worker: Worker, sessions: Sessions, *, max_bytes: int, max_pixels: int
    ) -> None:
        """Hold what is shared."""
        self.worker = worker
        self.sessions = sessions
        self.limits = {"max_bytes": max_bytes, "max_pixels": max_pixels}

    def pick(self, key: str, stem: str, mode: str, *numbers: float) -> Iterator[Changes]:
        """Show a built-in photograph with its result."""
        session = self.sessions.of(key)
        session.forget_result()
        session.picture = example = pick_example(stem)
        yield {"source": Props(value=OWN, visible=True), **self.choose(key, OWN)}
        yield from self._run(session, lambda _: self._example(example, mode, numbers))

    def drop(self, key: str, path: str | None) -> Changes:
        """Take an uploaded photograph."""
        session = self.sessions.of(key)
        if path is None:
            return {}
        try:
            picture = read_upload(Path(path), **self.limits)
        except EXPECTED as err:
            # Emptied, so that the next file can be dropped at once.
            return {"drop": Props(value=None), "status": views.error(str(err))}
        session.picture = picture
        session.forget_result()
        return {
            "drop": Props(value=None),
            "source": Props(value=MODELS, visible=False),
            **self.choose(key, MODELS),
            **_empty(),
            "result": views.photograph(picture.pixels, picture.name),
            "status": views.notice(
                f"`{picture.name}`, {picture.pixels.shape[1]} x {picture.pixels.shape[0]} pixels, "
                "is here. It stays on the machine that serves this page."
            ),
        }

    def choose(self, key: str, source: str) -> Changes:
        """Show the fields that a choice of source needs."""
        picture, models = self.sessions.of(key).picture, source == MODELS
        names = picture.names if isinstance(picture, Example) else ()
        text = views.facts([f"Its scores are for {len(names)} labels: {', '.join(names)}."])
        return {
            "labels": Props(visible=models),
            "sources": Props(visible=models),
            "fixed": Props(visible=not models, value=text),
        }

    def describe(self, key: str, logits: str, attention: str) -> Changes:
        """Say what two sources load."""
        lines = [describe_choice("logits", logits), describe_choice("attention", attention)]
        return {"about": views.facts([views.sizes(self.worker.to_load(logits, attention)), *lines])}

    def numbers(self, key: str, mode: str) -> Changes:
        """Say what a mode does, and show the numbers that it uses."""
        shown = {number.name: Props(visible=mode in number.modes) for number in NUMBERS}
        return {"mode": Props(info=MODES[mode].summary), **shown}

    def run(
        self,
        key: str,
        source: str,
        labels: str,
        logits: str,
        attention: str,
        mode: str,
        *numbers: float,
    ) -> Iterator[Changes]:
        """Segment the picture of the session."""
        session = self.sessions.of(key)
        picture = session.picture
        if picture is None:
            # The server was started anew, or the session made room for others.
            yield {"status": views.error("This page was left for long; pick a picture again.")}
        elif source == OWN and isinstance(picture, Example):
            yield from self._run(session, lambda _: self._example(picture, mode, numbers))
        else:
            last, known = session.result, None
            if last is not None and last.attention == attention:
                known = last.made.attention

            def work(on_stage: OnStage) -> Segmentation:
                options = _options(mode, numbers)
                sources = (labels, logits, attention)
                return self.worker.segment(picture, *sources, options, on_stage, known)

            yield from self._run(session, work, attention, self.worker.to_load(logits, attention))
            yield self.describe(key, logits, attention)

    def look(self, key: str, x: int, y: int) -> Changes:
        """Show the attention of the patch at a place of the photograph as it is shown."""
        last = self.sessions.of(key).result
        if last is None:
            return {}
        made = last.made
        H, W = made.image.shape[:2]
        h, w = views.shown_size(H, W)
        gh, gw = made.discrepancy.shape[1:]
        return self.step(key, 1 + min(x * gw // w, gw - 1), 1 + min(y * gh // h, gh - 1))

    def step(self, key: str, column: int, row: int) -> Changes:
        """Show the attention of a patch, counted from one."""
        last = self.sessions.of(key).result
        if last is None:
            return {}
        return _attention(last.made, int(column), int(row))

    def close(self, key: str) -> None:
        """Forget a visitor who has left."""
        self.sessions.drop(key)

    def _example(self, example: Example, mode: str, numbers: tuple[float, ...]) -> Segmentation:
        return self.worker.refine_example(example, _options(mode, numbers))

    def _run(
        self,
        session: Session,
        work: Callable[[OnStage], Segmentation],
        attention: str = "",
        to_load: Mapping[str, str] = MappingProxyType({}),
    ) -> Iterator[Changes]:
        """Do the work, as long as its picture is there; the button rests meanwhile."""
        picture = session.picture
        yield {"run": Props(interactive=False)}
        for changes in _done(session, work, attention, to_load):
            if session.picture is not picture:
                break  # another came meanwhile, and the page shows that
            yield changes
        yield {"run": Props(interactive=True)}


def _done(
    session: Session,
    work: Callable[[OnStage], Segmentation],
    attention: str,
    to_load: Mapping[str, str],
) -> Iterator[Changes]:
    """Say what is being done; show what came out, or what went wrong."""
    picture = session.picture
    assert picture is not None  # noqa: S101 - or there was nothing to do
    try:
        for what in staged(work):
            if isinstance(what, str):
                yield {"status": views.working(what, to_load)}
            else:
                yield from _finish(session, Result(picture, what, attention))
    except EXPECTED as err:
        yield {"status": views.error(str(err) or type(err).__name__)}
    except Exception:
        traceback.print_exc()
        yield {"status": views.error("This failed; the terminal of the server says why.")}


def _finish(session: Session, result: Result) -> Iterator[Changes]:
    """Show a result, then offer its files, which take longer to write than it to show."""
    if session.picture is not result.picture:
        return
    session.forget_result()
    session.last, made = result, result.made
    photo = session.folder / f"{secrets.token_hex(8)}.jpg"
    photo.write_bytes(views.jpeg(made.image))
    gh, gw = made.discrepancy.shape[1:]
    yield {
        "status": views.summary(made, result.picture.name),
        "result": views.result(made),
        "maps": views.maps(made),
        "photo": Props(value=str(photo), visible=True),
        **_attention(made, gw // 2 + 1, gh // 2 + 1),
    }
    paths = write_downloads(made, result.picture.name, session.folder)
    yield {f"file_{k}": Props(value=str(path), interactive=True) for k, path in paths.items()}


def _attention(made: Segmentation, column: int, row: int) -> Changes:
    """Draw the attention of a patch: at the pixel in its middle."""
    H, W = made.image.shape[:2]
    gh, gw = made.discrepancy.shape[1:]
    x, y = (2 * column - 1) * W // (2 * gw), (2 * row - 1) * H // (2 * gh)
    drawn = made.attention_overlay(min(x, W - 1), min(y, H - 1))
    return {
        "patch": views.attention(drawn, column, row),
        "column": Props(value=column, maximum=gw, visible=True),
        "row": Props(value=row, maximum=gh, visible=True),
    }


def _empty() -> Changes:
    """Take away what belongs to another picture."""
    return {
        "maps": views.notice("Maps come with the result."),
        "patch": views.notice("Attention comes with the result."),
        "photo": Props(value=None, visible=False),
        "column": Props(visible=False),
        "row": Props(visible=False),
        **{f"file_{key}": Props(value=None, interactive=False) for key in ENDINGS},
    }


def _options(mode: str, numbers: tuple[float, ...]) -> dict[str, Any]:
    names = [number.name for number in NUMBERS]
    return options_of(mode, dict(zip(names, numbers, strict=True)))
