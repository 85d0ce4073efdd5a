"""The loop of the compiled joint bilateral upsampling, by numba: from cells to labels or means.

The formula of `upsample.py`, for a tile of pixels of one cell at a time, so that the weights never
leave the cache. Importing this compiles the loop, or loads it from numba's cache on disk.

Axes: as in `upsample.py`; S1 = 2 * radius + 1 neighbours along an axis; P places of a cell, as in
`tensors/cells.py`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ovss_refine.method.upsample import SPATIAL_FLOOR
from ovss_refine.tensors.exp2 import exp2

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
# Of a tile: the image, the first row and column of its cell, those after its last, the places in a
# row of a cell, and which of the places is the tile's first.
Place = tuple[int, int, int, int, int, int, int]
Loop = TypeVar("Loop", bound=Callable[..., Any])
f32, u64 = np.float32, np.uint64
# Pixels of a tile, a multiple of LANES. Not a power of two: rows that far apart share cache lines.
TILE, LANES = 160, 16
# Neighbours and maps that a pass of `_add` takes: as many as fit in registers.
TAKE_S, TAKE_K = 5, 4
FLOOR = f32(SPATIAL_FLOOR)
# Products and sums may be fused; nothing is reordered, and NaN and infinity keep their meaning.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
# Inlined, the loops see which arrays are apart, and are vectorised: a third of the time.
inlined: Callable[[Loop], Loop] = njit(**OPTIONS, forceinline=True)


@inlined
def _weigh(pixels: Floats, colours: Floats, wy: Floats, wx: Floats, n: int, w: Floats) -> None:
    """Weigh S neighbours of n pixels.

    Args:
        pixels: [3, TILE] colours.
        colours: [S, 3] those of the neighbours.
        wy: [S1, TILE] spatial weights down.
        wx: [S1, TILE] and across.
        n: pixels, a multiple of LANES.
        w: [S or more, TILE], takes the weights.
    """
    S1 = len(wy)
    for s in range(S1 * S1):
        i, j = s // S1, s % S1
        red, green, blue = colours[s, 0], colours[s, 1], colours[s, 2]
        for p in range(n):
            r, g, b = pixels[0, p] - red, pixels[1, p] - green, pixels[2, p] - blue
            w[s, p] = (exp2(-(r * r + g * g + b * b)) + FLOOR) * (wy[i, p] * wx[j, p])


@inlined
def _add(values: Floats, q: Ints, w: Floats, s: int, k: int, n: int, sums: Floats) -> None:
    """Add the neighbours s to s + 4 to the sums of the maps k to k + 3.

    Args:
        values: [gh * gw, K or more] the maps.
        q: [S or more] the cells of the neighbours.
        w: [S * TILE or more] their weights.
        s: first neighbour.
        k: first map.
        n: pixels, a multiple of LANES.
        sums: [K * TILE or more].
    """
    a, b, c, d, e = q[s], q[s + 1], q[s + 2], q[s + 3], q[s + 4]
    a0, a1, a2, a3 = values[a, k], values[a, k + 1], values[a, k + 2], values[a, k + 3]
    b0, b1, b2, b3 = values[b, k], values[b, k + 1], values[b, k + 2], values[b, k + 3]
    c0, c1, c2, c3 = values[c, k], values[c, k + 1], values[c, k + 2], values[c, k + 3]
    d0, d1, d2, d3 = values[d, k], values[d, k + 1], values[d, k + 2], values[d, k + 3]
    e0, e1, e2, e3 = values[e, k], values[e, k + 1], values[e, k + 2], values[e, k + 3]
    # Unsigned, and a constant apart: otherwise the loop is not vectorised.
    T = u64(TILE)
    i, o = u64(s) * T, u64(k) * T
    for p in range(u64(n)):
        j = i + p
        wa, wb, wc, wd, we = w[j], w[j + T], w[j + T + T], w[j + T + T + T], w[j + T + T + T + T]
        j = o + p
        sums[j] = sums[j] + a0 * wa + b0 * wb + c0 * wc + d0 * wd + e0 * we
        j += T
        sums[j] = sums[j] + a1 * wa + b1 * wb + c1 * wc + d1 * wd + e1 * we
        j += T
        sums[j] = sums[j] + a2 * wa + b2 * wb + c2 * wc + d2 * wd + e2 * we
        j += T
        sums[j] = sums[j] + a3 * wa + b3 * wb + c3 * wc + d3 * wd + e3 * we


@inlined
def _first_largest(sums: Floats, K: int, n: int, largest: Floats, index: Floats) -> None:
    """Find the first of the K largest `sums` [K or more, TILE] of each of n pixels."""
    largest[:n] = sums[0, :n]
    index[0, :n] = 0
    for k in range(1, K):
        for p in range(n):
            if sums[k, p] > largest[p]:
                largest[p] = sums[k, p]
                index[0, p] = k


@inlined
def _divide(sums: Floats, K: int, n: int) -> None:
    """Divide K sums by the next, that of the weights."""
    for k in range(K):
        for p in range(n):
            sums[k, p] /= sums[K, p]


@inlined
def _run(at: Place, p: int, size: int) -> tuple[int, int, int, int]:
    """Find place p of a tile: its pixel's row and column, and how many follow in that row.

    Returns:
        row, column, the pixels of the cell from there on, the places from there on.
    """
    _, above, left, below, right, Px, first = at
    row, column = above + (first + p) // Px, left + (first + p) % Px
    step = min(left + Px - column, size - p)
    return row, column, min(step, right - column) if row < below else 0, step


@inlined
def _gather(image: Floats, at: Place, size: int, colour: Floats) -> None:
    """Copy the colours of the pixels of a tile; places that are no pixels keep what they had."""
    p = 0
    while p < size:
        row, column, own, step = _run(at, p, size)
        for c in range(3):
            for q in range(own):
                colour[c, p + q] = image[at[0], c, row, column + q]
        p += step


@inlined
def _put(maps: Floats, at: Place, size: int, top: int, out: Floats) -> None:
    """Copy `maps` [L, TILE] of the pixels of a tile to `out` [B, L, rows, W] from row `top` on."""
    b = at[0]
    for k in range(out.shape[1]):
        p = 0
        while p < size:
            row, column, own, step = _run(at, p, size)
            for q in range(own):
                out[b, k, row - top, column + q] = maps[k, p + q]
            p += step


@inlined
def _sum(values: Floats, q: Ints, w: Floats, used: int, n: int, sums: Floats) -> None:
    """Weigh and sum `used` maps, up to a multiple of TAKE_K; arguments as in `_add`."""
    flat_w, flat_sums = w.reshape(w.size), sums.reshape(sums.size)
    for k in range(0, used, TAKE_K):
        for j in range(k, k + TAKE_K):
            for p in range(n):
                sums[j, p] = 0
        for s in range(0, len(q), TAKE_S):
            _add(values, q, flat_w, s, k, n, flat_sums)


outer: Any = njit(
    "void(int64, int64, float32[:,:,:,::1], int64[::1], int64[::1], float32[:,:,::1], "
    "float32[:,:,::1], int64[:,:,::1], float32[:,:,::1], float32[:,:,::1], int64, "
    "int64, int64, float32[:,:,:,::1])",
    cache=True,
    **OPTIONS,
)


@outer  # type: ignore[untyped-decorator]  # numba's type for it forgets the arguments
def upsample_cells(
    start: int,
    stop: int,
    image: Floats,
    y_edges: Ints,
    x_edges: Ints,
    colours: Floats,
    values: Floats,
    near: Ints,
    down: Floats,
    across: Floats,
    Px: int,
    K: int,
    argmax: int,
    out: Floats,
) -> None:
    """Upsample some cells to labels or to means.

    Args:
        start: the first cell, counted along [B, n, gw].
        stop: the cell after the last.
        image: [B, 3, H, W], in units in which the range weight is 2^-(distance^2).
        y_edges: [n + 1] of these rows of cells, see `Axis`.
        x_edges: [gw + 1].
        colours: [B, gh * gw, 3] means of the cells, in the image's units.
        values: [B, gh * gw, >= K + 1] maps, ones, and zeros up to a multiple of TAKE_K.
        near: [n, gw, >= S] the neighbours of each cell, and any up to a multiple of TAKE_S.
        down: [n or 1, S1, P] spatial weights.
        across: [gw or 1, S1, P] likewise.
        Px: places in a row of a cell.
        K: maps.
        argmax: whether to label.
        out: [B, 1, rows, W], takes the index of the first of the largest maps; or, if not
            `argmax`, [B, K, rows, W], takes the maps.
    """
    n, gw, S = near.shape
    _, S1, P = down.shape
    w, sums = np.zeros((S, TILE), f32), np.zeros((values.shape[2], TILE), f32)
    colour, around = np.zeros((3, TILE), f32), np.zeros((S1 * S1, 3), f32)
    wy, wx = np.zeros((S1, TILE), f32), np.zeros((S1, TILE), f32)
    largest, index = np.zeros(TILE, f32), np.zeros((1, TILE), f32)
    for cell in range(start, stop):
        b, y, x = cell // (n * gw), cell // gw % n, cell % gw
        for s in range(S1 * S1):
            around[s] = colours[b, near[y, x, s]]
        for first in range(0, P, TILE):
            size = min(TILE, P - first)
            lanes = (size + LANES - 1) // LANES * LANES
            at = b, y_edges[y], x_edges[x], y_edges[y + 1], x_edges[x + 1], Px, first
            _gather(image, at, size, colour)
            wy[:, :size] = down[min(y, len(down) - 1), :, first : first + size]
            wx[:, :size] = across[min(x, len(across) - 1), :, first : first + size]
            _weigh(colour, around, wy, wx, lanes, w)
            if argmax:
                _sum(values[b], near[y, x], w, K, lanes, sums)
                _first_largest(sums, K, lanes, largest, index)
                _put(index, at, size, y_edges[0], out)
            else:
                _sum(values[b], near[y, x], w, K + 1, lanes, sums)
                _divide(sums, K, lanes)
                _put(sums, at, size, y_edges[0], out)
