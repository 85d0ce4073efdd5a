"""What the logits sources cost at full size, in images per second.

    python benchmarks/logits.py [--device cpu|cuda] [--models B/16 L/14] [--short-sides 336 448]
                                [--batches 1 8] [--sources NAME ...] [--repeats N] [--json OUT]

The models have the real architectures and random weights, so nothing is downloaded and nothing is
said about quality. Images of 500 x 375 pixels, 21 classes; windows, strides and all else as
published. One run before the timed ones; with `--repeats 1` the quartiles are the run itself.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch

from machine import machine
from ovss_refine import LogitsSource, list_logits, load_logits
from ovss_refine_adapters.rf_clip import SINK_CHANNELS
from timing import seconds

SIZE, CLASSES = (375, 500), 21
TOWERS = {"B/16": ("ViT-B-16-quickgelu", 512), "L/14": ("ViT-L-14-quickgelu", 768)}
WITH_PROXY = ("proxyclip", "cass")
NO_MODEL = ("callable", "npz")


def make(name: str, model: str, short_side: int, device: str) -> LogitsSource:
    """Make a source with random weights."""
    tower, width = TOWERS[model]
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "model": open_clip.create_model(tower).eval().to(device),
        "text_features": torch.randn(CLASSES, width),
        "short_side": short_side,
    }
    if name in WITH_PROXY:
        options["proxy"] = (
            timm.create_model("vit_base_patch8_224.dino", num_classes=0, dynamic_img_size=True)
            .eval()
            .to(device)
        )
    if name == "rf-clip":
        options["sink_channels"] = SINK_CHANNELS[model]
    return load_logits(name, classes=[f"class {i}" for i in range(CLASSES)], **options)


def main() -> None:
    """Time every combination that is asked for, and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [name for name in list_logits() if name not in NO_MODEL]
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", nargs="+", choices=list(TOWERS), default=list(TOWERS))
    parser.add_argument("--short-sides", nargs="+", type=int, default=[336, 448])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--sources", nargs="+", choices=names, default=names)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to keep the numbers")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("logits.py: this machine has no CUDA GPU that torch can use.")
    rows = []
    print("| source | model | short side | B | images/s |\n|---|---|---|---|---|")
    for name in args.sources:
        for model in args.models:
            if (name, model) == ("cass", "L/14"):
                print("| cass | L/14 | | | needs a proxy of 16 heads; none is published |")
                continue
            for side in args.short_sides:
                source = make(name, model, side, args.device)
                for B in args.batches:
                    images = torch.rand(B, 3, *SIZE, device=args.device)
                    if not bool(source.logits(images).values.isfinite().all()):
                        raise SystemExit(f"{name}: the scores are not finite")
                    took = seconds(
                        lambda s=source, x=images: s.logits(x), args.device, args.repeats
                    )
                    row = {"source": name, "model": model, "short_side": side, "batch": B}
                    rows.append(row | took | {"images_per_second": B / took["median"]})
                    print(
                        f"| {name} | {model} | {side} | {B} | {B / took['median']:.3f} |",
                        flush=True,
                    )
                    if args.json:
                        report = {"machine": machine(args.device), "rows": rows}
                        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
