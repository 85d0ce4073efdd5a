"""The kernel of the joint bilateral upsampling on a GPU; `upsample_gpu` alone imports it.

The formula of `upsample.py`, for a tile of pixels at a time, so that no weight is ever stored.

Axes: as in `upsample.py`; S1 = 2 * radius + 1 neighbours along an axis.
"""

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

jit: Callable[[Callable[..., Any]], Any] = triton.jit
# Compiled once for all sizes, and not anew where one is a multiple of 16.
SIZES = ("K", "gh", "gw", "H", "W", "top", "rows", "S1")
kernel: Callable[[Callable[..., Any]], Any] = triton.jit(do_not_specialize=SIZES)


@jit
def load_colour(
    image: tl.tensor, size: tl.tensor, place: tl.tensor, mask: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Load the three channels, `size` apart, at the places."""
    red = tl.load(image + place, mask=mask, other=0)
    green = tl.load(image + size + place, mask=mask, other=0)
    return red, green, tl.load(image + 2 * size + place, mask=mask, other=0)


@jit
def neighbour(row: tl.tensor, column: tl.tensor, gh: tl.tensor, gw: tl.tensor) -> tl.tensor:
    """Number the cell at a row and column, or the nearest of the grid."""
    row = tl.minimum(tl.maximum(row, 0), gh - 1)
    return row * gw + tl.minimum(tl.maximum(column, 0), gw - 1)


@jit
def keep_largest(
    sums: tl.tensor, k: tl.tensor, K: tl.tensor, best: tl.tensor, label: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Update the largest sum and its index; the first of equals, and never a NaN."""
    largest = tl.max(sums, axis=0)
    index = tl.min(tl.where(sums == largest[None, :], k[:, None], K - 1), axis=0)
    return tl.maximum(best, largest), tl.where(largest > best, index, label)


@kernel
def upsample_pixels(
    low: tl.tensor,
    image: tl.tensor,
    means: tl.tensor,
    y_cell: tl.tensor,
    x_cell: tl.tensor,
    y_weights: tl.tensor,
    x_weights: tl.tensor,
    out: tl.tensor,
    K: tl.tensor,
    gh: tl.tensor,
    gw: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
    top: tl.tensor,
    rows: tl.tensor,
    scale: tl.tensor,
    floor: tl.tensor,
    S1: tl.tensor,
    LABELS: tl.constexpr,
    MAPS: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """Upsample to some rows of pixels.

    Args:
        low: [B, K, gh, gw] maps.
        image: [B, 3, H, W].
        means: [B, 3, gh, gw] mean colour of each cell.
        y_cell: [H] row of the cell that a pixel is in.
        x_cell: [W] its column.
        y_weights: [S1, H] spatial weight of each neighbour along an axis.
        x_weights: [S1, W].
        out: takes [B, rows, W] the index of the largest map if LABELS, else [B, K, rows, W] means.
        K: maps.
        gh: rows of cells.
        gw: columns of cells.
        H: rows of the image.
        W: columns of the image.
        top: the first row of pixels.
        rows: how many.
        scale: of squared differences of colour, in the exponent.
        floor: share of the spatial weight that decides where every range weight vanishes.
        S1: neighbours along an axis.
        LABELS: whether to write labels.
        MAPS: maps at a time, a power of two.
        PIXELS: pixels of a tile, a power of two; the grid is (tiles, B).
    """
    b = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < rows * W
    y, x = top + pixel // W, pixel % W
    red, green, blue = load_colour(image + b * 3 * H * W, H * W, y * W + x, inside)
    row = tl.load(y_cell + y, mask=inside, other=0) - S1 // 2
    column = tl.load(x_cell + x, mask=inside, other=0) - S1 // 2
    best = tl.full([PIXELS], float("-inf"), tl.float32)
    label = tl.zeros([PIXELS], tl.int32)
    for first in range(0, K, MAPS):
        k = first + tl.arange(0, MAPS)
        held = (k < K)[:, None] & inside[None, :]
        values = low + (b * K + k)[:, None] * (gh * gw)
        sums, total = tl.zeros([MAPS, PIXELS], tl.float32), tl.zeros([PIXELS], tl.float32)
        for s in range(S1 * S1):
            cell = neighbour(row + s // S1, column + s % S1, gh, gw)
            r, g, b_ = load_colour(means + b * 3 * gh * gw, gh * gw, cell, inside)
            r, g, b_ = red - r, green - g, blue - b_
            spatial = tl.load(y_weights + s // S1 * H + y, mask=inside, other=0)
            spatial *= tl.load(x_weights + s % S1 * W + x, mask=inside, other=0)
            weight = floor * spatial + tl.exp(scale * (r * r + g * g + b_ * b_)) * spatial
            total += weight
            sums += weight[None, :] * tl.load(values + cell[None, :], mask=held, other=0)
        if LABELS:
            sums = tl.where(held, sums, float("-inf"))
            best, label = keep_largest(sums, k, K, best, label)
        else:
            sums = tl.div_rn(sums, tl.broadcast_to(total[None, :], [MAPS, PIXELS]))
            tl.store(out + (b * K + k)[:, None] * rows * W + pixel[None, :], sums, mask=held)
    if LABELS:
        tl.store(out + b * rows * W + pixel, label.to(tl.int64), mask=inside)
