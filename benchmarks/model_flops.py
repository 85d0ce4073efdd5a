"""What the models around the refinement compute, in GFLOPs: no time, so that load does not matter.

    python benchmarks/model_flops.py [--before FILE] [--json OUT]

The models have the real architectures and random weights: nothing is downloaded. One image of 448 x
336 pixels, 21 classes, whole images; text is not counted. Two FLOPs per multiply-add, as torch
counts. `--before` shows the numbers of an earlier version beside these, from its own `--json`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from adapters.flops import flops
from machine import machine
from ovss_refine import load_attention, load_logits
from ovss_refine_adapters.logits.rf_clip import SINK_CHANNELS

CLASSES, WIDTH = 21, 512
CLIP_ONLY = ("clip", "maskclip", "sclip", "kk", "kk-mean", "gem", "clip-surgery", "sc-clip")
WITH_OPTIONS = {
    "cliptrase": {"regions": "none"},
    "rf-clip": {"sink_channels": SINK_CHANNELS["B/16"]},
}
DINO, DINOV2 = "vit_base_patch8_224.dino", "vit_base_patch14_dinov2.lvd142m"


def vit(name: str) -> Any:
    """Make a transformer of timm with random weights."""
    return timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True).eval()


def cases(images: torch.Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the name of each case, and what is counted."""
    clip = open_clip.create_model("ViT-B-16-quickgelu", load_weights=False).eval()
    options: dict[str, Any] = {
        "classes": [f"class {i}" for i in range(CLASSES)],
        "model": clip,
        "text_features": torch.randn(CLASSES, WIDTH),
        "window": None,
    }
    for name in (*CLIP_ONLY, *WITH_OPTIONS):
        source = load_logits(name, **options, **WITH_OPTIONS.get(name, {}))
        yield name, lambda source=source: source.logits(images)
    for layers, blocks in (((-1,), "the last block"), ("all", "all blocks")):
        attention = load_attention("clip-b16", model=clip, similarity="kk", layers=layers)
        yield f"attention clip-b16, k-k of {blocks}", lambda one=attention: one.attention(images)
    transformer = load_attention("dinov2-b14", model=vit(DINOV2))
    yield "attention dinov2-b14", lambda: transformer.attention(images)
    # One model for both, in two passes and in one.
    for name, more in (("kk-mean", {}), ("proxyclip", {"proxy": vit(DINO)})):
        source: Any = load_logits(name, **options, **more)
        if not hasattr(source, "logits_and_attention"):
            continue  # an earlier version
        apart = lambda s=source: (s.logits(images), s.attention(images))  # noqa: E731
        yield f"{name}, then its attention", apart
        yield f"{name} and its attention", lambda s=source: s.logits_and_attention(images)


def main() -> None:
    """Count every case, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="results of an earlier version")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    before = json.loads(args.before.read_text()) if args.before else {}
    torch.manual_seed(0)
    images = torch.rand(1, 3, 336, 448)
    found: dict[str, Any] = {"machine": machine()}
    for name, run in cases(images):
        found[name] = {"gflops": round(flops(run) / 1e9, 1)}
        if name in before:
            found[name]["before"] = before[name]["gflops"]
        print(
            f"| {name} | {' | '.join(str(x) for x in reversed(found[name].values()))} |", flush=True
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
