"""Make the arrays of the built-in photographs: a segmenter's logits and a ViT's attention.

    python benchmarks/make_examples.py --model DIR

DIR is the model of `real_data.py`: a ViT and an open-vocabulary head on its features. The prompts
are those of `ovss_refine/examples/dinov2_s14/NAME.txt`. Prints the size of each file, and at how
many pixels the stored attention gives other labels than the full one.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ovss_refine import RefineConfig
from ovss_refine.examples import (
    ARRAYS,
    example_labels,
    list_examples,
    photograph,
    read_example,
)
from ovss_refine.images.read import read_image
from real_data import HEAD_SCALE, ViT

LEVELS = 8  # above zero, of the square root of a weight as a share of its row's largest


def encode(weights: Tensor) -> Tensor:
    """Store attention [N, N] as codes [N, N] uint8, whose squares are proportional to it."""
    share = weights / weights.amax(dim=1, keepdim=True)
    return (LEVELS * share.sqrt()).round().byte()


def make(vit: ViT, names: list[str], stem: str) -> None:
    """Write the arrays of one photograph, and compare the labels."""
    pixels, labels = read_image(photograph(stem)), example_labels(stem)
    seen = vit(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255)
    chosen = [names.index(prompt) for prompt in labels.all_prompts]
    logits = (HEAD_SCALE * vit.cosines(seen["features"])[chosen]).half()  # [K, gh, gw]
    full, out = seen["last"][0], ARRAYS / f"{stem}.npz"
    np.savez_compressed(out, logits=logits.numpy(), codes=encode(full.weights).numpy())

    stored = read_example(stem)
    one, two = (
        inputs.refine(RefineConfig()).labels for inputs in (stored, replace(stored, attention=full))
    )
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {(one != two).float().mean():.2%} differ")


def main() -> None:
    """Make the arrays of every list of prompts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the ViT and its head")
    args = parser.parse_args()
    vit = ViT(args.model, "coco")
    names = np.load(args.model / "text_map.npz")["coco_names"].tolist()
    for stem in list_examples():
        with torch.no_grad():
            make(vit, names, stem)


if __name__ == "__main__":
    main()
