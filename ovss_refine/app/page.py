"""The page's layout, and the check of all values that its events send.

Gradio 6. It is imported by the functions, so that everything else works without it.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from ovss_refine.app.choices import HYPERPARAMETERS, list_sources
from ovss_refine.app.downloads import DOWNLOADS
from ovss_refine.app.events import Events, Parts
from ovss_refine.app.handlers import MODELS, OWN, Handlers
from ovss_refine.app.uploads import Uploads
from ovss_refine.app.work import EXAMPLE_NAMES
from ovss_refine.config import RefineConfig
from ovss_refine.images.draw import OPACITY
from ovss_refine.method.modes import MODES
from ovss_refine.registry import require
from ovss_refine.segment.request import SegmentRequest

SOURCES = {field.name: field.default for field in fields(SegmentRequest)}
MODE = RefineConfig().mode
LABELS = "cat, dog/puppy, person, background: wall/floor/sky"
# Events that wait: with three per visitor, 50 who come at once fill a third.
MAX_WAITING = 512
LARGEST = 1_000_000  # number that an event may send
HEADER = (
    "<header><h1>ovss_refine</h1><p>Refine an open-vocabulary segmentation with an attention map, "
    "without training. Images stay on the machine that serves this page.</p></header>"
)
FILES = (
    '<p class="small">At the size that the line above names. The ZIP file has these, the baseline, '
    "the comparison and the maps.</p>"
)
VIEWING = f"""<div id="viewing">
    <label for="border">Baseline or refined</label><input id="border" type="range" value="50">
    <label for="tint">Opacity</label><input id="tint" type="range" value="{round(100 * OPACITY)}">
    <p id="under" class="small"></p></div>"""


def build_page(handlers: Handlers, uploads: Uploads) -> Any:
    """Build the page, a `gradio.Blocks`, which takes `uploads` as files and nothing else.

    Raises:
        ModuleNotFoundError: if gradio is not installed.
    """
    gr = require("gradio", "app")
    with gr.Blocks(title="ovss_refine", analytics_enabled=False) as page:
        gr.HTML(HEADER, elem_id="heading")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=2, min_width=320, elem_id="controls"):
                parts = _image(gr) | _sources(gr) | _refinement(gr)
            with gr.Column(scale=5, min_width=320, elem_id="results"):
                parts |= _results(gr)
        for name, part in parts.items():
            part.elem_id = name.replace("_", "-")
        Events(gr, page, parts, handlers, uploads).connect()
    _check_inputs(gr, page, parts["drop"], uploads)
    page.queue(default_concurrency_limit=4, max_size=MAX_WAITING, api_open=False)
    return page


def style() -> dict[str, Any]:
    """Return the arguments of `launch` that style the page; all fonts are the system's."""
    theme = require("gradio", "app").themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return {"theme": theme, "css": _beside("page.css")}


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _image(gr: Any) -> Parts:
    """Lay out where the image comes from."""
    label = "Your image: drop it here, or click to choose"
    parts: Parts = {"drop": gr.File(label=label, file_types=["image"], height=170)}
    gr.HTML('<p class="small">Or take an example:</p>')
    with gr.Row(elem_id="examples"):
        for stem, name in EXAMPLE_NAMES.items():
            parts[f"example_{stem}"] = gr.Button(name, size="sm")
    return parts


def _sources(gr: Any) -> Parts:
    """Lay out labels and models; an example needs neither."""
    parts: Parts = {
        "source": gr.Radio(
            [("Its own logits, no download", OWN), ("Models, with my labels", MODELS)],
            value=OWN,
            label="Segment this example with",
        ),
        "fixed": gr.HTML(),
        "labels": gr.Textbox(
            LABELS,
            label="Labels",
            info="Separated by commas. cat/kitten: two prompts for one class; background: wall/sky "
            "names a class of several prompts.",
            lines=2,
            visible=False,
        ),
    }
    with gr.Group(visible=False) as parts["sources"]:
        for kind in ("logits", "attention"):
            parts[kind] = gr.Dropdown(
                list_sources(kind), value=SOURCES[kind], label=f"{kind.capitalize()} from"
            )
        parts["about"] = gr.HTML()
    parts["run"] = gr.Button("Segment", variant="primary")
    return parts


def _refinement(gr: Any) -> Parts:
    """Lay out how to refine."""
    titles = {name: mode.title for name, mode in MODES.items()}
    titles[MODE] += " (default)"
    choices = [(title, name) for name, title in titles.items()]
    info = MODES[MODE].summary
    parts: Parts = {"mode": gr.Dropdown(choices, value=MODE, label="Refinement", info=info)}
    with gr.Accordion("Hyperparameters", open=False):
        for one in HYPERPARAMETERS:
            parts[one.name] = gr.Slider(
                one.low,
                one.high,
                value=one.default,
                step=one.step,
                label=f"{one.label} ({one.name})",
                info=one.info,
                visible=MODE in one.modes,
            )
    return parts


def _results(gr: Any) -> Parts:
    """Lay out the results."""
    parts: Parts = {"status": gr.HTML(), "stale": gr.HTML()}
    with gr.Tabs():
        with gr.Tab("Result"):
            gr.HTML(VIEWING, js_on_load=_beside("viewer.js"))
            parts["result"] = gr.HTML()
        with gr.Tab("Maps"):
            parts["maps"] = gr.HTML()
        with gr.Tab("Attention"):
            gr.HTML(
                '<p class="small">Click on the image, or move the sliders, to see what a patch '
                "attends to.</p>"
            )
            with gr.Row():
                with gr.Column(min_width=260):
                    parts["photo"] = gr.Image(
                        interactive=False,
                        type="filepath",
                        label="Image",
                        show_label=False,
                        buttons=[],
                    )
                with gr.Column(min_width=260):
                    parts["patch"] = gr.HTML()
            with gr.Row():
                for name in ("column", "row"):
                    parts[name] = gr.Slider(1, 2, value=1, step=1, label=f"Patch {name}")
        with gr.Tab("Files"):
            gr.HTML(FILES)
            with gr.Row(elem_id="files"):
                for name, (_, text) in DOWNLOADS.items():
                    parts[name] = gr.DownloadButton(text, interactive=False, min_width=160)
    return parts


def _check_inputs(gr: Any, page: Any, drop: Any, uploads: Uploads) -> None:
    """Check the values of all events before gradio, which fetches the files that they name."""
    original = page.preprocess_data

    async def preprocess_data(called: Any, values: list[Any], *args: Any, **options: Any) -> Any:
        if len(values) != len(called.inputs):
            raise _refused(
                gr, f"An event must have {len(called.inputs)} values; got {len(values)}."
            )
        pairs = zip(called.inputs, values, strict=True)
        checked = [_file(gr, v, uploads) if part is drop else _scalar(gr, v) for part, v in pairs]
        return await original(called, checked, *args, **options)

    page.preprocess_data = preprocess_data


def _file(gr: Any, value: Any, uploads: Uploads) -> dict[str, Any] | None:
    """Return a file with no more than its path."""
    if value is None:
        return None
    path = value.get("path") if isinstance(value, dict) else None
    if not uploads.holds(path):
        raise _refused(gr, "An image must be uploaded first; URLs and other files are not read.")
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def _scalar(gr: Any, value: Any) -> Any:
    """Return a value that cannot name a file to gradio."""
    if isinstance(value, str) or (isinstance(value, int | float) and abs(value) <= LARGEST):
        return value
    kind = type(value).__name__
    raise _refused(gr, f"A value must be a text or a number up to {LARGEST:,}; got {kind}.")


def _refused(gr: Any, text: str) -> Any:
    """Return an error that the page shows and the terminal does not."""
    return gr.Error(text, print_exception=False)
