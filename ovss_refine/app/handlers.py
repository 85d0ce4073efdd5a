"""Responses to what people do on the page, without gradio.

Every method takes the key of the visitor's session first and returns what changes on the page: for
each part by its name (see `page`), its new HTML, or a dictionary of properties.
"""

import secrets
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ovss_refine.app import views
from ovss_refine.app.choices import HYPERPARAMETERS, describe_choice, options_of, out_of_range
from ovss_refine.app.downloads import DOWNLOADS, write_downloads
from ovss_refine.app.messages import BUG, EXPECTED, explain
from ovss_refine.app.session import Result, Session, Sessions
from ovss_refine.app.uploads import read_upload
from ovss_refine.app.work import Example, Worker, pick_example, staged
from ovss_refine.method.modes import MODES
from ovss_refine.segmentation import Segmentation
from ovss_refine.sources.stages import OnStage

OWN, MODELS = "own", "models"

Changes = dict[str, str | dict[str, Any]]
# The server was restarted, or the session was idle for long or made room for others.
EXPIRED_TEXT = "This session has expired; choose an image again."
EXPIRED: Changes = {"status": views.error(EXPIRED_TEXT)}
NO_RESULT: Changes = {"patch": views.notice("Attention comes with the result: press `Segment`.")}
ANOTHER = "Drop another image, or a smaller copy of this one."
STALE = "Out of date: this result is for other labels or models. Press `Segment`."
NO_FILES: Changes = {name: {"value": None, "interactive": False} for name in DOWNLOADS}
READY: Changes = {"run": {"interactive": True}}
Work = Callable[[OnStage], Segmentation]
# Makes what the session keeps of a segmentation.
Keep = Callable[[Segmentation], Result]


class Handlers:
    """Responds to events.

    Args:
        worker: does the work.
        sessions: the visitors' state.
        max_bytes: the largest upload, in bytes.
    """

    def __init__(self, worker: Worker, sessions: Sessions, max_bytes: int) -> None:
        """Hold what is shared."""
        self.worker = worker
        self.sessions = sessions
        self.max_bytes = max_bytes

    def pick(self, key: str, stem: str, mode: str, *values: float) -> Iterator[Changes]:
        """Show a built-in image with its result."""
        session = self.sessions.create(key)
        session.forget_result()
        session.image = example = pick_example(stem)
        yield {"source": {"value": OWN, "visible": True}, **self.choose(key, OWN)}
        yield from self._run_example(session, example, mode, values)

    def drop(self, key: str, path: str | None) -> Changes:
        """Take an uploaded image."""
        if path is None:
            return {}
        try:
            max_pixels = self.worker.segmenter.max_pixels
            image = read_upload(Path(path), max_bytes=self.max_bytes, max_pixels=max_pixels)
        except EXPECTED as err:
            # Emptied, so that the next file can be dropped at once.
            text, detail = explain(err)
            return {"drop": {"value": None}, "status": views.error(f"{text} {ANOTHER}", detail)}
        session = self.sessions.create(key)
        session.image = image
        session.forget_result()
        return {
            "drop": {"value": None},
            "source": {"value": MODELS, "visible": False},
            **self.choose(key, MODELS),
            "result": views.upload(image.pixels, image.name),
            "status": views.loaded(image),
            "stale": "",
            "maps": views.notice("Maps come with the result."),
            "patch": views.notice("Attention comes with the result."),
            "photo": {"value": None, "visible": False},
            "column": {"visible": False},
            "row": {"visible": False},
            **NO_FILES,
        }

    def choose(self, key: str, source: str) -> Changes:
        """Show the fields that a choice of source needs."""
        session, models = self.sessions.find(key), source == MODELS
        image = session.image if session else None
        names = image.own_logits.names if isinstance(image, Example) else ()
        text = f"Its logits are for {len(names)} classes: {', '.join(names)}."
        return {
            "labels": {"visible": models},
            "sources": {"visible": models},
            "fixed": {"visible": not models, "value": views.facts([text])},
        }

    def describe(self, key: str, logits: str, attention: str) -> Changes:
        """Describe what two sources load."""
        lines = [describe_choice("logits", logits), describe_choice("attention", attention)]
        return {"about": views.facts([views.sizes(self.worker.to_load(logits, attention)), *lines])}

    def choose_mode(self, key: str, mode: str) -> Changes:
        """Describe a mode, and show the hyperparameters that it reads."""
        shown = {one.name: {"visible": mode in one.modes} for one in HYPERPARAMETERS}
        return {"mode": {"info": MODES[mode].summary}, **shown}

    def run(
        self,
        key: str,
        source: str,
        labels: str,
        logits: str,
        attention: str,
        mode: str,
        *values: float,
    ) -> Iterator[Changes]:
        """Segment the session's image."""
        session = self.sessions.find(key)
        image = session.image if session else None
        if session is None or image is None:
            yield EXPIRED
        elif source == OWN and isinstance(image, Example):
            yield from self._run_example(session, image, mode, values)
        else:
            last = session.result
            known = last.made.attention if last and last.attention == attention else None

            options = options_of(mode, values)

            def work(on_stage: OnStage) -> Segmentation:
                return self.worker.segment(
                    image, labels, logits, attention, options, on_stage, known
                )

            asked = MODELS, labels, logits, attention
            to_load = self.worker.to_load(logits, attention)
            yield from _run(
                session, work, partial(Result, image, asked=asked, options=options), to_load
            )
            self.sessions.tidy()
            yield READY | self.describe(key, logits, attention)

    def tune(self, key: str, *settings: Any) -> Iterator[Changes]:
        """Refine the present result again after a change of the mode or of a hyperparameter.

        `settings` are those of `run`, as the page sends them, checked by nobody.
        """
        session = self.sessions.find(key)
        last = session.result if session else None
        mode, *values = settings[4:]
        if session is None:
            yield {"stale": views.stale(EXPIRED_TEXT)}
        elif last is None:
            yield {"stale": views.stale("Press `Segment` for a result with these settings.")}
        elif not out_of_range(mode, values) and (o := options_of(mode, values)) != last.options:
            yield NO_FILES | {"status": views.working("refinement", {})}
            work = partial(self.worker.refine_again, last.made, o)
            keep = partial(Result, last.image, asked=last.asked, options=o)
            yield from _run(session, lambda _: work(), keep)
            yield READY | self.check(key, *settings)
        else:
            yield self.check(key, *settings)

    def check(self, key: str, *settings: Any) -> Changes:
        """Mark the result if it is not what the present settings, as of `tune`, ask for.

        Other numbers are no reason: `tune` is under way.
        """
        source, labels, logits, attention, mode, *values = settings
        session = self.sessions.find(key)
        last = session.result if session else None
        if last is None:
            return {}
        models = source != OWN or not isinstance(last.image, Example)
        asked = (MODELS, labels, logits, attention) if models else (OWN,)
        problem = out_of_range(mode, values) or (STALE if asked != last.asked else "")
        return {"stale": views.stale(problem) if problem else ""}

    def offer(self, key: str) -> Changes:
        """Write the files of the present result and offer them."""
        session = self.sessions.find(key)
        if session is None or (last := session.result) is None:
            return {}
        try:
            paths = write_downloads(last.made, last.image.name, session.folder)
        except OSError as err:
            changes: Changes = {"status": views.error(*explain(err))}
        else:
            changes = {n: {"value": str(path), "interactive": True} for n, path in paths.items()}
        # Once more: a tab that is opened while the result arrives may miss it.
        changes["photo"] = {"value": session.photo}
        # Of a replaced result nothing is offered; nor is it an error that its folder was emptied.
        return changes if session.result is last else {}

    def look(self, key: str, x: int, y: int) -> Changes:
        """Show the attention of the patch at a pixel of the image at its displayed size."""
        session = self.sessions.find(key)
        if session is None or (last := session.result) is None:
            return NO_RESULT if session else EXPIRED
        h, w = views.shown_size(*last.made.image.shape[:2])
        gh, gw = last.made.discrepancy.shape[1:]
        return _attention(last.made, 1 + x * gw // w, 1 + y * gh // h)

    def step(self, key: str, column: int, row: int) -> Changes:
        """Show the attention of a patch, counted from one."""
        session = self.sessions.find(key)
        if session is None or (last := session.result) is None:
            return NO_RESULT if session else EXPIRED
        return _attention(last.made, int(column), int(row))

    def _run_example(
        self, session: Session, example: Example, mode: str, values: tuple[float, ...]
    ) -> Iterator[Changes]:
        options = options_of(mode, values)
        work = partial(self.worker.refine_example, example, options)
        keep = partial(Result, example, asked=(OWN,), options=options)
        yield from _run(session, lambda _: work(), keep)
        self.sessions.tidy()
        yield READY


def _run(
    session: Session, work: Work, keep: Keep, to_load: dict[str, str] | None = None
) -> Iterator[Changes]:
    """Disable the button and do the work, for as long as the image is not replaced.

    The caller yields `READY` at the end, with what else there is: of two changes at once, the page
    may lose the first.
    """
    image = session.image
    yield {"run": {"interactive": False}}
    for changes in _progress(session, work, keep, to_load or {}):
        if session.image is not image:
            break  # the page shows another image
        yield changes


def _progress(
    session: Session, work: Work, keep: Keep, to_load: dict[str, str]
) -> Iterator[Changes]:
    """Report each stage, then the result or the error."""
    try:
        for what in staged(work):
            if isinstance(what, str):
                yield {"status": views.working(what, to_load)}
            else:
                yield _finish(session, keep(what))
    except EXPECTED as err:
        yield {"status": views.error(*explain(err))}
    except Exception:
        traceback.print_exc()
        yield {"status": views.error(BUG)}


def _finish(session: Session, result: Result) -> Changes:
    """Show a result. Its files, which take longer to write, are offered later."""
    if session.image is not result.image:
        return {}
    last, made = session.result, result.made
    changes: Changes = {
        "status": views.summary(made, result.image.name),
        "stale": "",
        "result": views.result(made),
        "maps": views.maps(made),
        **NO_FILES,
    }
    if last is None or last.attention != result.attention:
        session.forget_result()
        photo = session.folder / f"{secrets.token_hex(8)}.jpg"
        photo.write_bytes(views.jpeg(made.image))
        gh, gw = made.discrepancy.shape[1:]
        session.photo = str(photo)
        changes["photo"] = {"value": session.photo, "visible": True}
        changes |= _attention(made, gw // 2 + 1, gh // 2 + 1)
    session.last = result
    return changes


def _attention(made: Segmentation, column: int, row: int) -> Changes:
    """Draw the attention of a patch, counted from one: at the pixel in its middle."""
    H, W = made.image.shape[:2]
    gh, gw = made.discrepancy.shape[1:]
    # A click on the edge may be rounded up.
    column, row = min(max(column, 1), gw), min(max(row, 1), gh)
    drawn = made.attention_overlay((2 * column - 1) * W // (2 * gw), (2 * row - 1) * H // (2 * gh))
    return {
        "patch": views.attention(drawn, column, row),
        "column": {"value": column, "maximum": gw, "visible": True},
        "row": {"value": row, "maximum": gh, "visible": True},
    }
