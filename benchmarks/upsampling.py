"""The upsampling to labels: compiled, by torch, and what a user would run instead. One thread.

    pip install -e '.[fast,bench]'
    OMP_NUM_THREADS=1 python benchmarks/upsampling.py [--repeats 30]

Checked for equal labels before it is timed. All run in turns, and the least CPU time of the
repeats counts: on a busy machine only ratios within one run mean something. The floor is the time
of the arithmetic and copying alone, at rates of the same run. Plain torch: the same formula
in a loop over the 25 neighbours. Over the bilinearly upsampled maps: OpenCV's guided filter, radius
8, its joint bilateral filter and kornia's, 17 x 17 pixels; they measure distance in pixels, so
that their labels differ by design: the share of equal ones is reported.
"""

import argparse
import json
import time
from collections.abc import Callable
from unittest.mock import patch

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from machine import machine
from ovss_refine import RefineConfig
from ovss_refine.method import upsample
from problems import problem
from timing import floor

M = 21
CASES = [
    ((64, 64), (512, 512)),
    ((37, 37), (375, 500)),
    ((33, 33), (375, 500)),
    ((33, 33), (1024, 2048)),
]


def ours(low: Tensor, guide: Tensor) -> Tensor:
    """Label by the compiled loop."""
    with torch.no_grad():
        bands = upsample.upsample_bands(low, guide, RefineConfig())
        return torch.cat([band.labels() for band in bands], dim=1)[0]


def by_torch(low: Tensor, guide: Tensor) -> Tensor:
    """Label as without numba."""
    with patch.object(upsample, "can_compile", lambda *_: False):
        return ours(low, guide)


def plain_torch(low: Tensor, guide: Tensor) -> Tensor:
    """Loop over the neighbours."""
    (gh, gw), (H, W) = low.shape[2:], guide.shape[2:]
    colour = F.adaptive_avg_pool2d(guide, (gh, gw))[0]
    cy, cx = ((2 * torch.arange(n) + 1) * g // (2 * n) for n, g in ((H, gh), (W, gw)))
    y, x = ((torch.arange(n) + 0.5) * g / n - 0.5 for n, g in ((H, gh), (W, gw)))
    total, weights = torch.zeros(low.shape[1], H, W), torch.zeros(H, W)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            row, column = (cy + dy).clamp(0, gh - 1)[:, None], (cx + dx).clamp(0, gw - 1)
            far = ((y - cy - dy) ** 2)[:, None] + (x - cx - dx) ** 2
            unlike = (guide[0] - colour[:, row, column]).square().sum(dim=0) / (2 * 0.1**2)
            weight = (-far / 2).exp() * ((-unlike).exp() + 1e-12)
            total += weight * low[0][:, row, column]
            weights += weight
    return (total / weights).argmax(dim=0)


def enlarged(low: Tensor, guide: Tensor) -> Tensor:
    """Upsample by bilinear interpolation."""
    return F.interpolate(low, guide.shape[2:], mode="bilinear", align_corners=False)


def opencv_guided(low: Tensor, guide: Tensor) -> Tensor:
    """Filter the upsampled maps by OpenCV's guided filter."""
    image = guide[0].permute(1, 2, 0).contiguous().numpy()
    filter_ = cv2.ximgproc.createGuidedFilter(image, 8, 1e-2)
    planes = enlarged(low, guide)[0].numpy()
    return torch.from_numpy(np.stack([filter_.filter(plane) for plane in planes]).argmax(axis=0))


def opencv_bilateral(low: Tensor, guide: Tensor) -> Tensor:
    """Filter the upsampled maps by OpenCV's joint bilateral filter, whose colours end at 255."""
    image = (255 * guide[0]).permute(1, 2, 0).contiguous().numpy()
    planes = enlarged(low, guide)[0].numpy()
    out = [cv2.ximgproc.jointBilateralFilter(image, plane, 17, 25.5, 8.0) for plane in planes]
    return torch.from_numpy(np.stack(out).argmax(axis=0))


def kornia_bilateral(low: Tensor, guide: Tensor) -> Tensor:
    """Filter the upsampled maps by kornia."""
    from kornia.filters import joint_bilateral_blur

    out: Tensor = joint_bilateral_blur(
        enlarged(low, guide), guide, 17, 0.1, (8.0, 8.0), color_distance_type="l2"
    )
    return out[0].argmax(dim=0)


def least(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the least CPU seconds of each run, taken in turns."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            best[name] = min(best[name], time.thread_time() - start)
    return best


def case(grid: tuple[int, int], size: tuple[int, int], repeats: int) -> dict[str, object]:
    """Check and time one size."""
    logits, _, image = problem(grid, M, size, "cpu")
    low, guide = logits.softmax(dim=0)[None], image[None]
    labels = ours(low, guide)
    for other in (by_torch, plain_torch):
        same = float((other(low, guide) == labels).float().mean())
        if same < 0.9999:
            raise SystemExit(f"{other.__name__}: only {same:.2%} of the labels are equal")
    few, A, copied = torch.rand(1 << 18), torch.rand(1024, 1024), torch.rand(1 << 24)
    out, target = torch.empty_like(few), torch.empty_like(copied)
    peers = [ours, by_torch, plain_torch, opencv_guided, opencv_bilateral]
    if size[0] < 1000:  # kornia unfolds the windows: 40 GB for the largest
        peers.append(kornia_bilateral)
    same = {p.__name__: float((p(low, guide) == labels).float().mean()) for p in peers}
    runs: dict[str, Callable[[], object]] = {
        peer.__name__: lambda peer=peer: peer(low, guide) for peer in peers
    }
    rate_runs = {
        "exponentials": lambda: torch.exp(few, out=out),
        "multiply_adds": lambda: A @ A,
        "bytes": lambda: target.copy_(copied),
    }
    best = least({**runs, **rate_runs}, repeats)
    amounts = {"exponentials": few.numel(), "multiply_adds": 1024**3, "bytes": 8 * copied.numel()}
    rate = {name: amount / best[name] for name, amount in amounts.items()}
    pixels = size[0] * size[1]
    work = {"multiply_adds": 25 * (M + 1) * pixels, "exponentials": 25 * pixels}
    least_time = floor(rate, bytes=(3 * 4 + 8) * pixels, **work)
    seconds = {name: best[name] for name in runs}
    return {
        "grid": grid,
        "size": size,
        "seconds": seconds | {"floor": least_time},
        "over ours": {name: value / seconds["ours"] for name, value in seconds.items()},
        "same labels": same,
        "ours over the floor": seconds["ours"] / least_time,
    }


def main() -> None:
    """Time all sizes and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = [case(grid, size, args.repeats) for grid, size in CASES]
    print(json.dumps({"machine": machine("cpu"), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
