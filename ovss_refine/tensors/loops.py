"""Loops that numba compiles; see `compiled`, which alone imports this.

Axes: m vectors, N tokens, P: N rounded up to whole cache lines.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]


Loop = TypeVar("Loop", bound=Callable[..., Any])
OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
exact: Callable[[Loop], Loop] = njit(**OPTIONS)
contracted: Callable[[Loop], Loop] = njit(**OPTIONS, fastmath={"contract"})
# Sums in any order, so that they are vectorised; NaN and infinity stay what they are.
fast: Callable[[Loop], Loop] = njit(**OPTIONS, fastmath={"reassoc", "contract"})
finite: Callable[[Loop], Loop] = njit(**OPTIONS, fastmath={"nnan", "nsz", "reassoc"})
TINY = np.float32(np.finfo(np.float32).tiny)
# Columns of a product at a time: as many sums as the first-level cache holds beside the map's rows.
COLUMNS = 512
# So many numbers are added one after the other, then such sums: rounding grows with the root.
SUMMANDS = 64


@finite
def largest(x: Floats) -> Any:
    """Return the largest of numbers that are all finite."""
    top = x[0]
    for j in range(len(x)):
        top = max(top, x[j])
    return top


@fast
def dot(x: Floats, y: Floats) -> Any:
    """Return the sum of products."""
    total = np.float32(0)
    for j in range(len(x)):
        total += x[j] * y[j]
    return total


@fast
def move(part: Floats, sums: Floats) -> None:
    """Add `part` to `sums`, and make it 0."""
    for j in range(len(part)):
        sums[j] += part[j]
        part[j] = 0


@fast
def add_rows(A: Floats, T: Floats, sums: Floats) -> None:
    """Add the rows of A to `sums`, and copy them into T, whose rows may be longer."""
    N = A.shape[1]
    part = np.zeros(N, np.float32)
    for i in range(len(A)):
        given, row = A[i], T[i]
        row[N:] = 0
        for j in range(N):
            row[j] = given[j]
            part[j] += given[j]
        if i % SUMMANDS == SUMMANDS - 1 or i == len(A) - 1:
            move(part, sums[:N])


@exact
def scale_columns(sums: Floats, c: Floats, exponent: int) -> None:
    """Write the factors of columns with such sums, and make the sums 0."""
    # A power of two: only the product of r and c matters, and else they may overflow.
    shift = np.float32(math.ldexp(1.0, exponent - math.frexp(largest(sums))[1]))
    for j in range(len(sums)):
        c[j] = np.float32(1) / max(sums[j] * shift, TINY)
        sums[j] = 0


@fast
def scale_rows(T: Floats, c: Floats, r: Floats, sums: Floats) -> None:
    """Write the factors of rows, the columns scaled by `c`; add the rows, so scaled, to `sums`.

    Four rows are added while the next four are multiplied by `c`, so that reading never pauses.
    """
    N, P = T.shape
    part, one, none = np.zeros(P, np.float32), np.float32(1), np.float32(0)
    fours = N - N % 4
    s0 = s1 = s2 = s3 = none
    if fours:
        s0, s1, s2, s3 = dot(T[0], c), dot(T[1], c), dot(T[2], c), dot(T[3], c)
    for i in range(0, fours, 4):
        t0, t1, t2, t3 = T[i], T[i + 1], T[i + 2], T[i + 3]
        r0, r1 = one / max(s0, TINY), one / max(s1, TINY)
        r2, r3 = one / max(s2, TINY), one / max(s3, TINY)
        r[i], r[i + 1], r[i + 2], r[i + 3] = r0, r1, r2, r3
        k = min(i + 4, fours - 4)
        n0, n1, n2, n3 = T[k], T[k + 1], T[k + 2], T[k + 3]
        s0 = s1 = s2 = s3 = none
        for j in range(P):
            part[j] += r0 * t0[j] + r1 * t1[j] + r2 * t2[j] + r3 * t3[j]
            s0 += n0[j] * c[j]
            s1 += n1[j] * c[j]
            s2 += n2[j] * c[j]
            s3 += n3[j] * c[j]
        if (i + 4) % SUMMANDS == 0:
            move(part, sums)
    for i in range(fours, N):
        row = T[i]
        r[i] = r0 = one / max(dot(row, c), TINY)
        for j in range(P):
            part[j] += r0 * row[j]
    move(part, sums)


@exact
def finish_rows(T: Floats, c: Floats, r: Floats) -> None:
    """Write the factors of rows, the columns scaled by `c`, and scale T by both."""
    for i in range(len(T)):
        row = T[i]
        r[i] = factor = np.float32(1) / max(dot(row, c), TINY)
        for j in range(len(row)):  # in this order: c alone may overflow what r brings back
            row[j] = row[j] * factor * c[j]


@exact
def scale(A: Floats, T: Floats, r: Floats, c: Floats, rounds: int, exponent: int) -> None:
    """See `compiled.scaled`; `exponent` is that of `large`."""
    sums = np.zeros(T.shape[1], np.float32)
    add_rows(A, T, sums)
    for _ in range(rounds - 1):
        scale_columns(sums, c, exponent)
        scale_rows(T, c, r, sums)
    scale_columns(sums, c, exponent)
    finish_rows(T, c, r)


@fast
def product(  # noqa: C901 - in functions of their own, its loops take a third longer
    f: Floats, T: Floats, out: Floats, rows: NDArray[Any], count: int
) -> None:
    """Write f T into `out` for the first `count` of `rows`, eight rows of T at a time."""
    N, P = T.shape
    for a in range(0, P, COLUMNS):
        n = min(COLUMNS, P - a)
        parts = np.zeros((count, n), np.float32)
        for x in range(count):
            out[rows[x], a : a + n] = 0
        i = 0
        while i + 8 <= N:
            t0, t1, t2, t3 = T[i, a:], T[i + 1, a:], T[i + 2, a:], T[i + 3, a:]
            t4, t5, t6, t7 = T[i + 4, a:], T[i + 5, a:], T[i + 6, a:], T[i + 7, a:]
            for x in range(count):
                o, g = parts[x], f[rows[x], i:]
                g0, g1, g2, g3, g4, g5, g6, g7 = g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]
                for j in range(n):
                    low = g0 * t0[j] + g1 * t1[j] + g2 * t2[j] + g3 * t3[j]
                    o[j] += low + g4 * t4[j] + g5 * t5[j] + g6 * t6[j] + g7 * t7[j]
            i += 8
            if i % (8 * SUMMANDS) == 0:
                for x in range(count):
                    move(parts[x], out[rows[x], a : a + n])
        while i < N:
            t0 = T[i, a:]
            for x in range(count):
                o, g0 = parts[x], f[rows[x], i]
                for j in range(n):
                    o[j] += g0 * t0[j]
            i += 1
        for x in range(count):
            move(parts[x], out[rows[x], a : a + n])


@fast
def arrive(before: Floats, after: Floats, tau: Any, step: int, time: Floats) -> Any:
    """Scale `after` to a largest entry of 1, write new times; count those left, which are < 0."""
    top, now, one, none = largest(after), np.float32(step), np.float32(1), np.float32(0)
    pending = none
    for j in range(len(time)):
        after[j] /= top
        new = after[j] > tau and time[j] < none
        share = (tau - before[j]) / (after[j] - before[j]) - one if step else none
        time[j] = now + share if new else time[j]
        pending += one if time[j] < none else none
    return pending


@exact
def arrive_each(
    before: Floats, after: Floats, tau: float, step: int, rows: Any, time: Floats, pending: Floats
) -> None:
    """Do `arrive` for vectors whose times are those `rows` of `time`."""
    for x in range(len(rows)):
        pending[x] = arrive(before[x], after[x], np.float32(tau), step, time[rows[x]])


@fast
def walk(f: Floats, T: Floats, tau: Any, max_steps: int, time: Floats) -> tuple[int, bool]:
    """See `compiled.first_passage`; `f` is overwritten, `time`, -1 at first, written."""
    m, tau = len(f), np.float32(tau)
    other, rows, pending = np.zeros_like(f), np.arange(m), np.empty(m, np.float32)
    arrive_each(f, f, tau, 0, rows, time, pending)
    step, count = 0, m
    while step < max_steps:
        left = 0
        for x in range(count):  # a class that is done is done no more
            if pending[rows[x]]:
                rows[left] = rows[x]
                left += 1
        count = left
        if not count:
            break
        step += 1
        product(f, T, other, rows, count)
        for x in range(count):
            pending[rows[x]] = arrive(f[rows[x]], other[rows[x]], tau, step, time[rows[x]])
        f, other = other, f
    for k in range(m):
        for j in range(time.shape[1]):
            if time[k, j] < 0:
                time[k, j] = max_steps
    return max(step, 1), pending.sum() == 0
