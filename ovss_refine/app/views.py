"""What the page shows, as HTML. Images are embedded, so that no file of them is served.

Everything that people type, or that an error says, is escaped. Each image has a text for those who
cannot see it, and the legend is a table beside the image, not drawn on it.
"""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovss_refine.images import draw
from ovss_refine.images.read import RGB
from ovss_refine.segmentation import Segmentation

# Longest side of what the page shows; downloads have every pixel.
SHOWN_PX = 1024
STAGES = {
    "loading": "Embedding the labels",
    "logits": "Computing the logits",
    "attention": "Computing the attention",
    "baseline": "Deciding without refinement",
    "refinement": "Refining",
}


def shown_size(H: int, W: int) -> tuple[int, int]:
    """Return (height, width) at which the page shows an image of H x W pixels."""
    zoom = min(1.0, SHOWN_PX / max(H, W))
    return max(1, round(H * zoom)), max(1, round(W * zoom))


def jpeg(image: RGB) -> bytes:
    """Encode an image at the size the page shows, with full-resolution colour."""
    h, w = shown_size(*image.shape[:2])
    resized = Image.fromarray(image).resize((w, h), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    resized.save(file, "JPEG", quality=90, subsampling=0)
    return file.getvalue()


def upload(image: RGB, name: str) -> str:
    """Show an image that is waiting for its labels."""
    shown = _figure(jpeg(image), name, f"Image {name}")
    return f'<div class="pair">{shown}</div><p>Type labels and press <em>Segment</em>.</p>'


def result(made: Segmentation) -> str:
    """Show baseline and refined result side by side, with their legend below."""
    colours = draw.palette(made.names)
    figures = ""
    captions = ("Baseline: logits alone", "Refined")
    for caption, labels in zip(captions, _label_maps(made), strict=True):
        top = draw.areas(labels, made.names)[:3]
        largest = ", ".join(f"{name} {share:.0%}" for _, name, share in top)
        tinted = draw.overlay(made.image, labels, colours)
        figures += _figure(jpeg(tinted), caption, f"{caption}. Largest: {largest}")
    return f'<div class="pair">{figures}</div>{legend(made, colours)}'


def legend(made: Segmentation, colours: RGB) -> str:
    """Tabulate the classes that occur: colour, name, share before and after."""
    before, after = (
        {index: share for index, _, share in draw.areas(labels, made.names)}
        for labels in _label_maps(made)
    )
    order = sorted(before | after, key=lambda i: (-after.get(i, 0.0), -before.get(i, 0.0), i))
    rows = "".join(
        f'<tr><th scope="row">{_swatch(colours[i])}{html.escape(made.names[i])}</th>'
        f"<td>{_percent(before.get(i, 0.0))}</td><td>{_percent(after.get(i, 0.0))}</td></tr>"
        for i in order
    )
    head = '<th scope="col">class</th><th scope="col">baseline</th><th scope="col">refined</th>'
    return (
        '<table class="legend"><caption>Share of the pixels</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def maps(made: Segmentation) -> str:
    """Show the discrepancy map of every kept class, all on one scale."""
    names = [made.names[c] for c in made.kept.nonzero().flatten().tolist()]
    values = made.discrepancy[made.kept].numpy()  # [m, gh, gw], finite
    low, high = float(values.min()), float(values.max())
    # Where nothing differs, the class has won everywhere and is bright.
    scaled = (values - low) / (high - low) if high > low else np.ones_like(values)
    H, W = made.image.shape[:2]
    figures = ""
    for m in np.argsort(-scaled.max(axis=(1, 2)), kind="stable"):
        file = io.BytesIO()
        draw.write_png(file, draw.heat(scaled[m]))
        alt = f"Map of {names[m]}: bright where the class is likely"
        figures += _figure(file.getvalue(), names[m], alt, "png", f"aspect-ratio: {W} / {H}")
    rejected = [name for name in made.names if name not in names]
    without = f" No patch is sure of: {html.escape(', '.join(rejected))}." if rejected else ""
    return (
        "<p>One map per class, from dark (unlikely) to bright (likely), all on one scale; the "
        f'refined result follows the brightest.{without}</p><div class="maps">{figures}</div>'
    )


def attention(image: RGB, column: int, row: int) -> str:
    """Show what the patch in a column and row, counted from one, attends to."""
    where = f"column {column}, row {row}"
    return _figure(jpeg(image), f"Attention of the patch in {where}", f"Attention map of {where}")


def summary(made: Segmentation, name: str) -> str:
    """Summarise what was done in one line, and tabulate the time of each stage."""
    H, W = made.image.shape[:2]
    gh, gw = made.discrepancy.shape[1:]
    before, after = _label_maps(made)
    line = (
        f"<strong>{html.escape(name)}</strong>, {W} x {H} pixels, {gw} x {gh} patches, "
        f"{len(made.names)} classes: refinement changed "
        f"<strong>{np.mean(before != after):.1%}</strong> of the pixels."
    )
    times = {**made.seconds, "total": sum(made.seconds.values())}
    cells = "".join(f"<div><dt>{k}</dt><dd>{v:.2f} s</dd></div>" for k, v in times.items())
    return _status(line, f'<dl class="times">{cells}</dl>')


def working(stage: str, to_load: Mapping[str, str]) -> str:
    """Describe a stage, a key of `STAGES`; `to_load` has the download sizes of what it loads."""
    loads = stage == "loading" and to_load
    text = f"Loading {_with_sizes(to_load)}" if loads else STAGES[stage]
    return _status(f"{sentence(text)} ...", kind="busy")


def notice(text: str) -> str:
    """Show a message that is not an error."""
    return _status(sentence(text))


def error(text: str) -> str:
    """Show what went wrong."""
    return _status(sentence(text), kind="error", role="alert")


def sentence(text: str) -> str:
    """Escape a text; what stands between backticks becomes code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def facts(lines: Sequence[str]) -> str:
    """Show lines of small print."""
    return "".join(f'<p class="small">{sentence(line)}</p>' for line in lines)


def sizes(to_load: Mapping[str, str]) -> str:
    """Say what the next run has to load."""
    if not to_load:
        return "Loaded: no further downloads."
    return f"The first run loads {_with_sizes(to_load)}."


def _with_sizes(to_load: Mapping[str, str]) -> str:
    named = " and ".join(f"`{name}` ({size})" for name, size in to_load.items())
    return f"{named}, from huggingface.co unless the weights are already on disk"


def _label_maps(made: Segmentation) -> tuple[draw.LabelMap, draw.LabelMap]:
    """Return the classes [H, W] before and after refinement."""
    assert made.baseline is not None  # noqa: S101 - the page always asks for it
    return made.baseline.numpy(), made.labels.numpy()


def _percent(share: float) -> str:
    """Format a share; one above zero never reads as zero."""
    return "&lt;0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _swatch(colour: NDArray[np.uint8]) -> str:
    r, g, b = (int(c) for c in colour)
    return f'<span class="swatch" style="background: rgb({r}, {g}, {b})"></span>'


def _status(line: str, more: str = "", *, kind: str = "", role: str = "status") -> str:
    return f'<div class="status {kind}" role="{role}"><p>{line}</p>{more}</div>'


def _figure(file: bytes, caption: str, alt: str, kind: str = "jpeg", style: str = "") -> str:
    data = base64.b64encode(file).decode("ascii")
    return (
        f'<figure><img src="data:image/{kind};base64,{data}" alt="{html.escape(alt)}" '
        f'style="{style}"><figcaption>{html.escape(caption)}</figcaption></figure>'
    )
