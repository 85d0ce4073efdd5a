"""How long a refinement takes, mode by mode, and how much memory it needs.

    python benchmarks/speed.py [--device cpu|cuda] [--repeats N] [--json OUT]

Synthetic input of the two sizes that matter: a segmenter's own 33 x 33 grid, and the 64 x 64 grid
of Stable Diffusion 2 at 512 pixels. Logits and attention come from smooth random fields, so that
classes form regions and attention has a neighbourhood, as real ones do: the number of steps of
maximum velocity depends on that. Before it is timed, every result is checked:
finite where kept, and no other class scores higher than the label.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from machine import machine
from ovss_refine import Attention, RefineConfig, Refiner, refine
from ovss_refine.attention import affinity

SIZES = {
    "N = 1089, M = 21, 375 x 500": ((33, 33), 21, (375, 500)),
    "N = 4096, M = 21, 512 x 512": ((64, 64), 21, (512, 512)),
}
MODES = {
    "kl": {"mode": "kl"},
    "optimal path": {"mode": "optimal_path"},
    "maximum velocity": {"mode": "maximum_velocity"},
    "maximum velocity, increment": {"mode": "maximum_velocity", "criterion": "increment"},
    "fusion": {"mode": "fusion"},
    "propagation": {"mode": "propagation"},
    "anchored": {"mode": "anchored"},
}


def smooth_field(
    channels: int, size: tuple[int, int], generator: torch.Generator, detail: int
) -> torch.Tensor:
    """Random [channels, *size] values that vary over about 1 / `detail` of the picture."""
    coarse = torch.randn(1, channels, detail, detail, generator=generator)
    return F.interpolate(coarse, size, mode="bicubic", align_corners=False)[0]


def problem(
    grid: tuple[int, int], K: int, size: tuple[int, int], device: str
) -> tuple[torch.Tensor, Attention, torch.Tensor]:
    """Make logits, attention and image of one size."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * smooth_field(K, grid, generator, 8)
    attention = affinity(smooth_field(64, grid, generator, 12).to(device), 0.1)
    image = smooth_field(3, size, generator, 24).sigmoid()
    return logits.to(device), attention, image.to(device)


def check(inputs: tuple[torch.Tensor, Attention, torch.Tensor], options: dict[str, str]) -> int:
    """Raise unless the result is sound; return how many classes it keeps."""
    result = refine(*inputs, RefineConfig(**options, keep_scores=True))  # type: ignore[arg-type]
    if result.scores is None or not bool(result.discrepancy[result.kept].isfinite().all()):
        raise RuntimeError(f"{options}: the result is not finite")
    of_labels = result.scores.gather(0, result.labels[None])[0]
    if not torch.equal(of_labels, result.scores.amax(0)):
        raise RuntimeError(f"{options}: a label is not of the largest score")
    return int(result.kept.sum())


def seconds(run: Callable[[], object], device: str, repeats: int) -> list[float]:
    """Time `run` after a warm-up, waiting for the device inside the timed region."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])


def main() -> None:
    """Check and time every mode at every size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to keep the numbers")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("speed.py: this machine has no CUDA GPU that torch can use.")
    report: dict[str, object] = {"machine": machine(args.device)}
    for name, (grid, K, size) in SIZES.items():
        inputs = problem(grid, K, size, args.device)
        print(f"\n| {name} | median s | quartiles | classes kept |\n|---|---|---|---|")
        rows: dict[str, dict[str, float]] = {}
        for mode, options in MODES.items():
            kept = check(inputs, options)
            refiner = Refiner(**options)  # type: ignore[arg-type]
            times = seconds(lambda r=refiner, i=inputs: r(*i), args.device, args.repeats)
            quartiles = statistics.quantiles(times, n=4)
            rows[mode] = {
                "median": statistics.median(times),
                "first_quartile": quartiles[0],
                "third_quartile": quartiles[2],
                "classes_kept": kept,
            }
            middle, low, high = rows[mode]["median"], quartiles[0], quartiles[2]
            print(f"| {mode} | {middle:.3f} | {low:.3f} to {high:.3f} | {kept} |")
        report[name] = rows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    report["peak_gib"] = round(peak, 2)
    print(f"\npeak memory of the process: {peak:.2f} GiB")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
