"""The accuracy lost by storing the attention in half precision.

    python benchmarks/half.py [--data FOLDER] [--json OUT]

Storage only: blocks of rows are converted to float32 before they are multiplied, which saves half
the memory of the map. For every mode, compared with float32 storage: the largest difference of the
discrepancy as a fraction of its range, and the fraction of pixels whose label differs. Measured on
the synthetic problem and, with `--data`, on 24 images of a folder that `real_data.py` reads.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

from machine import machine
from ovss_refine import Attention, Refiner
from ovss_refine.attention import affinity
from problems import Problem, problem
from real_data import open_folder
from speed import MODES

TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def compare(inputs: Problem, options: dict[str, str], dtype: torch.dtype) -> tuple[float, float]:
    """Return the difference of the discrepancy, and the fraction of labels that differ."""
    logits, attention, image = inputs
    refiner = Refiner(**options)  # type: ignore[arg-type]
    exact = refiner(logits, attention, image)
    weights = torch.cat([block[0] for _, block in attention.blocks()]).to(dtype)
    rounded = refiner(logits, Attention(weights, attention.grid), image)
    D, R = (r.discrepancy[exact.kept] for r in (exact, rounded))
    span = float(D.max() - D.min())
    other = float((exact.labels != rounded.labels).float().mean())
    return float((D - R).abs().max()) / span, other


def main() -> None:
    """Compare every mode on every problem, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of images, logits and features")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    sets = {"synthetic, N = 4096": [problem((64, 64), 21, (512, 512), "cpu")]}
    if args.data:
        folder = open_folder(args.data, 24, "all")
        sets[folder.name] = [
            (
                one.arrays["logits_weak"],
                affinity(one.arrays["features"], folder.temperature),
                one.image,
            )
            for one in map(folder.read, folder.ids)
        ]
    report: dict[str, object] = {"machine": machine()}
    for name, problems in sets.items():
        print(f"\n| {name} | type | discrepancy, median | worst | labels, median | worst |")
        print("|---|---|---|---|---|---|")
        rows = []
        for mode, options in MODES.items():
            for kind, dtype in TYPES.items():
                pairs = [compare(inputs, options, dtype) for inputs in problems]
                D, labels = ([pair[i] for pair in pairs] for i in (0, 1))
                row = [statistics.median(D), max(D), statistics.median(labels), max(labels)]
                rows.append({"mode": mode, "type": kind, "numbers": row})
                numbers = " | ".join(f"{x:.1e}" for x in row)
                print(f"| {mode} | {kind} | {numbers} |", flush=True)
        report[name] = rows
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
