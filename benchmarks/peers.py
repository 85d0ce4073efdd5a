"""What a user would run instead of each stage, checked for equal results before it is timed.

    pip install -e '.[bench]'
    python benchmarks/peers.py [--json OUT]

On the CPU, N = 4096 patches, 21 classes, 512 x 512 pixels:
- optimal path: POT's `ot.sinkhorn`, torch backend, float32, class by class, 50 iterations;
- maximum velocity: the chain as an explicit matrix, multiplied by one class's vector per step;
- both are checked in float64 and timed in float32;
- its two parts, scaling and walk, as a good engineer writes them: ten lines of torch for all the
  classes at once, at N = 1089 and 4096 with 3 and 20 of them, on synthetic attention, and on a real
  transformer's (the built-in examples, N = 1369);
- upsampling: a bilateral filter over a window of 3 sigma in pixels on the bilinearly upsampled map,
  as in M2N2; and kornia's `joint_bilateral_blur`, 17 x 17 window, on the same map.
The upsamplings differ from ours by design (distance in pixels, colours of pixels instead of cells):
the fraction of equal labels is reported.
"""

import argparse
import json
import unittest.mock
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from machine import machine
from ovss_refine import (
    Attention,
    RefineConfig,
    RefineResult,
    joint_bilateral_upsample,
    refine,
)
from ovss_refine.config import PAPER
from ovss_refine.examples import read_example
from ovss_refine.method.markov import doubly_stochastic, first_passage
from ovss_refine.method.modes import ModeName
from ovss_refine.tensors import compiled
from problems import Problem, problem
from timing import floor, rates, seconds

N, M, SIZE = 4096, 21, (512, 512)
EPSILON, TAU = 0.1, 0.3


def sources(result: RefineResult, logits: Tensor) -> Tensor:
    """Compute the distributions [m, N] of the kept classes from the public result."""
    P = logits.softmax(dim=0).flatten(1)[result.kept]
    return P.masked_fill(~result.seeds.flatten(1)[result.kept], -torch.inf).softmax(dim=1)


def pot(q: Tensor, attention: Tensor) -> Tensor:
    """Solve the optimal path class by class with POT."""
    import ot

    cost = attention / attention.max()
    target = torch.full((len(cost),), 1 / len(cost))
    paths = []
    for source in q:
        plan = ot.sinkhorn(source, target, cost, EPSILON, numItermax=50, stopThr=0, warn=False)
        paths.append((plan * cost).sum(dim=0))
    return torch.stack(paths)


def class_by_class(q: Tensor, attention: Tensor) -> Tensor:
    """Walk the chain class by class, rewriting its matrix in every round of scaling."""
    T = attention
    for _ in range(15):
        T = T / T.sum(dim=0, keepdim=True)
        T = T / T.sum(dim=1, keepdim=True)
    velocities = []
    for f in q:
        f = f / f.max()
        pending = f <= TAU
        time = pending * 100.0
        for t in range(1, 101):
            if not bool(pending.any()):
                break
            before, f = f, f @ T
            f = f / f.max()
            crossed = pending & (f > TAU)
            time = torch.where(crossed, t - 1 + (TAU - before) / (f - before), time)
            pending = pending & ~crossed
        velocities.append(1 / (1 + time))
    return torch.stack(velocities)


def scaled(A: Tensor) -> tuple[Tensor, Tensor]:
    """Scale rows and columns by two vectors, in two products a round."""
    c = 1 / A.sum(dim=0)
    r = 1 / (A @ c)
    for _ in range(14):
        c = 1 / (r @ A)
        r = 1 / (A @ c)
    return r, c


def all_classes(q: Tensor, A: Tensor) -> Tensor:
    """Walk the chain with all classes at once."""
    r, c = scaled(A)
    T = r[:, None] * A * c
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


def loop_rows(repeats: int) -> dict[str, object]:
    """Compare scaling and walk with torch's ten lines, with and without the compiled loops."""
    problems: dict[str, tuple[Tensor, Tensor]] = {}
    for side, m in ((33, 3), (33, 20), (64, 3), (64, 20)):
        logits, attention, _ = problem((side, side), m, (64, 64), "cpu")
        q = logits.softmax(dim=0).flatten(1) ** 8
        weights = torch.cat([block[0] for _, block in attention.blocks()])
        problems[f"N = {side * side}, {m} classes"] = q / q.sum(1, keepdim=True), weights
    for name in ("astronaut", "coffee"):
        example = read_example(name)
        result = refine(
            example.logits, example.attention, example.image, prompt_index=example.prompt_index
        )
        q = result.seeds.flatten(1)[result.kept].float()
        weights = torch.cat([block[0] for _, block in example.attention.blocks()])
        problems[f"{name}, N = 1369, {len(q)} classes"] = q / q.sum(1, keepdim=True), weights
    rows: dict[str, object] = {}
    for name, (q, A) in problems.items():
        held = Attention(A, (1, len(A))).batched()

        def ours(q: Tensor = q, held: Attention = held) -> Tensor:
            chain = doubly_stochastic(held, 15, many_steps=True)
            return first_passage(q[None], chain, TAU, 100).D[0]

        def scaling(held: Attention = held) -> None:
            doubly_stochastic(held, 15, many_steps=True)

        off = distance(all_classes(q, A), ours())
        if off > 1e-3:
            raise SystemExit(f"{name}: the ten lines differ by {off:.1e} of the range")
        row = {"difference": off}
        timed: dict[str, Callable[[], object]] = {
            "ours": ours,
            "ten lines": lambda q=q, A=A: all_classes(q, A),
            "scaling": scaling,
            "scaling, ten lines": lambda A=A: scaled(A),
        }
        for key, call in timed.items():
            row[key] = seconds(call, "cpu", 5 * repeats)
        with unittest.mock.patch.object(compiled, "available", return_value=False):
            row["ours without numba"] = seconds(ours, "cpu", 5 * repeats)
        rows[name] = row
    return rows


def pixel_window(low: Tensor, image: Tensor, reach: int) -> Tensor:
    """Filter the upsampled map with a window of 2 * `reach` + 1 pixels, offset by offset."""
    big = F.interpolate(low, SIZE, mode="bilinear", align_corners=False)[0]
    sigma = reach / 3
    H, W = SIZE
    padded = F.pad(big[None], (reach,) * 4, mode="replicate")[0]
    colours = F.pad(image, (reach,) * 4, mode="replicate")[0]
    total, weights = torch.zeros_like(big), torch.zeros(SIZE)
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            far = ((dy - reach) ** 2 + (dx - reach) ** 2) / (2 * sigma**2)
            there = colours[:, dy : dy + H, dx : dx + W]
            range_ = (there - image[0]).square().sum(dim=0) / (2 * 0.1**2)
            weight = (-far - range_).exp()
            total += weight * padded[:, dy : dy + H, dx : dx + W]
            weights += weight
    return (total / weights)[None]


def kornia_blur(low: Tensor, image: Tensor) -> Tensor:
    """Filter the upsampled map with kornia."""
    from kornia.filters import joint_bilateral_blur

    big = F.interpolate(low, SIZE, mode="bilinear", align_corners=False)
    out: Tensor = joint_bilateral_blur(
        big, image, 17, 0.1, (8.0, 8.0), border_type="replicate", color_distance_type="l2"
    )
    return out


def distance(peer: Tensor, ours: Tensor) -> float:
    """Return the largest difference as a fraction of the range of `ours`."""
    return float((peer - ours).abs().max() / (ours.max() - ours.min()))


def chain_row(
    mode: ModeName,
    peer: Callable[[Tensor, Tensor], Tensor],
    inputs: Problem,
    repeats: int,
    rate: dict[str, float],
) -> dict[str, object]:
    """Compare one mode, from attention to discrepancy and little else."""
    logits, attention, image = inputs
    inputs = logits, attention, image[:, :64, :64]  # so that upsampling takes almost no time
    weights = torch.cat([block[0] for _, block in attention.blocks()])
    config = RefineConfig(mode=mode, **PAPER)  # one pass, so that the result tells its sources
    result = refine(*inputs, config)
    q = sources(result, logits)
    ours = result.discrepancy.flatten(1)[result.kept]
    # In float64: in float32, the loop's 15 rewritings of the matrix add up rounding errors.
    off = distance(peer(sources(result, logits.double()), weights.double()), ours)
    off_in_float32 = distance(peer(q, weights), ours)
    if off > 1e-4:
        raise SystemExit(f"{mode}: the peer's map differs by {off:.1e} of the range")
    steps = count_steps(mode, inputs, ours)
    products = 2 * steps + 1 if mode == "optimal_path" else steps
    return {
        "ours": seconds(lambda: refine(*inputs, config), "cpu", 3 * repeats),
        "peer": seconds(lambda: peer(q, weights), "cpu", repeats),
        "difference": off,
        "difference_in_float32": off_in_float32,
        "steps": steps,
        "gemm_floor": floor(rate, multiply_adds=products * len(q) * N * N),
    }


def count_steps(mode: ModeName, inputs: Problem, ours: Tensor) -> int:
    """Count the steps or updates that were taken, from the results alone."""
    if mode == "maximum_velocity":
        return int((1 / ours.min() - 1).ceil())
    for updates in range(1, 51):
        config = RefineConfig(mode="optimal_path", sinkhorn_iterations=updates, **PAPER)
        result = refine(*inputs, config)
        if torch.equal(result.discrepancy.flatten(1)[result.kept], ours):
            return updates
    raise SystemExit("optimal path: two runs differ")


def upsampling_rows(inputs: Problem, repeats: int, rate: dict[str, float]) -> dict[str, object]:
    """Compare the upsampling; ours is timed to labels, and to all scores as the peers return."""
    low, guide = inputs[0].softmax(dim=0)[None], inputs[2][None]
    labels = joint_bilateral_upsample(low, guide).argmax(dim=1)
    pixels = SIZE[0] * SIZE[1]
    work = {"multiply_adds": 25 * (M + 1) * pixels, "exponentials": 25 * pixels}
    rows: dict[str, object] = {
        "labels": {
            "ours": seconds(lambda: labels_only(low, guide), "cpu", 10 * repeats),
            "floor": floor(rate, bytes=(3 * 4 + 8) * pixels, **work),
        },
        "scores": {
            "ours": seconds(lambda: joint_bilateral_upsample(low, guide), "cpu", 10 * repeats),
            "floor": floor(rate, bytes=(3 + M) * 4 * pixels, **work),
        },
    }
    peers: dict[str, Callable[[], Tensor]] = {
        "kornia, 17 x 17 pixels": lambda: kornia_blur(low, guide),
        "pixel window of 3 sigma": lambda: pixel_window(low, guide, 24),
    }
    for name, peer in peers.items():
        same = float((peer().argmax(dim=1) == labels).float().mean())
        if same < 0.9:
            raise SystemExit(f"{name}: only {same:.0%} of the labels equal ours")
        rows[name] = {"peer": seconds(peer, "cpu", repeats), "same_labels": same}
    return rows


def labels_only(low: Tensor, guide: Tensor) -> None:
    """Label every pixel without holding the scores, as a refinement does."""
    from ovss_refine.method.upsample import upsample_bands

    with torch.no_grad():
        for band in upsample_bands(low, guide, RefineConfig()):
            band.labels()


def main() -> None:
    """Check and time everything, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="timings per peer; ours has more")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    inputs = problem((64, 64), M, SIZE, "cpu")
    rate = rates("cpu")
    report = {
        "machine": machine("cpu"),
        "rates": rate,
        "optimal path": chain_row("optimal_path", pot, inputs, args.repeats, rate),
        "maximum velocity": chain_row(
            "maximum_velocity", class_by_class, inputs, args.repeats, rate
        ),
        "ten lines of torch": loop_rows(args.repeats),
        "upsampling": upsampling_rows(inputs, args.repeats, rate),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
