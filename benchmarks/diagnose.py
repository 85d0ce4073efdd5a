"""Why some modes lose: ties under the increment criterion, and the area that each class gets.

    python benchmarks/diagnose.py [--data DIR] [--limit N]

The folder has a layout that `real_data.py` reads. With the strong logits, prints the fraction of
patches at which the two best classes tie exactly, and the mean fraction of pixels per class.
"""

import argparse
from pathlib import Path

import torch

from ovss_refine import Refiner
from ovss_refine.attention import affinity
from real_data import IGNORE, SHARED, Labeller, bilinear, open_folder, refined


def main() -> None:
    """Print both diagnoses for one folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=SHARED / "camvid_real")
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    folder = open_folder(args.data, args.limit)
    velocities = {
        "maximum velocity": Refiner(),
        "maximum velocity, increment": Refiner(criterion="increment"),
    }
    ways: dict[str, Labeller] = {
        "bilinear": bilinear,
        "kl": refined(Refiner("kl")),
        "optimal path": refined(Refiner("optimal_path")),
        "maximum velocity": refined(Refiner()),
    }
    ties = dict.fromkeys(velocities, 0.0)
    areas: dict[str, torch.Tensor] = {}
    for image, mask, arrays in folder.samples():
        logits, K = arrays["logits"], len(arrays["logits"])
        attention = affinity(arrays["features"], folder.temperature)
        for name, refiner in velocities.items():
            best = refiner(logits, attention, image).discrepancy.topk(2, dim=0).values
            ties[name] += float((best[0] == best[1]).float().mean()) / len(folder.ids)
        known = mask != IGNORE
        maps = {"truth": mask} | {n: way(logits, attention, image) for n, way in ways.items()}
        for name, labels in maps.items():
            share = torch.bincount(labels[known], minlength=K) / known.sum() / len(folder.ids)
            areas[name] = areas.get(name, torch.zeros(K)) + share
    print(f"{folder.name}, {len(folder.ids)} images")
    for name, share in ties.items():
        print(f"patches whose two best classes tie, {name}: {share:.1%}")
    for name, shares in areas.items():
        print(f"{name}: " + " ".join(f"{100 * x:.1f}" for x in shares.tolist()))


if __name__ == "__main__":
    main()
