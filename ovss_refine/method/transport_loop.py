"""The loop of entropic transport, by numba: one class at a time.

Only the seeds of a class send anything, and a patch is a seed of one class at most: an update of
all classes together reads the map once. A row of the kernel is formed again for each update, which
takes no longer than reading a stored one.

Axes: N patches.
"""

from typing import Any

import numpy as np

from ovss_refine.tensors.exp2 import exp2
from ovss_refine.tensors.loops import SUMMANDS, Floats, contracted, dot, fast, move


@contracted
def form(given: Floats, rate: Any, row: Floats) -> None:
    """Write 2^(rate * given) into `row`."""
    for j in range(len(row)):
        row[j] = exp2(rate * given[j])


@fast
def send(amount: Any, row: Floats, given: Floats, mass: Floats, cost: Floats) -> None:
    """Add a row's mass, and what it costs, to those that arrive."""
    for j in range(len(row)):
        moved = amount * row[j]
        mass[j] += moved
        cost[j] += moved * given[j]


@fast
def transport(
    q: Floats, A: Floats, rate: Any, iterations: int, tolerance: Any, D: Floats
) -> tuple[int, bool]:
    """Transport one class onto the uniform map.

    Args:
        q: [N] >= 0, its distribution.
        A: [N, N] the cost, not scaled.
        rate: of the kernel 2^(rate * A).
        iterations: upper bound on updates, >= 1.
        tolerance: relative change of every row's factor at which it is settled.
        D: [N], takes the cost that is carried into each patch, in the units of A.

    Returns:
        Updates taken; whether the factors are settled.
    """
    N = len(q)
    rows = np.flatnonzero(q)
    rate, tolerance, share = np.float32(rate), np.float32(tolerance), np.float32(1 / N)
    u, v, row = np.zeros(len(rows), np.float32), np.ones(N, np.float32), np.empty(N, np.float32)
    sums = np.zeros((4, N), np.float32)
    mass, cost, part, part_cost = sums[0], sums[1], sums[2], sums[3]
    step, settled = 0, False
    while step < iterations and not settled:
        step += 1
        settled = True
        mass[:], cost[:] = 0, 0
        for x in range(len(rows)):
            given = A[rows[x]]
            form(given, rate, row)
            new = q[rows[x]] / dot(row, v)
            settled = settled and abs(new - u[x]) <= tolerance * new
            u[x] = new
            send(new, row, given, part, part_cost)
            if x % SUMMANDS == SUMMANDS - 1 or x == len(rows) - 1:
                move(part, mass)
                move(part_cost, cost)
        for j in range(N):
            v[j] = share / mass[j]
    for j in range(N):
        D[j] = cost[j] * v[j]
    return step, settled
