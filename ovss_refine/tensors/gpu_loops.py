"""Kernels that Triton compiles for a GPU; see `gpu_chain`, which alone imports this.

Axes: B maps, N tokens, m vectors; G groups of rows of a map, group g has the rows g, g + G, ...
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

jit: Callable[[Callable[..., Any]], Any] = triton.jit
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
EXPONENT = tl.constexpr(0x7F800000)  # the bits of a float32 that hold its exponent
NAN = tl.constexpr(tl.PropagateNan.ALL)


@jit
def reciprocal(sums: tl.tensor) -> tl.tensor:
    """Return 1 / sums, and a finite number for a sum of 0, as `markov` does."""
    return tl.div_rn(1.0, tl.maximum(sums, TINY, propagate_nan=NAN))


@jit
def column_factors(
    sums: tl.tensor, b: tl.tensor, j: tl.tensor, N: tl.tensor, LARGE: tl.constexpr
) -> tl.tensor:
    """Return the factors of all columns, of map `b`'s sums; 0 past the last."""
    given = tl.load(sums + b * N + j, mask=j < N, other=0)
    # The power of two at or under the largest: only the product of r and c matters, and else they
    # may overflow.
    power = (tl.max(given).to(tl.int32, bitcast=True) & EXPONENT).to(tl.float32, bitcast=True)
    return tl.where(j < N, reciprocal(given * tl.div_rn(LARGE / 2, power)), 0.0)


@jit
def scale_round(
    A: tl.tensor,
    sums: tl.tensor,
    parts: tl.tensor,
    N: tl.tensor,
    G: tl.tensor,
    LARGE: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Scale columns, then rows, to sum to one; add up the columns of the rows scaled.

    One pass over the map: a row is held while its factor is found.

    Args:
        A: [B, N, N] weights, any float type.
        sums: [B, N] sums of the columns of diag(r) A, r of the round before.
        parts: [B, G, N] takes the same of this round, of each group of rows.
        N: tokens.
        G: groups; the grid is (G, B).
        LARGE: bound on the sums of columns before they are scaled, a power of two.
        WIDTH: N or more, a power of two.
    """
    g, b = tl.program_id(0), tl.program_id(1)
    j = tl.arange(0, WIDTH)
    c = column_factors(sums, b, j, N, LARGE)
    total = tl.zeros([WIDTH], tl.float32)
    for i in range(g, N, G):
        row = tl.load(A + (b.to(tl.int64) * N + i) * N + j, mask=j < N, other=0).to(tl.float32)
        total += reciprocal(tl.sum(row * c)) * row
    tl.store(parts + (b * G + g).to(tl.int64) * N + j, total, mask=j < N)


@jit
def finish_scaling(
    A: tl.tensor,
    sums: tl.tensor,
    r: tl.tensor,
    c: tl.tensor,
    T: tl.tensor,
    N: tl.tensor,
    G: tl.tensor,
    LARGE: tl.constexpr,
    FORM: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Do the last round: write the factors r and c, [B, N], and T = diag(r) A diag(c) if FORM."""
    g, b = tl.program_id(0), tl.program_id(1)
    j = tl.arange(0, WIDTH)
    factors = column_factors(sums, b, j, N, LARGE)
    if g == 0:
        tl.store(c + b * N + j, factors, mask=j < N)
    for i in range(g, N, G):
        start = (b.to(tl.int64) * N + i) * N
        row = tl.load(A + start + j, mask=j < N, other=0).to(tl.float32)
        factor = reciprocal(tl.sum(row * factors))
        tl.store(r + b * N + i, factor)
        if FORM:  # in this order: a product of the two factors may overflow where the row is 0
            tl.store(T + start + j, row * factor * factors, mask=j < N)


@jit
def arrive(
    before: tl.tensor,
    after: tl.tensor,
    top_before: tl.tensor,
    top_after: tl.tensor,
    time: tl.tensor,
    left: tl.tensor,
    N: tl.tensor,
    whole: tl.tensor,
    tau: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Write the times of patches that a step has reached.

    The walks are not scaled: rows of a chain sum to one, so a walk keeps its mass, and its largest
    entry is at least an N-th of that. A program finds its walk's largest entry for itself.

    Args:
        before: [B * m, N] walks before the step.
        after: the same after it.
        top_before: [B * m] the largest entry of each walk before the step.
        top_after: takes the same after it.
        time: [B * m, N] times, negative where not reached.
        left: [B * m, parts] takes how many of a part are not reached.
        N: tokens.
        whole: steps before this one, a float.
        tau: a patch is reached once its mass is over `tau` times the largest.
        BLOCK: entries of a part; the grid is (B * m, parts).
    """
    k, part = tl.program_id(0), tl.program_id(1)
    start = k.to(tl.int64) * N
    tops = tl.zeros([BLOCK], tl.float32)
    for first in range(0, N, BLOCK):
        j = first + tl.arange(0, BLOCK)
        new = tl.load(after + start + j, mask=j < N, other=0)
        tops = tl.maximum(tops, new, propagate_nan=NAN)
    top = tl.max(tops)
    if part == 0:
        tl.store(top_after + k, top)
    j = part * BLOCK + tl.arange(0, BLOCK)
    new = tl.div_rn(tl.load(after + start + j, mask=j < N, other=0), top)
    old = tl.load(before + start + j, mask=j < N, other=0)
    old = tl.div_rn(old, tl.load(top_before + k))
    reached = tl.load(time + start + j, mask=j < N, other=0)
    crossed = (reached < 0) & (new > tau)
    reached = tl.where(crossed, whole + tl.div_rn(tau - old, new - old), reached)
    tl.store(time + start + j, reached, mask=j < N)
    tl.store(left + k * tl.num_programs(1) + part, tl.sum((reached < 0).to(tl.int32)))


if torch.cuda.is_available():  # so that a Triton that does not work is known now, and not later
    none = torch.zeros(1, dtype=torch.int32, device="cuda")
    arrive[1, 1](*torch.ones(5, 1, dtype=torch.float32, device="cuda"), none, 1, 0.0, 0.5, BLOCK=16)
