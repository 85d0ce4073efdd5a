"""Which part of the page calls which method of `Handlers`, and in which queue it waits.

Gradio chooses a function's arguments by their annotations, which `Events._annotated` sets because
gradio is not imported before the page is built.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from ovss_refine.app.choices import HYPERPARAMETERS
from ovss_refine.app.downloads import DOWNLOADS
from ovss_refine.app.handlers import Changes, Handlers
from ovss_refine.app.uploads import Uploads
from ovss_refine.app.work import EXAMPLE_NAMES

# On a phone the status is above the button, off screen.
SHOW_STATUS = """(...values) => {
    const status = document.getElementById("status"), box = status.getBoundingClientRect()
    if (box.top < 0 || box.bottom > innerHeight) status.scrollIntoView()
    return values
}"""
# An empty number field is null, which no event may send.
NO_NULL = '(...values) => values.map(value => value ?? "")'
Parts = dict[str, Any]


class Events:
    """The events of a page.

    Args:
        gr: gradio.
        page: the `gradio.Blocks`.
        parts: its components by name.
        handlers: responds.
        uploads: is told which have been read.
    """

    def __init__(
        self, gr: Any, page: Any, parts: Parts, handlers: Handlers, uploads: Uploads
    ) -> None:
        """Hold what is connected; connect nothing."""
        self.gr, self.page, self.parts = gr, page, parts
        self.handlers, self.uploads = handlers, uploads
        self.refinement = [parts["mode"], *(parts[one.name] for one in HYPERPARAMETERS)]
        self.chosen = [parts[name] for name in ("source", "labels", "logits", "attention")]
        self.settings = [*self.chosen, *self.refinement]
        # What is typed may not be a number of the slider yet, for which gradio has an error.
        self.unchecked = {"trigger_mode": "always_last", "js": NO_NULL, "preprocess": False}
        # Private: the page is for people; programs have `Segmenter`.
        self.quick = {
            "outputs": list(parts.values()),
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        # These come often, at times while a tab is opened, whose parts they must not touch.
        self.marking = {**self.quick, "outputs": [parts["stale"]]}
        # One segmentation at a time, over all visitors; the status says how many wait before it.
        waiting = {"show_progress": "minimal", "show_progress_on": parts["status"]}
        self.work = {**self.quick, **waiting, "concurrency_limit": 1, "concurrency_id": "work"}

    def connect(self) -> None:
        """Connect all events, inside the page's context."""
        made = [*self._examples(), *self._runs(), self._tuning()]
        # Not with the work: the next change of a slider need not wait for the files.
        queue = {"concurrency_limit": 1, "concurrency_id": "files"}
        files = {
            **self.quick,
            "outputs": [self.parts[name] for name in ("status", "photo", *DOWNLOADS)],
        }
        check, offer = self._bound(self.handlers.check), self._bound(self.handlers.offer)
        for one in made:
            # Labels may have been edited during the work.
            one.then(check, self.settings, **self.unchecked, **self.marking)
            one.then(offer, trigger_mode="always_last", **files, **queue)
        self._choices()
        self._attention()
        self.page.unload(self._annotated(self._left))

    def _examples(self) -> Iterator[Any]:
        pick, stems = self.handlers.pick, list(EXAMPLE_NAMES)
        yield self.page.load(self._bound(pick, stems[0]), self.refinement, **self.work)
        for stem in stems:
            click = self.parts[f"example_{stem}"].click
            yield click(self._bound(pick, stem), self.refinement, **self.work)

    def _runs(self) -> Iterator[Any]:
        # The button is disabled while it works; gradio's own way loses a click that comes early.
        always = {"trigger_mode": "multiple", "js": SHOW_STATUS}
        for event in (self.parts["run"].click, self.parts["labels"].submit):
            yield event(self._bound(self.handlers.run), self.settings, **always, **self.work)

    def _tuning(self) -> Any:
        mode, *sliders = self.refinement
        # `release` is also how a slider reports its reset.
        changed = [mode.input, *(on for one in sliders for on in (one.input, one.release))]
        tune = self._bound(self.handlers.tune)
        return self.gr.on(changed, tune, self.settings, **self.unchecked, **self.work)

    def _choices(self) -> None:
        parts, quick, models = self.parts, self.quick, self.chosen[2:]
        describe = self._bound(self.handlers.describe)
        self.page.load(describe, models, **quick)
        # As gradio preprocesses a file, it leaves an empty one behind.
        parts["drop"].upload(self._bound(self._dropped), parts["drop"], preprocess=False, **quick)
        parts["source"].input(self._bound(self.handlers.choose), parts["source"], **quick)
        parts["mode"].input(self._bound(self.handlers.choose_mode), parts["mode"], **quick)
        for model in models:
            model.input(describe, models, **quick)
        # A textbox reports only what is typed as input, not what is pasted.
        changed = [parts["labels"].change, parts["source"].input, *(one.input for one in models)]
        check = self._bound(self.handlers.check)
        self.gr.on(changed, check, self.settings, **self.unchecked, **self.marking)

    def _attention(self) -> None:
        place = [self.parts["column"], self.parts["row"]]
        for slider in place:
            step = self._bound(self.handlers.step)
            slider.input(step, place, trigger_mode="always_last", **self.quick)
        self.parts["photo"].select(self._annotated(self._clicked), **self.quick)

    def _clicked(self, request: Any, event: Any) -> Any:
        return self._updates(self.handlers.look(request.session_hash, *event.index))

    def _dropped(self, key: str, file: dict[str, Any] | None) -> Changes:
        if file is None:
            return {}
        try:
            return self.handlers.drop(key, file["path"])
        finally:
            self.uploads.was_read(file["path"])

    def _left(self, request: Any) -> None:
        self.handlers.sessions.left(request.session_hash)

    def _bound(self, method: Callable[..., Any], *first: Any) -> Callable[..., Any]:
        """Wrap a method for gradio, which passes the request and expects updates."""

        def stream(request: Any, *values: Any) -> Iterator[Any]:
            for changes in method(request.session_hash, *first, *values):
                yield self._updates(changes)

        def answer(request: Any, *values: Any) -> Any:
            return self._updates(method(request.session_hash, *first, *values))

        return self._annotated(stream if inspect.isgeneratorfunction(method) else answer)

    def _annotated(self, function: Callable[..., Any]) -> Callable[..., Any]:
        plain = getattr(function, "__func__", function)
        plain.__annotations__ |= {"request": self.gr.Request, "event": self.gr.SelectData}
        return function

    def _updates(self, changes: Changes) -> Any:
        """Turn changes by name into gradio's updates by part."""
        if not changes:
            return self.gr.skip()
        return {
            self.parts[name]: self.gr.update(**change) if isinstance(change, dict) else change
            for name, change in changes.items()
        }
