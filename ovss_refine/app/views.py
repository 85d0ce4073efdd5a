"""What the page shows, as HTML: pictures go inside it, so that no file of them is ever served.

Everything that people typed, or that an error says, is escaped. Each picture has a text for those
who cannot see it, and the legend is a table beside the picture, not paint on it.
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

# Longest side of what the page shows; downloads have all pixels.
SHOWN_PX = 1024
STAGES = {
    "loading": "Embedding the labels",
    "logits": "Scoring the labels",
    "attention": "Computing the attention",
    "baseline": "Deciding without refinement",
    "refinement": "Refining",
}


def shown_size(H: int, W: int) -> tuple[int, int]:
    """Return (height, width) at which the page shows a picture of H x W pixels."""
    zoom = min(1.0, SHOWN_PX / max(H, W))
    return max(1, round(H * zoom)), max(1, round(W * zoom))


def jpeg(picture: RGB) -> bytes:
    """Encode a picture as the page shows it, colours as sharp as brightness."""
    h, w = shown_size(*picture.shape[:2])
    image = Image.fromarray(picture)
    if (w, h) != image.size:
        image = image.resize((w, h), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, subsampling=0)
    return file.getvalue()


def figure(picture: RGB, caption: str, alt: str) -> str:
    """Show a picture with its caption."""
    return _figure(_data("jpeg", jpeg(picture)), caption, alt)


def photograph(picture: RGB, name: str) -> str:
    """Show a photograph that waits for its labels."""
    hint = "<p>Type labels and press <em>Segment</em>.</p>"
    return f'<div class="pair">{figure(picture, name, f"Photograph {name}")}</div>{hint}'


def result(made: Segmentation) -> str:
    """Show baseline and refined side by side, and their legend below."""
    colours = draw.palette(made.names)
    assert made.baseline is not None  # noqa: S101 - the page always asks for it
    shown = {"Baseline: scores alone": made.baseline, "Refined": made.labels}
    figures = []
    for caption, labels in shown.items():
        array = labels.numpy()
        top = draw.areas(array, made.names)[:3]
        says = ", ".join(f"{name} {share:.0%}" for _, name, share in top)
        tinted = draw.overlay(made.image, array, colours)
        figures.append(figure(tinted, caption, f"{caption}. Largest: {says}"))
    return f'<div class="pair">{"".join(figures)}</div>{legend(made, colours)}'


def legend(made: Segmentation, colours: RGB) -> str:
    """Tabulate the labels that occur: colour, name, share before and after."""
    assert made.baseline is not None  # noqa: S101 - the page always asks for it
    before, after = (
        {index: share for index, _, share in draw.areas(x.numpy(), made.names)}
        for x in (made.baseline, made.labels)
    )
    order = sorted(before | after, key=lambda i: (-after.get(i, 0.0), -before.get(i, 0.0), i))
    rows = "".join(
        f'<tr><th scope="row">{_swatch(colours[i])}{html.escape(made.names[i])}</th>'
        f"<td>{_percent(before.get(i, 0.0))}</td><td>{_percent(after.get(i, 0.0))}</td></tr>"
        for i in order
    )
    head = '<th scope="col">label</th><th scope="col">baseline</th><th scope="col">refined</th>'
    return (
        '<table class="legend"><caption>Share of the pixels</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def maps(made: Segmentation) -> str:
    """Show the discrepancy map of every kept label, on one common scale."""
    kept = made.kept.nonzero().flatten().tolist()
    values = made.discrepancy[kept].numpy()  # [m, gh, gw], finite
    low, high = float(values.min()), float(values.max())
    # Where nothing differs the label has won everywhere, and is bright.
    scaled = (values - low) / (high - low) if high > low else np.ones_like(values)
    order = np.argsort([-float(m.max()) for m in scaled], kind="stable")
    H, W = made.image.shape[:2]
    figures = "".join(
        _figure(
            _data("png", _png(heat(scaled[place]))),
            made.names[kept[place]],
            f"Map of {made.names[kept[place]]}: bright where the label is likely",
            style=f"aspect-ratio: {W} / {H}",
        )
        for place in order
    )
    rejected = [name for name, k in zip(made.names, made.kept.tolist(), strict=True) if not k]
    without = f" No patch is sure of: {html.escape(', '.join(rejected))}." if rejected else ""
    return (
        "<p>One map a label, from dark (unlikely) to bright (likely), all on one scale; the "
        f'refined picture follows the brightest.{without}</p><div class="maps">{figures}</div>'
    )


def attention(picture: RGB, column: int, row: int) -> str:
    """Show what the patch in a column and row, counted from one, attends to."""
    where = f"column {column}, row {row}"
    return figure(picture, f"Attention of the patch in {where}", f"Attention map of {where}")


def summary(made: Segmentation, name: str) -> str:
    """Say in a line what was done, and tabulate the time of each stage."""
    H, W = made.image.shape[:2]
    gh, gw = made.discrepancy.shape[1:]
    assert made.baseline is not None  # noqa: S101 - the page always asks for it
    changed = float((made.labels != made.baseline).double().mean())
    line = (
        f"<strong>{html.escape(name)}</strong>, {W} x {H} pixels, {gw} x {gh} patches, "
        f"{len(made.names)} labels: refinement changed <strong>{changed:.1%}</strong> of the "
        "pixels."
    )
    times = {**made.seconds, "total": sum(made.seconds.values())}
    cells = "".join(f"<div><dt>{k}</dt><dd>{v:.2f} s</dd></div>" for k, v in times.items())
    return f'<div class="status" role="status"><p>{line}</p><dl class="times">{cells}</dl></div>'


def working(stage: str, to_load: Mapping[str, str]) -> str:
    """Say what is being done.

    Args:
        stage: its name, see `Segmenter`.
        to_load: what the stage "loading" loads, with the size of its download.
    """
    text = STAGES.get(stage, stage)
    if stage == "loading" and to_load:
        text = f"Loading {_with_sizes(to_load)}, from huggingface.co unless the weights are at hand"
    return f'<div class="status busy" role="status"><p>{sentence(text)} ...</p></div>'


def notice(text: str) -> str:
    """Say something that is no error."""
    return f'<div class="status" role="status"><p>{sentence(text)}</p></div>'


def error(text: str) -> str:
    """Say what went wrong."""
    return f'<div class="status error" role="alert"><p>{sentence(text)}</p></div>'


def sentence(text: str) -> str:
    """Escape a text; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def heat(scaled: NDArray[np.float32]) -> RGB:
    """Colour [gh, gw] values in [0, 1], from dark to bright: [gh, gw, 3]."""
    stops = np.linspace(0, 1, len(draw.HEAT))
    channels = [np.interp(scaled, stops, draw.HEAT[:, c]) for c in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def facts(lines: Sequence[str]) -> str:
    """Show lines of small print."""
    return "".join(f'<p class="small">{sentence(line)}</p>' for line in lines)


def sizes(to_load: Mapping[str, str]) -> str:
    """Say what the next run has to load."""
    if not to_load:
        return "Loaded: nothing is downloaded any more."
    return (
        f"The first run loads {_with_sizes(to_load)}, from huggingface.co unless the weights are "
        "at hand."
    )


def _with_sizes(to_load: Mapping[str, str]) -> str:
    return " and ".join(f"`{name}` ({size})" for name, size in to_load.items())


def _percent(share: float) -> str:
    """Write a share; what is there is never written as nothing."""
    return "&lt;0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _swatch(colour: NDArray[np.uint8]) -> str:
    r, g, b = (int(c) for c in colour)
    return f'<span class="swatch" style="background: rgb({r}, {g}, {b})"></span>'


def _figure(source: str, caption: str, alt: str, style: str = "") -> str:
    look = f' style="{style}"' if style else ""
    return (
        f'<figure><img src="{source}" alt="{html.escape(alt)}"{look}>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _png(picture: RGB) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
