"""Plots of curves, drawn with matplotlib where it is installed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from ovss_refine.registry import require

# Distinct for colour-blind readers (Okabe and Ito, 2008); markers and dashes differ in greyscale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8A8A8A")
MARKERS, DASHES = "osD^", ("-", "--")
COLUMNS, SIZE = 3, (4.6, 3.4)  # panels in a row, size of each in inches
DPI = 120


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes."""

    title: str
    x: str  # label of the horizontal axis
    y: str  # label of the vertical axis
    # Points (x, y) of each series by name; a series looks the same in all panels.
    lines: dict[str, list[tuple[float, float]]]


def missing_library() -> str:
    """Return what to install for plots; "": nothing."""
    try:
        require("matplotlib", "plots")
    except ModuleNotFoundError as err:
        return str(err)
    return ""


def make_figure(panels: Sequence[Panel], title: str) -> Any:
    """Plot panels, up to three in a row, with one title and one legend.

    Returns:
        A `matplotlib.figure.Figure`, independent of pyplot.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    size = (SIZE[0] * columns, SIZE[1] * rows + 1)
    figure = require("matplotlib.figure", "plots").Figure(size, DPI, layout="constrained")
    figure.suptitle(title)
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    shown: dict[str, Any] = {}
    for place, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        axes.grid(axis="y", color="#E2E2E2")
        axes.spines[["top", "right"]].set_visible(False)
        for name, points in panel.lines.items():
            index = names.index(name)
            (shown[name],) = axes.plot(
                *zip(*points, strict=True),
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                linestyle=DASHES[index // len(MARKERS) % len(DASHES)],
            )
    handles = [shown[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=columns + 1)
    return figure


def write_plot(file: BinaryIO, panels: Sequence[Panel], title: str) -> None:
    """Write `make_figure` as a PNG."""
    make_figure(panels, title).savefig(file, format="png")
