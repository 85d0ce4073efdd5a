"""Plots of curves, drawn with Pillow.

A plotting library would be a dependency for four plots of a dozen points. Everything is drawn four
times as large and made smaller, which smooths lines and letters alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SMOOTH = 4
WIDTH, HEIGHT = 460, 330  # of one pair of axes, pixels
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 34, 52
FONT_PX, TITLE_PX = 12, 14
LEGEND_ROW = 22
# Told apart by people who see few colours, and in grey by their marks (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8a8a8a")
MARKS = ("circle", "square", "diamond", "triangle")
TICKS = 5
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One series.

    Attributes:
        name: for the legend; lines of one name look alike in all axes.
        points: (x, y), x ascending.
    """

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Axes:
    """One pair of axes.

    Attributes:
        title: over it.
        x: what the horizontal axis means.
        y: what the vertical axis means.
        lines: at least one, with at least one point.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]


def draw_axes(plots: Sequence[Axes], title: str = "") -> NDArray[np.uint8]:
    """Draw axes side by side, up to three in a row, under one title and over one legend.

    Args:
        plots: at least one.
        title: over all of them; a warning may stand here.

    Returns:
        [H, W, 3] uint8.
    """
    names = list(dict.fromkeys(line.name for one in plots for line in one.lines))
    across = min(3, len(plots))
    down = -(-len(plots) // across)
    head = 2 * TITLE_PX if title else 0
    legend = _legend_rows(names, across * WIDTH)
    size = (across * WIDTH, head + down * HEIGHT + LEGEND_ROW * len(legend) + FONT_PX)
    page = Image.new("RGB", (size[0] * SMOOTH, size[1] * SMOOTH), "white")
    pen = Pen(ImageDraw.Draw(page))
    if title:
        pen.text((LEFT, TITLE_PX // 2), title, px=TITLE_PX)
    for place, one in enumerate(plots):
        corner = (place % across * WIDTH, head + place // across * HEIGHT)
        _axes(pen, corner, one, names)
    for row, shown in enumerate(legend):
        x, y = float(LEFT), head + down * HEIGHT + LEGEND_ROW * row + FONT_PX / 2
        for name in shown:
            pen.line([(x, y), (x + 26, y)], *_look(name, names))
            pen.mark((x + 13, y), *_look(name, names))
            pen.text((x + 32, y - FONT_PX * 0.6), name)
            x += _legend_width(name)
    return np.asarray(page.resize(size, Image.Resampling.BOX))


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Choose round numbers, 1, 2 or 5 times a power of ten apart, that include both ends."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


class Pen:
    """Draws in pixels of the finished picture.

    Args:
        onto: the enlarged picture.
    """

    def __init__(self, onto: ImageDraw.ImageDraw) -> None:
        """Remember the picture."""
        self._onto = onto

    def line(self, points: Sequence[Point], colour: str, index: int = 0, width: float = 2) -> None:
        """Draw a line; odd numbers are dashed."""
        for start, end in pairwise(points):
            for a, b in _dashes(start, end) if index % 2 else [(start, end)]:
                self._onto.line([_large(a), _large(b)], fill=colour, width=round(width * SMOOTH))

    def mark(self, at: Point, colour: str, index: int) -> None:
        """Draw the mark of a point."""
        (x, y), kind, r = _large(at), MARKS[index % len(MARKS)], 3.5 * SMOOTH
        if kind == "circle":
            self._onto.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif kind == "square":
            self._onto.rectangle((x - r, y - r, x + r, y + r), fill=colour)
        elif kind == "diamond":
            r *= 1.3
            self._onto.polygon([(x - r, y), (x, y - r), (x + r, y), (x, y + r)], fill=colour)
        else:
            self._onto.polygon([(x - r, y + r), (x, y - r), (x + r, y + r)], fill=colour)

    def text(self, at: Point, text: str, anchor: str = "la", px: int = FONT_PX) -> None:
        """Write; `anchor` as Pillow has it."""
        font = ImageFont.load_default(px * SMOOTH)
        self._onto.text(_large(at), text, fill="#222222", font=font, anchor=anchor)


def _axes(pen: Pen, corner: Point, plot: Axes, names: Sequence[str]) -> None:
    """Draw one pair of axes with its lines."""
    xs = [x for line in plot.lines for x, _ in line.points]
    ys = [y for line in plot.lines for _, y in line.points]
    across, up = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x0, x1 = corner[0] + LEFT, corner[0] + WIDTH - RIGHT
    y0, y1 = corner[1] + HEIGHT - BOTTOM, corner[1] + TOP

    def place(x: float, y: float) -> Point:
        return (
            x0 + (x - across[0]) / (across[-1] - across[0]) * (x1 - x0),
            y0 + (y - up[0]) / (up[-1] - up[0]) * (y1 - y0),
        )

    for y in up:
        level = place(across[0], y)[1]
        pen.line([(x0, level), (x1, level)], "#e2e2e2", width=1)
        pen.text((x0 - 7, level), f"{y:g}", "rm")
    for x in across:
        position = place(x, up[0])[0]
        pen.line([(position, y0), (position, y0 + 4)], "#444444", width=1)
        pen.text((position, y0 + 7), f"{x:g}", "ma")
    pen.line([(x0, y1), (x0, y0), (x1, y0)], "#444444", width=1)
    pen.text((corner[0] + LEFT, corner[1] + 8), f"{plot.title}: {plot.y}", px=TITLE_PX)
    pen.text(((x0 + x1) / 2, y0 + 26), plot.x, "ma")
    for line in plot.lines:
        points = [place(*point) for point in line.points]
        pen.line(points, *_look(line.name, names))
        for point in points:
            pen.mark(point, *_look(line.name, names))


def _look(name: str, names: Sequence[str]) -> tuple[str, int]:
    """Return the colour and the number of a series."""
    index = names.index(name)
    return COLOURS[index % len(COLOURS)], index


def _legend_width(name: str) -> float:
    return 52 + float(ImageFont.load_default(FONT_PX).getlength(name))


def _legend_rows(names: Sequence[str], width: float) -> list[list[str]]:
    rows: list[list[str]] = [[]]
    for name in names:
        used = LEFT + sum(map(_legend_width, rows[-1]))
        if rows[-1] and used + _legend_width(name) > width:
            rows.append([])
        rows[-1].append(name)
    return rows


def _dashes(start: Point, end: Point, dash: float = 6, gap: float = 4) -> list[tuple[Point, Point]]:
    length = math.dist(start, end)
    dashes, at = [], 0.0
    while at < length:
        shares = (at / length, min(at + dash, length) / length)
        a, b = (tuple(s + (e - s) * t for s, e in zip(start, end, strict=True)) for t in shares)
        dashes.append(((a[0], a[1]), (b[0], b[1])))
        at += dash + gap
    return dashes


def _large(point: Point) -> Point:
    return point[0] * SMOOTH, point[1] * SMOOTH
