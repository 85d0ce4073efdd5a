"""Compiled loops for a CPU, with numba (the extra `fast`): a chain's scaling and first passage.

Torch's product of a few rows with a square map takes twice as long as reading the map needs, and
the ten small operators of a step as long again. Here a step is one pass over the map and one over
the rows. No threading layer of numba's is used: rows are parted among plain threads, which hold no
lock, so that forks, data loaders and several callers at once are as safe as without.

Axes: m vectors, N tokens, P: N rounded up to whole cache lines.
"""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ovss_refine.tensors.tracing import exporting

Floats = NDArray[np.float32]
Part = TypeVar("Part")
Found = TypeVar("Found")
LOOPS = "ovss_refine.tensors.loops"
# Floats of a cache line. Rows that start on one are read twice as fast.
LINE = 16
# Entries of a product below which a second thread costs more than it saves: it may have to wait for
# those of torch, which stay busy for a while after their work.
THREAD_ENTRIES = 1 << 23
# Entries of vectors to walk that do not stay in the cache beside the map's rows.
MANY = 1 << 16
# Entries of a map whose rows threads share, although they wait for each other in every round.
SHARED_ENTRIES = 1 << 22


@cache
def load_loops(module: str, compiler: str = "numba") -> ModuleType | None:
    """Import a module of compiled loops, once; None where torch has to do the work.

    That is so without the compiler. One that does not work, or has no folder for what it compiles,
    is a warning, once.
    """
    if find_spec(compiler) is None:
        return None
    try:
        return import_module(module)
    except Exception as err:  # whatever it is, torch can do the work
        warnings.warn(
            f"{compiler} is installed and does not work, so torch does its work, which is slower: "
            f"{type(err).__name__}: {err}",
            stacklevel=2,
        )
        return None


def fits(weights: Tensor) -> bool:
    """Whether the loops can read this map."""
    return weights.dtype == torch.float32 and available(weights.device)


def threads_for(parts: int, entries: int) -> int:
    """Return how many threads are worth it for so many parts of maps of so many entries."""
    return min(torch.get_num_threads(), parts) if entries >= THREAD_ENTRIES else 1


def in_threads(work: Callable[[Part], Found], parts: Sequence[Part], threads: int) -> list[Found]:
    """Do the `work`, which releases the GIL, on each of the parts."""
    if threads == 1:
        return list(map(work, parts))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))


def available(device: torch.device) -> bool:
    """Whether maps on `device` take these loops: never while torch traces a graph."""
    if exporting() or torch.compiler.is_compiling() or device.type != "cpu":
        return False
    return load_loops(LOOPS) is not None


def scaled(weights: Tensor, rounds: int, large: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scale columns, then rows, to sum to one, `rounds` times.

    Args:
        weights: [B, N, N] float32, >= 0.
        rounds: >= 1.
        large: bound on the sums of columns before they are scaled, a power of two.

    Returns:
        The factors of rows and columns, each [B, 1, N], of which only the products are determined;
        the scaled maps [B, N, P], the added columns 0.
    """
    loops = cast(Any, load_loops(LOOPS))
    B, N, _ = weights.shape
    T = weights.new_empty(B, N, -(-N // LINE) * LINE)
    r, c = weights.new_empty(B, N), T.new_empty(B, T.shape[2])
    exponent, threads = int(np.log2(large)), threads_for(B, weights.numel())

    def one(b: int) -> None:
        arrays = [x.numpy() for x in (weights[b].contiguous(), T[b], r[b], c[b])]
        shared = threads == 1 and N * N >= SHARED_ENTRIES
        scale: Callable[..., None] = _scale_shared if shared else loops.scale
        scale(*arrays, rounds, exponent)

    in_threads(one, range(B), threads)
    return r[:, None], c[:, None, :N], T


def _scale_shared(A: Floats, T: Floats, r: Floats, c: Floats, rounds: int, exponent: int) -> None:
    """Scale one map as `loops.scale` does, its rows parted among threads."""
    loops = cast(Any, load_loops(LOOPS))
    threads = torch.get_num_threads()
    parts = [slice(len(A) * i // threads, len(A) * (i + 1) // threads) for i in range(threads)]
    sums = np.zeros((threads, len(c)), np.float32)

    def begin(i: int) -> None:
        loops.add_rows(A[parts[i]], T[parts[i]], sums[i])

    def turn(i: int) -> None:
        loops.scale_rows(T[parts[i]], c, r[parts[i]], sums[i])

    def finish(i: int) -> None:
        loops.finish_rows(T[parts[i]], c, r[parts[i]])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(begin, range(threads)))
        for work in (*[turn] * (rounds - 1), finish):
            loops.scale_columns(sums.sum(axis=0), c, exponent)
            sums[:] = 0
            list(pool.map(work, range(threads)))


def first_passage(q: Tensor, T: Tensor, tau: float, max_steps: int) -> tuple[Tensor, int, bool]:
    """Walk from each row of `q` until it has reached every token.

    Args:
        q: [m, N] float32, >= 0.
        T: [N, P] padded chain, rows summing to one.
        tau: a token is reached once its mass is over `tau` times the largest, in (0, 1).
        max_steps: upper bound on steps, and the time of a token never reached.

    Returns:
        Times [m, N], interpolated between the steps around the crossing; steps taken; whether every
        token was reached.
    """
    loops = cast(Any, load_loops(LOOPS))
    (m, N), P = q.shape, T.shape[1]
    f = np.zeros((m, P), np.float32)
    f[:, :N] = q.numpy()
    time = np.full((m, N), -1, np.float32)
    if m * N >= MANY:
        return torch.from_numpy(time), *_walk_many(f, T, tau, max_steps, time)
    threads = threads_for(m, m * N * N)
    parts = [slice(m * i // threads, m * (i + 1) // threads) for i in range(threads)]

    def walk(part: slice) -> tuple[int, bool]:
        found: tuple[int, bool] = loops.walk(f[part], T.numpy(), tau, max_steps, time[part])
        return found

    steps, done = zip(*in_threads(walk, parts, threads), strict=True)
    return torch.from_numpy(time), max(steps), all(done)


def _walk_many(f: Floats, T: Tensor, tau: float, max_steps: int, time: Floats) -> tuple[int, bool]:
    """Walk as `loops.walk` does, by torch's product: vectors that fill a cache need its blocks."""
    arrive = cast(Any, load_loops(LOOPS)).arrive_each
    rows, pending, step = np.arange(len(f)), np.empty(len(f), np.float32), 0
    before = torch.from_numpy(f)
    arrive(f, f, tau, 0, rows, time, pending)
    while step < max_steps:
        left = pending > 0  # a class that is done is done no more
        before, rows, pending = before[torch.from_numpy(left)], rows[left], pending[left]
        if not len(rows):
            break
        step += 1
        after = before[:, : len(T)] @ T
        arrive(before.numpy(), after.numpy(), tau, step, rows, time, pending)
        before = after
    time[time < 0] = max_steps
    return max(step, 1), not pending.any()
