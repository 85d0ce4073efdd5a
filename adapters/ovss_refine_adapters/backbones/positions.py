"""Resize position embeddings by the rules of the released CLIP-segmentation and DINO code.

`resize_positions`: the table is resized by bicubic interpolation with the *scale factors*
(h + 0.1) / g and (w + 0.1) / g, without antialiasing. The sampling grid follows those factors, so
the result differs from resizing to the size (h, w): by several per cent on white noise.
`resize_positions_to`: to that size, as GEM, CLIP Surgery and CLIP-DINOiser do, each with a filter
of its own.

Axes: C channels, g the side of the table's square grid, (h, w) the target grid, row-major tokens.
"""

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.checks import check_choice, check_count, check_float, check_shape

# Added to the target size, so that rounding in g * (h / g) never loses a row.
OFFSET = 0.1

Skip = Literal["count", "count and square"]
Filter = Literal["bicubic", "bilinear"]


def resize_positions(
    table: Tensor, grid: tuple[int, int], *, skip: Skip, prefix: int = 1
) -> Tensor:
    """Resize a table of position embeddings to another grid.

    Args:
        table: [prefix + g * g, C] embeddings, prefix tokens first, then the patches of a square
            grid; any float dtype.
        grid: (h, w), both >= 1.
        skip: when the table is returned unchanged: "count": if it has h * w patches, in any
            arrangement (the CLIP code); "count and square": if also h = w (the DINO code).
        prefix: number of tokens that are not patches (class token, registers); they are kept.

    Returns:
        [prefix + h * w, C] in the dtype and on the device of `table`.

    Raises:
        TypeError, ValueError: on a table that is not floating-point or whose patches do not form a
            square, a grid without patches or an unknown `skip`.
    """
    check_choice("skip", skip, get_args(Skip))
    g = _check(table, grid, prefix)
    h, w = grid
    if h * w == g * g and (skip == "count" or h == w):
        return table
    factors = ((h + OFFSET) / g, (w + OFFSET) / g)
    return _interpolate(table, g, prefix, scale_factor=factors, mode="bicubic", antialias=False)


def resize_positions_to(
    table: Tensor,
    grid: tuple[int, int],
    *,
    mode: Filter = "bicubic",
    antialias: bool = False,
    prefix: int = 1,
) -> Tensor:
    """Resize a table of position embeddings to the size of another grid, half-pixel centres.

    Args:
        table: as in `resize_positions`.
        grid: as there; the table's own is an identity.
        mode: "bicubic" (GEM, CLIP-DINOiser) or "bilinear" (CLIP Surgery).
        antialias: widen the filter along an axis that gets shorter (GEM).
        prefix: as there.

    Returns:
        As `resize_positions`.

    Raises:
        TypeError, ValueError: on a table or grid as there, or an unknown `mode`.
    """
    check_choice("mode", mode, get_args(Filter))
    g = _check(table, grid, prefix)
    return _interpolate(table, g, prefix, size=grid, mode=mode, antialias=antialias)


def _check(table: Tensor, grid: tuple[int, int], prefix: int) -> int:
    """Return the side of the table's square grid, or raise."""
    sizes = check_shape("table", table, "T C")
    check_float("table", table)
    check_count("prefix", prefix, 0)
    check_count("grid[0]", grid[0], 1)
    check_count("grid[1]", grid[1], 1)
    g = math.isqrt(max(sizes["T"] - prefix, 0))
    if g == 0 or g * g != sizes["T"] - prefix:
        raise ValueError(
            f"`table` must have a square number of tokens after its prefix of {prefix}; "
            f"got {sizes['T'] - prefix}."
        )
    return g


def _interpolate(table: Tensor, g: int, prefix: int, **how: Any) -> Tensor:
    patches = table[prefix:].float().mT.reshape(1, -1, g, g)
    with torch.autocast(table.device.type, enabled=False):
        resized = F.interpolate(patches, align_corners=False, **how)
    return torch.cat([table[:prefix], resized[0].flatten(1).mT.to(table.dtype)])
