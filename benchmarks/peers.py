"""The solvers beside what a good engineer would write in ten lines with the best library.

    pip install -e '.[fast,bench]'
    python benchmarks/peers.py [--threads 1 2] [--json OUT]

On the CPU, from attention and seeds to the map of each class; every peer's map is compared with
ours before it is timed. All run in turns, and the median counts.
- maximum velocity: torch for all classes at once, scaling as two vectors, one product a step;
- its scaling alone: two products a round, with and without forming the chain, which ours does;
- optimal path: torch for all classes at once, with our stopping test and with all 50 updates, and
  POT's `ot.sinkhorn` for all classes at once, 50 updates;
- a sweep over N and m of the first; batches against their images one by one; and whole calls on the
  built-in photographs (N = 1369, 375 x 500), with and without a neighbour that keeps a core busy.
Attention is synthetic, or a real transformer's (the photographs).
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from machine import machine
from ovss_refine import Attention, Refiner, refine
from ovss_refine.examples import read_example
from ovss_refine.method.markov import doubly_stochastic, first_passage
from ovss_refine.method.modes import MODES
from ovss_refine.method.transport import optimal_path
from ovss_refine.tensors import compiled
from problems import problem

EPSILON, TAU, UPDATES = 0.1, 0.3, 50
PHOTOGRAPHS = ("astronaut", "coffee")
Row = dict[str, float]


def scaled(A: Tensor) -> tuple[Tensor, Tensor]:
    """Scale rows and columns by two vectors, in two products a round."""
    c = 1 / A.sum(dim=0)
    r = 1 / (A @ c)
    for _ in range(14):
        c = 1 / (r @ A)
        r = 1 / (A @ c)
    return r, c


def chain(A: Tensor) -> Tensor:
    """Scale, and form the chain."""
    r, c = scaled(A)
    return r[:, None] * A * c


def walk(q: Tensor, A: Tensor) -> Tensor:
    """Walk the chain with all classes at once."""
    T = chain(A)
    f = q / q.amax(dim=1, keepdim=True)
    pending = f <= TAU
    time = pending * 100.0
    for t in range(1, 101):
        before, f = f, f @ T
        f = f / f.amax(dim=1, keepdim=True)
        crossed = pending & (f > TAU)
        time = torch.where(crossed, t - 1 + (TAU - before) / (f - before), time)
        pending = pending & ~crossed
        if not pending.any():
            break
    return 1 / (1 + time)


def sinkhorn(q: Tensor, A: Tensor, *, stop: bool) -> Tensor:
    """Transport all classes at once."""
    C = A / A.max()
    K = (-C / EPSILON).exp()
    u, v = torch.zeros_like(q), torch.ones_like(q)
    for _ in range(UPDATES):
        before, u = u, q / (v @ K.T)
        v = 1 / (q.shape[1] * (u @ K))
        if stop and ((u - before).abs() <= 1e-6 * u).all():
            break
    return (u @ (K * C)) * v


def pot(q: Tensor, A: Tensor) -> Tensor:
    """Transport all classes at once with POT: from the uniform map, which all share, to each."""
    import ot

    C = A / A.max()
    uniform = torch.full((len(A),), 1 / len(A))
    _, log = ot.sinkhorn(
        uniform, q.T.contiguous(), C.T.contiguous(), EPSILON, numItermax=UPDATES, stopThr=0,
        warn=False, log=True,
    )  # fmt: skip
    u, v, K = log["u"], log["v"], (-C / EPSILON).exp()
    return u.T * (v.T @ (K * C))


def rounds(calls: dict[str, Callable[[], object]], repeats: int) -> Row:
    """Return the median milliseconds of each call, all in turns after a warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def check(name: str, peer: Tensor, ours: Tensor, most: float) -> float:
    """Return the largest difference as a fraction of the range of `ours`, or stop."""
    off = float((peer - ours).abs().max() / (ours.max() - ours.min()))
    if not off <= most:
        raise SystemExit(f"{name}: the peer's map differs by {off:.1e} of the range")
    return off


def without_numba(call: Callable[[], object]) -> Callable[[], object]:
    """Make `call` do with torch."""

    def run() -> object:
        with patch.object(compiled, "load_loops", lambda _: None):
            return call()

    return run


def sources(logits: Tensor, attention: Attention, image: Tensor, **extra: object) -> Tensor:
    """Return the distributions [m, N] over seeds of the classes that the refinement keeps."""
    result = refine(logits, attention, image, **extra)  # type: ignore[arg-type]
    seeds = result.seeds.flatten(1)[result.kept]
    q = torch.rand(seeds.shape, generator=torch.Generator().manual_seed(0))
    return q.masked_fill(~seeds, -torch.inf).softmax(dim=1)


def solver_problems() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Iterate over names, sources [m, N] and maps [N, N]."""
    for side, m in ((33, 3), (33, 20), (64, 3), (64, 20)):
        logits, attention, image = problem((side, side), m, (64, 64), "cpu")
        q = sources(logits, attention, image)
        yield f"N = {side * side}, {len(q)} classes", q, dense(attention)
    for name in PHOTOGRAPHS:
        one = read_example(name)
        q = sources(one.logits, one.attention, one.image, prompt_index=one.prompt_index)
        yield f"{name}, N = {q.shape[1]}, {len(q)} classes", q, dense(one.attention)


def dense(attention: Attention) -> Tensor:
    """Return one map [N, N]."""
    return torch.cat([block[0] for _, block in attention.blocks()])


def solver_row(name: str, q: Tensor, A: Tensor, repeats: int) -> dict[str, object]:
    """Compare both solvers on one problem."""
    held = Attention(A, (1, len(A))).batched()

    def velocity() -> Tensor:
        scaled = doubly_stochastic(held, 15, many_steps=True)
        return first_passage(q[None], scaled, TAU, 100).D[0]

    def path() -> Tensor:
        return optimal_path(q[None], held, EPSILON, UPDATES).D[0]

    calls: dict[str, Callable[[], object]] = {
        "maximum velocity": velocity,
        "maximum velocity, no numba": without_numba(velocity),
        "maximum velocity, ten lines": lambda: walk(q, A),
        "scaling": lambda: doubly_stochastic(held, 15, many_steps=True),
        "scaling, ten lines, vectors": lambda: scaled(A),
        "scaling, ten lines, chain": lambda: chain(A),
        "optimal path": path,
        "optimal path, no numba": without_numba(path),
        "optimal path, ten lines": lambda: sinkhorn(q, A, stop=True),
        "optimal path, ten lines, all updates": lambda: sinkhorn(q, A, stop=False),
        "optimal path, POT": lambda: pot(q, A),
    }
    return {
        "differences": {
            "maximum velocity": check(name, walk(q, A), velocity(), 1e-3),
            "optimal path": check(name, sinkhorn(q, A, stop=True), path(), 1e-5),
            "POT": check(name, pot(q, A), path(), 1e-5),
        },
        "milliseconds": rounds(calls, repeats),
    }


def sweep(repeats: int) -> Iterator[tuple[str, Row]]:
    """Compare maximum velocity at every size; a single time at the largest."""
    for side in (16, 24, 32, 48, 64, 128):
        N = side * side
        _, attention, _ = problem((side, side), 1, (8, 8), "cpu")
        A = dense(attention)
        held = Attention(A, (1, N)).batched()
        for m in (1, 8, 32, 160) if N < 10_000 else (3, 20):
            q = torch.rand(m, N, generator=torch.Generator().manual_seed(m)) ** 20
            q = q / q.sum(dim=1, keepdim=True)

            def ours(q: Tensor = q, held: Attention = held) -> Tensor:
                scaled = doubly_stochastic(held, 15, many_steps=True)
                return first_passage(q[None], scaled, TAU, 100).D[0]

            name = f"N = {N}, {m} classes"
            check(name, walk(q, A), ours(), 2e-3)
            calls = {"ours": ours, "ten lines": lambda q=q, A=A: walk(q, A)}
            few = 1 if N > 10_000 else repeats
            yield name, rounds(calls, few)


def batch_row(mode: str, repeats: int) -> Row:
    """Compare 8 images of 2 to 9 classes in a batch with the same one by one."""
    logits, attention, image = problem((32, 32), 21, (375, 500), "cpu", batch=8)
    generator = torch.Generator().manual_seed(1)
    for b in range(8):
        logits[b, torch.randperm(21, generator=generator)[: 19 - b]] -= 40
    refiner = Refiner(mode)  # type: ignore[arg-type]
    whole = refiner(logits, attention, image).labels
    one_by_one = lambda: [refiner(logits[b], attention[b], image[b]).labels for b in range(8)]  # noqa: E731
    if not torch.equal(whole, torch.stack(one_by_one())):
        raise SystemExit(f"{mode}: a batch differs from its images")
    return rounds(
        {"batch": lambda: refiner(logits, attention, image), "one by one": one_by_one}, repeats
    )


def whole_calls(repeats: int) -> dict[str, Row]:
    """Time whole refinements of the photographs at 375 x 500, in every mode."""
    found: dict[str, Row] = {}
    for name in PHOTOGRAPHS:
        one = read_example(name)
        image = torch.tensor(one.image).permute(2, 0, 1)[None] / 255
        image = F.interpolate(image, (375, 500), mode="bilinear", antialias=True)[0].clamp(0, 1)
        given = one.logits, one.attention, image
        calls = {
            mode: partial(Refiner(mode), *given, prompt_index=one.prompt_index) for mode in MODES
        }
        found[name] = rounds(calls, 3 * repeats)
    return found


@contextmanager
def neighbour() -> Iterator[None]:
    """Keep one core busy."""
    process = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    process.start()
    time.sleep(1)
    try:
        yield
    finally:
        process.kill()
        process.join()


def _spin() -> None:
    while True:
        pass


def main() -> None:
    """Check and time everything, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    report: dict[str, object] = {"machine": machine("cpu")}
    for threads in args.threads:
        torch.set_num_threads(threads)
        report[f"{threads} threads"] = {
            "solvers": {
                name: solver_row(name, q, A, args.repeats) for name, q, A in solver_problems()
            },
            "whole calls": whole_calls(args.repeats),
            "batches": {mode: batch_row(mode, args.repeats) for mode in MODES},
        }
        with neighbour():
            report[f"{threads} threads, a busy neighbour"] = whole_calls(args.repeats)
    torch.set_num_threads(args.threads[0])
    report[f"sweep, {args.threads[0]} threads"] = dict(sweep(args.repeats))
    text = json.dumps(report, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
