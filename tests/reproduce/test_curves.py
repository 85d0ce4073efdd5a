"""Plots: all points, distinct series, one legend, no global state."""

import io
import sys

import pytest
from PIL import Image

from ovss_refine.reproduce.curves import COLOURS, Panel, make_figure, write_plot

pytest.importorskip("matplotlib", reason="plots need matplotlib")

RISING, FALLING = [(0, 10), (50, 20), (100, 15)], [(0, 9), (100, 1)]


def panel(title="voc21", **lines):
    return Panel(title, "time step", "mIoU (%)", lines or {"M.V.": RISING})


def test_points_and_names_are_plotted():
    (axes,) = make_figure([panel(**{"M.V.": RISING, "O.P.": FALLING})], "A title").axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [list(point) for point in points] for points in (RISING, FALLING)
    ]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == (
        *("voc21", "time step", "mIoU (%)"),
    )
    assert axes.figure.get_suptitle() == "A title"


def test_series_look_the_same_in_all_panels_and_are_distinct():
    names = [f"series {i}" for i in range(len(COLOURS))]
    lines = {name: RISING for name in names}
    backwards = {name: RISING for name in reversed(names)}
    figure = make_figure([panel("one", **lines), panel("two", **backwards)], "")
    one, two = (
        [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines]
        for axes in figure.axes
    )
    assert one == two[::-1]
    assert len({colour for colour, _, _ in one}) == len(names)
    assert len({(marker, dash) for _, marker, dash in one}) == len(names)  # in greyscale
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert [handle.get_color() for handle in legend.legend_handles] == list(COLOURS)


def size(count):
    file = io.BytesIO()
    write_plot(file, [panel()] * count, "A title")
    with Image.open(file) as image:
        assert image.format == "PNG"
        return image.size


def test_more_than_three_panels_take_several_rows():
    (one, low), (three, same), (four, high) = size(1), size(3), size(4)
    assert three == four
    assert three in (3 * one - 1, 3 * one)  # older releases of matplotlib round down
    assert low == same < high


def test_pyplot_is_not_imported():
    before = "matplotlib.pyplot" in sys.modules
    write_plot(io.BytesIO(), [panel()], "")
    assert ("matplotlib.pyplot" in sys.modules) == before
