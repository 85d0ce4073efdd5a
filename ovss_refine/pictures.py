"""Pictures of a segmentation: palette PNG, overlay, legend, discrepancy maps.

Arrays are [H, W, 3] uint8 RGB and [H, W] integer labels throughout.
"""

import colorsys
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

RGB = NDArray[np.uint8]
Labels = NDArray[np.int64]

FONT_PX = 14
MARGIN_PX = 8
# Dark, low ... bright, high; lightness rises steadily, so that it reads in grey as well.
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])


def palette(M: int) -> RGB:
    """Return [M, 3] colours; neighbours differ in hue and lightness, class 0 is grey."""
    colours = [(0.45, 0.45, 0.45)]
    for index in range(1, M):
        hue = index * 0.61803398875 % 1.0  # the golden angle: no two early hues are near
        lightness = (0.55, 0.40, 0.70)[index % 3]
        colours.append(colorsys.hls_to_rgb(hue, lightness, 0.85))
    return np.round(np.array(colours[:M]) * 255).astype(np.uint8)


def overlay(image: RGB, labels: Labels, colours: RGB, opacity: float = 0.55) -> RGB:
    """Tint the image by class and draw a white line where classes meet."""
    out = image * (1 - opacity) + colours[labels] * opacity
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    out[edge] = 255
    return np.round(out).astype(np.uint8)


def areas(labels: Labels, names: Sequence[str]) -> list[tuple[int, str, float]]:
    """List (index, name, share of the pixels) of the classes that occur, largest first."""
    counts = np.bincount(labels.ravel(), minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    return [(int(i), names[i], counts[i] / labels.size) for i in order if counts[i]]


def with_legend(picture: RGB, indices: Sequence[int], names: Sequence[str], colours: RGB) -> RGB:
    """Put the names of some classes, each with its colour, under a picture."""
    font = ImageFont.load_default(FONT_PX)
    width = picture.shape[1]
    line = FONT_PX + MARGIN_PX
    places, x, y = [], MARGIN_PX, MARGIN_PX
    for index in indices:
        step = FONT_PX + 3 * MARGIN_PX + int(font.getlength(names[index]))
        if x > MARGIN_PX and x + step > width:
            x, y = MARGIN_PX, y + line
        places.append((index, x, y))
        x += step
    page = Image.new("RGB", (width, picture.shape[0] + y + line), "white")
    page.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(page)
    for index, x, y in places:
        top = picture.shape[0] + y
        fill = tuple(int(c) for c in colours[index])
        draw.rectangle((x, top, x + FONT_PX, top + FONT_PX), fill=fill)
        draw.text((x + FONT_PX + MARGIN_PX, top - 1), names[index], fill="black", font=font)
    return np.asarray(page)


def side_by_side(pictures: Sequence[RGB], captions: Sequence[str]) -> RGB:
    """Put pictures of one size in a row, each with its caption on top."""
    height, width = pictures[0].shape[:2]
    step = width + MARGIN_PX
    page = Image.new("RGB", (len(pictures) * step - MARGIN_PX, height + 2 * FONT_PX), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(FONT_PX)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        page.paste(Image.fromarray(picture), (place * step, 2 * FONT_PX))
        draw.text((place * step + MARGIN_PX, FONT_PX // 2 - 2), caption, fill="black", font=font)
    return np.asarray(page)


def heat_maps(maps: NDArray[np.float32], names: Sequence[str], size: tuple[int, int]) -> RGB:
    """Draw the maps of several classes on one sheet, on one common scale.

    Args:
        maps: [m, gh, gw] finite values; the lowest of all becomes black, the highest bright.
        names: m captions.
        size: (H, W) of the image, whose shape the panels take.
    """
    span = float(maps.max() - maps.min())
    scaled = (maps - maps.min()) / (span if span > 0 else 1.0)
    stops = np.linspace(0, 1, len(HEAT))
    coloured = np.stack([np.interp(scaled, stops, HEAT[:, c]) for c in range(3)], axis=-1)
    zoom = 240 / max(size)
    panel = (max(1, round(size[1] * zoom)), max(1, round(size[0] * zoom)))
    nearest = Image.Resampling.NEAREST
    panels = [
        np.asarray(Image.fromarray(np.round(m).astype(np.uint8)).resize(panel, nearest))
        for m in coloured
    ]
    blank = np.full_like(panels[0], 255)
    sheet = []
    for start in range(0, len(panels), 4):
        row, captions = panels[start : start + 4], list(names[start : start + 4])
        empty = 4 - len(row) if len(panels) > 4 else 0
        sheet.append(side_by_side(row + [blank] * empty, captions + [""] * empty))
    return np.concatenate(sheet)


def write_labels(file: BinaryIO, labels: Labels, colours: RGB) -> None:
    """Write a label map as a palette PNG, or as a 16-bit grey PNG past 256 classes."""
    if len(colours) > 256:
        Image.fromarray(labels.astype(np.uint16)).save(file, "PNG")
        return
    picture = Image.fromarray(labels.astype(np.uint8), mode="L")
    picture.putpalette(colours.tobytes())
    picture.save(file, "PNG")


def write_png(file: BinaryIO, picture: RGB) -> None:
    """Write a picture as a PNG."""
    Image.fromarray(picture).save(file, "PNG")
