"""The speed of the logits sources at full size, in images per second.

    python benchmarks/logits.py [--device cpu|cuda] [--models B/16 L/14] [--short-sides 336 448]
                                [--batches 1 8] [--sources NAME ...] [--repeats N]
                                [--longest SECONDS] [--json OUT]

The models have the real architectures and random weights: nothing is downloaded, and quality is not
measured. Images of 500 x 375 pixels, 21 classes; windows, strides and all other settings as
published. Models other than CLIP's (talk2dino, groupvit and those of transformers by their family:
clipseg, owlvit, owlv2, sam3) have one size, and are measured at it alone. `--repeats 0` times the
first run, which is checked; otherwise that is the warm-up. What would take longer than `--longest`,
judged by the previous batch, is skipped and reported.
"""

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import transformers

from machine import machine
from ovss_refine import LogitsSource, list_logits, load_logits
from ovss_refine_adapters.logits.clip_dinoiser import DinoiserHeads
from ovss_refine_adapters.logits.rf_clip import SINK_CHANNELS
from ovss_refine_adapters.logits.talk2dino_projection import TextProjection
from ovss_refine_adapters.logits.tcl_masker import TclMasker
from timing import seconds

SIZE, CLASSES = (375, 500), 21
TOWERS = {"B/16": ("ViT-B-16-quickgelu", 512), "L/14": ("ViT-L-14-quickgelu", 768)}
ONLY_B16 = {
    "cass": "needs a proxy of 16 heads; none is published",
    "tcl": "no trained decoder is published",
}
WITH_PROXY = ("proxyclip", "cass")
PROMPTABLE: dict[str, Any] = {
    "clipseg": lambda: transformers.CLIPSegForImageSegmentation(
        transformers.CLIPSegConfig(vision_config={"patch_size": 16})
    ),
    "owlvit": lambda: transformers.OwlViTForObjectDetection(transformers.OwlViTConfig()),
    "owlv2": lambda: transformers.Owlv2ForObjectDetection(
        transformers.Owlv2Config(vision_config={"image_size": 960})
    ),
    "sam3": lambda: transformers.Sam3Model(transformers.Sam3Config()),
}
OTHERS = ("talk2dino", "groupvit", *PROMPTABLE)
NOT_BY_NAME = ("callable", "npz", "transformers")


def quarters(images: torch.Tensor) -> torch.Tensor:
    """Make four masks of [B, 3, H, W] images, [B, 4, H, W] bool: vertical stripes."""
    B, _, H, W = images.shape
    column = torch.arange(W, device=images.device).mul(4).div(W, rounding_mode="floor")
    return (
        (column == torch.arange(4, device=images.device)[:, None])
        .view(1, 4, 1, W)
        .expand(B, 4, H, W)
    )


def make(name: str, model: str, short_side: int, device: str) -> LogitsSource:
    """Make a source with random weights."""
    tower, width = TOWERS[model]
    torch.manual_seed(0)
    classes = [f"class {i}" for i in range(CLASSES)]
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
    if name == "lavg":
        options["masks"] = quarters
    if name == "clip-dinoiser":
        options["heads"] = DinoiserHeads(options["model"].visual.conv1.out_channels).to(device)
    if name == "tcl":
        channels = options["model"].visual.conv1.out_channels
        options["masker"] = TclMasker(channels, width).to(device)
    return load_logits(name, classes=classes, **options)


def make_other(name: str, device: str) -> LogitsSource:
    """Make a source that does not run on a tower of CLIP, with random weights."""
    torch.manual_seed(0)
    classes = [f"class {i}" for i in range(CLASSES)]
    if name in PROMPTABLE:
        model = PROMPTABLE[name]().eval().to(device)
        return load_logits("transformers", classes=classes, model=model, cache_dir=None)
    if name == "groupvit":
        model = transformers.GroupViTModel(transformers.GroupViTConfig()).eval().to(device)
        text = torch.randn(CLASSES, 256)
        return load_logits(name, classes=classes, model=model, text_features=text)
    dino = timm.create_model(
        "vit_base_patch14_reg4_dinov2.lvd142m", num_classes=0, dynamic_img_size=True
    )
    return load_logits(
        name,
        classes=classes,
        model=dino.eval().to(device),
        clip=open_clip.create_model(TOWERS["B/16"][0]).eval(),
        projection=TextProjection(512, 768),
        text_features=torch.randn(CLASSES, 512),
    )


def measure(
    name: str, model: str, side: int | None, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Check and time a source for every batch size."""
    device = args.device
    source = make(name, model, side, device) if side else make_other(name, device)
    per_image = 0.0
    for B in args.batches:
        row = {"source": name, "model": model, "short_side": side, "batch": B}
        if per_image * B * (args.repeats or 1) > args.longest:
            yield row | {"left_out": f"would take {per_image * B:.0f} s"}
            continue
        images = torch.rand(B, 3, *SIZE, device=args.device)
        start = time.perf_counter()
        if not bool(source.logits(images).values.isfinite().all()):
            raise SystemExit(f"{name}: the logits are not finite")
        took = {"median": time.perf_counter() - start, "repeats": 0}
        if args.repeats:
            took = seconds(partial(source.logits, images), args.device, args.repeats)
        per_image = took["median"] / B
        yield row | took | {"images_per_second": 1 / per_image}


def main() -> None:
    """Time every requested combination, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [name for name in list_logits() if name not in (*NOT_BY_NAME, *OTHERS)]
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", nargs="+", choices=list(TOWERS), default=list(TOWERS))
    parser.add_argument("--short-sides", nargs="+", type=int, default=[336, 448])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument(
        "--sources", nargs="+", choices=[*names, *OTHERS], default=[*names, *OTHERS]
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--longest", type=float, default=600, help="longest timing, in seconds")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("logits.py: this machine has no CUDA GPU that torch can use.")
    report: dict[str, Any] = {"machine": machine(args.device), "rows": []}
    print("| source | model | short side | B | images/s |\n|---|---|---|---|---|")
    towers = [name for name in args.sources if name not in OTHERS]
    wanted: list[tuple[str, str, int | None]] = [
        *product(towers, args.models, args.short_sides),
        *((name, "its own", None) for name in args.sources if name in OTHERS),
    ]
    for name, model, side in wanted:
        if model == "L/14" and name in ONLY_B16:
            print(f"| {name} | {model} | {side} | | {ONLY_B16[name]} |")
            continue
        for row in measure(name, model, side, args):
            report["rows"].append(row)
            rate = row.get("images_per_second")
            says = row["left_out"] if rate is None else f"{rate:.3f}"
            print(f"| {name} | {model} | {side or '-'} | {row['batch']} | {says} |", flush=True)
            if args.json:
                args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
