"""What the page shows, as HTML. Images are embedded, so that no file of them is served.

Everything that people type, or that an error says, is escaped. Each image has a text for those who
cannot see it, and the legend is a table beside the image, not drawn on it.
"""

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ovss_refine.app.uploads import NamedImage
from ovss_refine.images import draw
from ovss_refine.images.read import RGB
from ovss_refine.logits import Logits
from ovss_refine.method.distribution import confidence
from ovss_refine.segmentation import Segmentation

# Longest side of what the page shows; downloads have every pixel.
SHOWN_PX = 1024
MOST_MAPS = 48
OWNERS = "For whoever runs this page"
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
    """Show baseline and refined result over the image, with their legend below.

    `viewer.js` moves the border between the two, and reads the class and the confidence of a pixel
    from a second image of each.
    """
    colours = draw.palette(made.names)
    H, W = made.image.shape[:2]
    layers = _img(jpeg(made.image), "The image", "jpeg", "photo")
    captions = {"before": "Baseline: logits alone", "after": "Refined"}
    for (kind, caption), labels in zip(captions.items(), _label_maps(made), strict=True):
        top = draw.areas(labels, made.names)[:3]
        largest = ", ".join(f"{name} {share:.0%}" for _, name, share in top)
        shown = _nearest(labels, shown_size(H, W))
        tint = draw.overlay(np.zeros((*shown.shape, 3), np.uint8), shown, colours, opacity=1)
        layers += _img(_png(tint), f"{caption}. Largest: {largest}", "png", kind)
        if made.logits is not None:
            facts = pixel_facts(made.logits, shown)
            layers += _img(_png(facts), "", "png", f"{kind}-facts", "hidden")
    left, right = captions.values()
    names = html.escape(json.dumps(made.names))
    return (
        f'<figure class="viewer" style="max-width: calc(75vh * {W / H:.3f})">'
        f"<figcaption><span>{left}</span><span>{right}</span></figcaption>"
        f'<div class="stack" style="aspect-ratio: {W} / {H}" data-names="{names}">{layers}'
        f'<i class="split"></i></div></figure>{legend(made, colours)}'
    )


def pixel_facts(logits: Logits, labels: draw.LabelMap) -> RGB:
    """Store the class of every pixel, and how confident the logits are of it, as an image.

    Args:
        logits: of one image, [K, h, w].
        labels: [H, W] classes, below 2^16.

    Returns:
        [H, W, 3]: high and low byte of the class, and the confidence at the pixel's patch times
        255.
    """
    grid, index = logits.values.shape[1:], logits.prompt_index
    index = None if index is None else torch.as_tensor(index)
    values = logits.values.float().flatten(1)[None]  # [1, K, h * w]
    P, _ = confidence(values, index, logits.scale, None)  # [1, M, h * w]
    maps = P.reshape(-1, *grid).numpy()  # [M, h, w]
    rows, columns = (_places(g, size) for g, size in zip(grid, labels.shape, strict=True))
    own = maps[labels, rows[:, None], columns]  # [H, W]
    return np.stack([labels >> 8, labels & 255, np.rint(255 * own)], axis=-1).astype(np.uint8)


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
    """Show the discrepancy maps of kept classes, brightest first, all on one scale."""
    names = [made.names[c] for c in made.kept.nonzero().flatten().tolist()]
    values = made.discrepancy[made.kept].numpy()  # [m, gh, gw], finite
    low, high = float(values.min()), float(values.max())
    # Where nothing differs, the class has won everywhere and is bright.
    scaled = (values - low) / (high - low) if high > low else np.ones_like(values)
    H, W = made.image.shape[:2]
    figures = ""
    for m in np.argsort(-scaled.max(axis=(1, 2)), kind="stable")[:MOST_MAPS]:
        alt = f"Map of {names[m]}: bright where the class is likely"
        file = _png(draw.heat(scaled[m]))
        figures += _figure(file, names[m], alt, "png", f"aspect-ratio: {W} / {H}")
    rejected = [name for name in made.names if name not in set(names)]
    more = f" The {MOST_MAPS} brightest of {len(names)} are shown." * (len(names) > MOST_MAPS)
    if rejected:
        some = ", ".join(rejected[:MOST_MAPS]) + " ..." * (len(rejected) > MOST_MAPS)
        more += f" No patch is sure of: {html.escape(some)}."
    return (
        "<p>One map per class, all on one scale; the refined result follows the brightest."
        f'{more}</p>{_colour_bar(low, high)}<div class="maps">{figures}</div>'
    )


def _colour_bar(low: float, high: float) -> str:
    stops = ", ".join(f"rgb({', '.join(str(int(c)) for c in colour)})" for colour in draw.HEAT)
    return (
        f'<div class="bar"><span>unlikely<br>{low:.3g}</span>'
        f'<div role="img" aria-label="Colours from {low:.3g}, dark, to {high:.3g}, bright" '
        f'style="background: linear-gradient(to right, {stops})"></div>'
        f"<span>likely<br>{high:.3g}</span></div>"
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


def error(text: str, detail: str = "") -> str:
    """Show what went wrong; `detail` is for whoever runs the page."""
    more = f"<details><summary>{OWNERS}</summary><p>{sentence(detail)}</p></details>"
    return _status(sentence(text), more * bool(detail), kind="error", role="alert")


def stale(text: str) -> str:
    """Say why the result is not that of the present choices; the page then dims it."""
    return _status(sentence(text), kind="stale")


def loaded(image: NamedImage) -> str:
    """Say that an image has arrived, and whether it was reduced."""
    H, W = image.pixels.shape[:2]
    text = f"`{image.name}`, {W} x {H} pixels, is loaded. "
    if image.full_size is not None:
        full = " x ".join(map(str, image.full_size))
        text += f"It was scaled down from {full} pixels, which is more than this page works on. "
    return notice(f"{text}It stays on the machine that serves this page.")


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
    image = _img(file, alt, kind, more=f'style="{style}"')
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _img(file: bytes, alt: str, kind: str, name: str = "", more: str = "") -> str:
    """Embed an image file of a kind, with a class name and further attributes."""
    data = base64.b64encode(file).decode("ascii")
    src = f"data:image/{kind};base64,{data}"
    return f'<img class="{name}" src="{src}" alt="{html.escape(alt)}" {more}>'


def _png(image: RGB) -> bytes:
    file = io.BytesIO()
    draw.write_png(file, image)
    return file.getvalue()


def _places(g: int, size: int) -> NDArray[np.int64]:
    """Return the cell, of `g`, that the middle of each of `size` pixels falls into."""
    return (2 * np.arange(size) + 1) * g // (2 * size)


def _nearest(labels: draw.LabelMap, size: tuple[int, int]) -> draw.LabelMap:
    """Return labels at another size."""
    rows, columns = (_places(g, n) for g, n in zip(labels.shape, size, strict=True))
    return labels[rows[:, None], columns]
