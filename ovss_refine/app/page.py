"""How the page is laid out, and which part of it calls which method of `Handlers`.

Gradio 6. It is imported by the functions, so that all else works without it. It hands a function
what the annotations of its arguments ask for, which have to be set by hand for the same reason.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ovss_refine.app.choices import NUMBERS, list_sources
from ovss_refine.app.downloads import ENDINGS
from ovss_refine.app.handlers import FIRST, MODELS, OWN, Changes, Handlers, Props
from ovss_refine.app.work import EXAMPLE_NAMES
from ovss_refine.method.modes import MODES
from ovss_refine.registry import require

CSS = Path(__file__).with_name("page.css")
LOGITS, ATTENTION, MODE = "kk-mean", "dinov2-b14-reg", "maximum_velocity"
LABELS = "cat, dog/puppy, person, background: wall/floor/sky"
# How often, and from what age in seconds, files are removed that people uploaded or may download.
CLEANING = (300, 6 * 3600)
HEADER = (
    "<header><h1>ovss_refine</h1><p>Refine an open-vocabulary segmentation with an attention map, "
    "without training. Pictures stay on the machine that serves this page.</p></header>"
)
FILES = (
    '<p class="small">All pixels of the picture. The ZIP file has these, the baseline, the '
    "comparison and the maps.</p>"
)
BUTTONS = {
    "labels": "Label map (PNG)",
    "overlay": "Overlay (PNG)",
    "rle": "Masks (COCO RLE)",
    "all": "All files (ZIP)",
}
# On a phone the status is above the button, out of sight.
SHOW_STATUS = """(...values) => {
    const status = document.getElementById("status"), box = status.getBoundingClientRect()
    if (box.top < 0 || box.bottom > innerHeight) status.scrollIntoView()
    return values
}"""
Parts = dict[str, Any]


def build_page(handlers: Handlers) -> Any:
    """Make the page, a `gradio.Blocks`.

    Args:
        handlers: answer what people do.

    Raises:
        ModuleNotFoundError: if gradio is not installed.
    """
    gr = require("gradio", "app")
    parts: Parts = {}
    with gr.Blocks(title="ovss_refine", analytics_enabled=False, delete_cache=CLEANING) as page:
        gr.HTML(HEADER, elem_id="heading")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=2, min_width=320, elem_id="controls"):
                parts |= _picture(gr) | _sources(gr) | _numbers(gr)
            with gr.Column(scale=5, min_width=320, elem_id="results"):
                parts |= _results(gr)
        _connect(gr, page, parts, handlers)
    page.queue(default_concurrency_limit=4, max_size=64, api_open=False)
    return page


def look(gr: Any) -> dict[str, Any]:
    """Return the arguments of `launch` that style the page: no font comes from elsewhere."""
    theme = gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return {"theme": theme, "css": CSS.read_text(encoding="utf-8")}


def _picture(gr: Any) -> Parts:
    """Lay out where the picture comes from."""
    parts: Parts = {
        "drop": gr.File(
            label="Your photograph: drop it here, or click to choose",
            file_types=["image"],
            height=170,
            elem_id="drop",
        )
    }
    _refuse_addresses(parts["drop"])
    gr.HTML('<p class="small">Or take an example:</p>')
    with gr.Row(elem_id="examples"):
        for stem, name in EXAMPLE_NAMES.items():
            parts[f"example_{stem}"] = gr.Button(name, size="sm", elem_id=f"example-{stem}")
    return parts


def _sources(gr: Any) -> Parts:
    """Lay out labels and models; an example needs neither."""
    parts: Parts = {
        "source": gr.Radio(
            [("Its own scores, no download", OWN), ("Models, with my labels", MODELS)],
            value=OWN,
            label="Segment this example with",
            elem_id="source",
        ),
        "fixed": gr.HTML("", elem_id="fixed"),
        "labels": gr.Textbox(
            LABELS,
            label="Labels",
            info="With commas between them. cat/kitten are two words for one label; "
            "background: wall/sky names one of several.",
            lines=2,
            visible=False,
            elem_id="labels",
        ),
    }
    with gr.Group(visible=False) as parts["sources"]:
        for kind, first in (("logits", LOGITS), ("attention", ATTENTION)):
            names = list_sources(kind)
            value = first if first in names else next(iter(names), None)
            label = f"{kind.capitalize()} from"
            parts[kind] = gr.Dropdown(names, value=value, label=label, elem_id=kind)
        parts["about"] = gr.HTML(elem_id="about")
    parts["run"] = gr.Button("Segment", variant="primary", elem_id="run")
    return parts


def _numbers(gr: Any) -> Parts:
    """Lay out how to refine."""
    parts: Parts = {
        "mode": gr.Dropdown(
            [(_title(name), name) for name in MODES],
            value=MODE,
            label="Refinement",
            info=MODES[MODE].summary,
            elem_id="mode",
        )
    }
    with gr.Accordion("Numbers", open=False, elem_id="numbers"):
        for number in NUMBERS:
            parts[number.name] = gr.Slider(
                number.low,
                number.high,
                value=number.default,
                step=number.step,
                label=f"{number.label} ({number.name})",
                info=number.info,
                visible=MODE in number.modes,
                elem_id=number.name.replace("_", "-"),
            )
    return parts


def _title(mode: str) -> str:
    return f"{MODES[mode].title} (default)" if mode == MODE else MODES[mode].title


def _results(gr: Any) -> Parts:
    """Lay out what came out."""
    parts: Parts = {"status": gr.HTML(elem_id="status")}
    with gr.Tabs():
        with gr.Tab("Result"):
            parts["result"] = gr.HTML(elem_id="result")
        with gr.Tab("Maps"):
            parts["maps"] = gr.HTML(elem_id="maps")
        with gr.Tab("Attention"):
            gr.HTML(
                '<p class="small">Click on the photograph, or move the sliders, to see what a '
                "patch attends to.</p>"
            )
            with gr.Row():
                with gr.Column(min_width=260):
                    parts["photo"] = gr.Image(
                        interactive=False,
                        type="filepath",
                        label="Photograph",
                        show_label=False,
                        buttons=[],
                        elem_id="photo",
                    )
                with gr.Column(min_width=260):
                    parts["patch"] = gr.HTML(elem_id="patch")
            with gr.Row():
                for name in ("column", "row"):
                    parts[name] = gr.Slider(
                        1, 2, value=1, step=1, label=f"Patch {name}", elem_id=f"patch-{name}"
                    )
        with gr.Tab("Files"):
            gr.HTML(FILES)
            with gr.Row(elem_id="files"):
                for key in ENDINGS:
                    parts[f"file_{key}"] = gr.DownloadButton(
                        BUTTONS[key], interactive=False, min_width=160, elem_id=f"file-{key}"
                    )
    return parts


def _connect(gr: Any, page: Any, parts: Parts, handlers: Handlers) -> None:
    """Tie what people do to the methods that answer it."""
    refinement = [parts["mode"], *(parts[number.name] for number in NUMBERS)]
    chosen = [parts[name] for name in ("source", "labels", "logits", "attention")]
    models = [parts["logits"], parts["attention"]]
    # Private: the page is for people; programs have `Segmenter`.
    quick = {
        "outputs": list(parts.values()),
        "show_progress": "hidden",
        "api_visibility": "private",
    }
    # One piece of work at a time, whoever asked for it.
    work = {**quick, "concurrency_limit": 1, "concurrency_id": "work"}

    def bind(method: Callable[..., Any], *first: Any) -> Callable[..., Any]:
        return _bound(gr, parts, method, *first)

    page.load(bind(handlers.pick, FIRST), refinement, **work)
    page.load(bind(handlers.describe), models, **quick)
    for stem in EXAMPLE_NAMES:
        parts[f"example_{stem}"].click(bind(handlers.pick, stem), refinement, **work)
    parts["drop"].upload(bind(handlers.drop), parts["drop"], **quick)
    parts["source"].input(bind(handlers.choose), parts["source"], **quick)
    parts["mode"].input(bind(handlers.numbers), parts["mode"], **quick)
    for model in models:
        model.input(bind(handlers.describe), models, **quick)
    # The button is disabled while it works; gradio's own way swallows a click that comes early.
    always = {"trigger_mode": "multiple", "js": SHOW_STATUS}
    for event in (parts["run"].click, parts["labels"].submit):
        event(bind(handlers.run), [*chosen, *refinement], **always, **work)
    for name in ("column", "row"):
        place = [parts["column"], parts["row"]]
        parts[name].input(bind(handlers.step), place, trigger_mode="always_last", **quick)
    parts["photo"].select(_clicked(gr, parts, handlers), **quick)
    page.unload(_left(gr, handlers))


def _bound(gr: Any, parts: Parts, method: Callable[..., Any], *first: Any) -> Callable[..., Any]:
    """Turn a method of `Handlers` into what gradio calls: with the request, for the parts."""

    def stream(request: Any, *values: Any) -> Iterator[Any]:
        for changes in method(request.session_hash, *first, *values):
            yield _updates(gr, parts, changes)

    def answer(request: Any, *values: Any) -> Any:
        return _updates(gr, parts, method(request.session_hash, *first, *values))

    called = stream if inspect.isgeneratorfunction(method) else answer
    called.__annotations__["request"] = gr.Request
    return called


def _clicked(gr: Any, parts: Parts, handlers: Handlers) -> Callable[..., Any]:
    def clicked(request: Any, event: Any) -> Any:
        return _updates(gr, parts, handlers.look(request.session_hash, *event.index))

    clicked.__annotations__ |= {"request": gr.Request, "event": gr.SelectData}
    return clicked


def _left(gr: Any, handlers: Handlers) -> Callable[..., None]:
    def left(request: Any) -> None:
        handlers.close(request.session_hash)

    left.__annotations__["request"] = gr.Request
    return left


def _updates(gr: Any, parts: Parts, changes: Changes) -> Any:
    """Turn changes by name into gradio's, by part."""
    if not changes:
        return gr.skip()
    return {
        parts[name]: gr.update(**value) if isinstance(value, Props) else value
        for name, value in changes.items()
    }


def _refuse_addresses(part: Any) -> None:
    """Keep gradio from fetching a web address that a request names in place of an upload."""
    original = part.async_move_resource_to_block_cache

    async def move(path: str | Path | None) -> Any:
        if path is not None and re.match(r"\s*[a-z][a-z0-9+.-]+:", str(path), re.IGNORECASE):
            raise ValueError("an upload must be a file; web addresses are not fetched.")
        return await original(path)

    part.async_move_resource_to_block_cache = move
