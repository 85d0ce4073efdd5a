"""Draw segmentations: palette PNG, overlay, legend, discrepancy and attention maps.

Images are [H, W, 3] uint8 RGB, label maps [H, W] integers. `palette` chooses the colours of names.
Text is placed next to an image, never on it.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ovss_refine.folders.files import write_whole
from ovss_refine.folders.paths import local_path
from ovss_refine.images.fonts import fitting
from ovss_refine.images.palette import palette as palette
from ovss_refine.images.read import RGB

LabelMap = NDArray[np.int64]

FONT_PX = 14
MARGIN_PX = 8
# The least widths of a legend and of a caption, which may exceed a narrow image's.
LEGEND_PX, CAPTION_PX = 240, 96
# Text is at least 1 / LETTERS of the width high, for large images that are shown reduced.
LETTERS = 80
PANEL_PX = 240
OPACITY = 0.55
# From low, dark, to high, bright; lightness rises steadily, so that it can be read in grey too.
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def overlay(image: RGB, labels: LabelMap, colours: RGB, opacity: float = OPACITY) -> RGB:
    """Tint the image by class and draw a white line where classes meet."""
    out = _blend(image, colours[labels], opacity)
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    out[edge] = 255
    return out


def areas(labels: LabelMap, names: Sequence[str]) -> list[tuple[int, str, float]]:
    """List (index, name, share of the pixels) of the classes that occur, largest first."""
    counts = np.bincount(labels.ravel(), minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    return [(int(i), names[i], float(counts[i] / labels.size)) for i in order if counts[i]]


def labelled(
    image: RGB,
    panels: Mapping[str, LabelMap],
    names: Sequence[str],
    original: str | None = None,
) -> RGB:
    """Draw label maps over an image, side by side, with one legend below.

    Args:
        image: [H, W, 3].
        panels: label maps [H, W] by their captions; a single panel gets no caption.
        names: M names of the classes; the legend lists those that occur, largest first.
        original: caption of the image itself, drawn as the first panel; None: without it.
    """
    colours = palette(names)
    pages = {} if original is None else {original: image}
    pages |= {caption: overlay(image, labels, colours) for caption, labels in panels.items()}
    (first, *_), several = pages.values(), len(pages) > 1
    row = side_by_side(list(pages.values()), list(pages)) if several else first
    together = np.concatenate([labels.ravel() for labels in panels.values()])
    return with_legend(row, [index for index, _, _ in areas(together, names)], names, colours)


def with_legend(image: RGB, indices: Sequence[int], names: Sequence[str], colours: RGB) -> RGB:
    """Draw a legend of some classes below an image; long names are truncated."""
    width = max(image.shape[1], LEGEND_PX)
    px = _font_px(width)
    box, line = px + MARGIN_PX, px + MARGIN_PX
    texts = {i: fitting(names[i], px, width - box - 2 * MARGIN_PX) for i in indices}
    places, x, y = [], MARGIN_PX, MARGIN_PX
    for index, (text, font) in texts.items():
        step = box + 2 * MARGIN_PX + int(font.getlength(text))
        if x > MARGIN_PX and x + step > width:
            x, y = MARGIN_PX, y + line
        places.append((index, x, y))
        x += step
    page = Image.new("RGB", (width, image.shape[0] + y + line), "white")
    page.paste(Image.fromarray(image))
    draw = ImageDraw.Draw(page)
    for index, x, y in places:
        top = image.shape[0] + y
        fill = tuple(int(c) for c in colours[index])
        draw.rectangle((x, top, x + px, top + px), fill=fill)
        text, font = texts[index]
        draw.text((x + box, top + px), text, fill="black", font=font, anchor="ls")
    return np.asarray(page)


def side_by_side(images: Sequence[RGB], captions: Sequence[str]) -> RGB:
    """Draw images of one size in a row, each below its caption."""
    height, width = images[0].shape[:2]
    room = max(width, CAPTION_PX)
    step = room + MARGIN_PX
    px = _font_px(len(images) * step)
    page = Image.new("RGB", (len(images) * step - MARGIN_PX, height + 2 * px), "white")
    draw = ImageDraw.Draw(page)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        page.paste(Image.fromarray(image), (place * step, 2 * px))
        text, font = fitting(caption, px, room - MARGIN_PX)
        draw.text((place * step + MARGIN_PX, px * 3 // 2 - 2), text, "black", font, anchor="ls")
    return np.asarray(page)


def heat_maps(maps: NDArray[np.float32], names: Sequence[str], size: tuple[int, int]) -> RGB:
    """Draw the maps of several classes on one sheet, on one common scale.

    Args:
        maps: [m, gh, gw] finite values; the lowest of all is black, the highest bright.
        names: m captions.
        size: (H, W) of the image; the panels have its aspect ratio.
    """
    zoom = PANEL_PX / max(size)
    panel = (max(1, round(size[1] * zoom)), max(1, round(size[0] * zoom)))
    nearest = Image.Resampling.NEAREST
    panels = [np.asarray(Image.fromarray(m).resize(panel, nearest)) for m in _heat(maps)]
    blank = np.full_like(panels[0], 255)
    sheet = []
    for start in range(0, len(panels), 4):
        row, captions = panels[start : start + 4], list(names[start : start + 4])
        empty = 4 - len(row) if len(panels) > 4 else 0
        sheet.append(side_by_side(row + [blank] * empty, captions + [""] * empty))
    return np.concatenate(sheet)


def heat(scaled: NDArray[np.float32]) -> RGB:
    """Colour values [...] in [0, 1] from dark to bright: [..., 3]."""
    stops = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(scaled, stops, HEAT[:, c]) for c in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def heat_overlay(image: RGB, values: NDArray[np.float32], x: int, y: int) -> RGB:
    """Draw one map [gh, gw] over the image and a ring around the pixel in column `x`, row `y`."""
    H, W = image.shape[:2]
    coloured = Image.fromarray(_heat(values)).resize((W, H), Image.Resampling.BILINEAR)
    page = Image.fromarray(_blend(image, np.asarray(coloured), OPACITY))
    radius = max(2, max(H, W) // 100)
    draw = ImageDraw.Draw(page)
    for reach, colour in ((radius + 1, "black"), (radius, "white")):
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), outline=colour)
    return np.asarray(page)


def write_labels(file: BinaryIO, labels: LabelMap, colours: RGB) -> None:
    """Write a label map as a palette PNG, or as a 16-bit grey PNG past 256 classes.

    Raises:
        ValueError: if a label does not fit into 16 bits.
    """
    if labels.size and int(labels.max()) > 0xFFFF:
        raise ValueError(
            f"a label map in PNG must have labels below {1 << 16}; got {int(labels.max())}. Save "
            "the array instead, for example with `numpy.save`."
        )
    if len(colours) > 256:
        Image.fromarray(labels.astype(np.uint16)).save(file, "PNG")
        return
    indexed = Image.fromarray(labels.astype(np.uint8), mode="L")
    indexed.putpalette(colours.tobytes())
    indexed.save(file, "PNG")


def write_png(file: BinaryIO, image: RGB) -> None:
    """Write an image as a PNG."""
    Image.fromarray(image).save(file, "PNG")


def save(path: str | Path, image: RGB) -> None:
    """Write an image to a file, whole or not at all, in the format of its suffix.

    Raises:
        ValueError: on a URL, or a suffix other than those of `FORMATS`.
        OSError: if the file cannot be written.
    """
    path = local_path("path", path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"`path` must end in one of {list(FORMATS)}; got `{path}`.")
    write_whole(path, partial(Image.fromarray(image).save, format=kind))


def _font_px(width: int) -> int:
    return max(FONT_PX, width // LETTERS)


def _blend(image: RGB, colours: RGB, opacity: float) -> RGB:
    """Blend two images in float32: 12 * H * W bytes."""
    out = image * np.float32(1 - opacity)
    out += colours * np.float32(opacity)
    mixed: RGB = np.rint(out, out=out).astype(np.uint8)
    return mixed


def _heat(maps: NDArray[np.float32]) -> RGB:
    """Colour maps of any shape [...] on one scale from their lowest to their highest: [..., 3]."""
    low = float(maps.min())
    span = float(maps.max()) - low
    return heat((maps - low) / (span if span > 0 else 1.0))
