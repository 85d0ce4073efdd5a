"""Plots: round ticks, everything inside the axes, series that can be told apart."""

import numpy as np
import pytest

from ovss_refine.reproduce.plot import COLOURS, HEIGHT, WIDTH, Axes, Line, draw_axes, ticks


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 800, [0, 200, 400, 600, 800]),
        (0.1, 0.9, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (41.3, 44.9, [41, 42, 43, 44, 45]),
        (1, 10, [0, 2, 4, 6, 8, 10]),
        (-3e-5, 2e-5, [-3e-5, -2e-5, -1e-5, 0, 1e-5, 2e-5]),
    ],
)
def test_ticks(low, high, wanted):
    assert ticks(low, high) == pytest.approx(wanted)


def test_ticks_of_a_single_value():
    made = ticks(20, 20)
    assert made[0] <= 19.6
    assert made[-1] >= 20.4


def rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def places(page, colour):
    """Where a colour is, of pixels that no smoothing has touched: [n, 2] rows and columns."""
    return np.argwhere((page == rgb(colour)).all(-1))


def test_points_are_where_they_belong():
    line = [(0, 10), (50, 20), (100, 15)]
    page = draw_axes([Axes("voc21", "time step", "mIoU (%)", [Line("M.V.", line)])])
    found = places(page[:HEIGHT], COLOURS[0])
    top = found[found[:, 0] == found[:, 0].min()]
    left, right = found[:, 1].min(), found[:, 1].max()
    assert abs(top[:, 1].mean() - (left + right) / 2) <= 1  # the peak is in the middle
    assert right - left > WIDTH * 0.8
    assert found[:, 0].max() - found[:, 0].min() > HEIGHT * 0.7


def test_series_have_colours_of_their_own_in_all_axes():
    names = ["a", "b", "c"]
    lines = [Line(name, [(0, i), (1, i + 0.5)]) for i, name in enumerate(names)]
    page = draw_axes([Axes("one", "x", "y", lines), Axes("two", "x", "y", lines[::-1])])
    assert page.dtype == np.uint8
    assert page.shape[1] == 2 * WIDTH
    for i in range(3):
        columns = places(page[:HEIGHT], COLOURS[i])[:, 1]
        assert (columns < WIDTH).any()
        assert (columns >= WIDTH).any()
        assert len(places(page[HEIGHT:], COLOURS[i]))  # the legend
    assert not len(places(page, COLOURS[3]))


def test_many_axes_take_rows_and_the_title_a_line():
    one = Axes("one", "x", "y", [Line("a", [(0, 1), (1, 2)])])
    plain, titled = draw_axes([one] * 4), draw_axes([one] * 4, "Warning")
    assert plain.shape[1] == 3 * WIDTH
    assert plain.shape[0] >= 2 * HEIGHT
    assert titled.shape[0] > plain.shape[0]
    assert (titled[: titled.shape[0] - plain.shape[0]] < 128).any()
