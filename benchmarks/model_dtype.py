"""How many labels stay the same where the model computes in half precision.

    python benchmarks/model_dtype.py [--data FOLDER] [--model FOLDER] [--dtype bfloat16|float16]
                                     [--images N] [--side PIXELS] [--json OUT]

On photographs, with the vision transformer and the logits that `real_data.py` reads: the share of
pixels whose label is that of float32, the mean and the least of the images. With the logits of the
arrays, only the attention is computed in half precision; with those of the head, the logits too.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from machine import machine
from ovss_refine import Logits, Refiner
from ovss_refine.sources import DtypeName
from ovss_refine_adapters.backbones.capture import mix_attention
from ovss_refine_adapters.backbones.timm import TimmBackbone
from real_data import HEAD_SCALE, SHARED, Sample, ViT, open_folder

KINDS = ("attention, strong logits", "attention, weak logits", "attention and the head's logits")


def labels_of(vit: ViT, sample: Sample) -> list[Tensor]:
    """Refine three kinds of logits along the attention of the last layer: [H, W] labels each."""
    images = sample.image[None]
    features, found = vit.backbone.features_and_projections(images)
    attention = mix_attention(
        [(found.q, found.k, found.scale)],
        (1.0,),
        vit.backbone.grid(images),
        prefix=vit.backbone.prefix,
        factors=False,
        device=images.device,
    )[0]
    own = Logits(vit.cosines(features[0]), HEAD_SCALE, vit.index.long())
    given = (sample.arrays["logits"], sample.arrays["logits_weak"])
    refined = [Refiner(logit_scale="auto")(one, attention, sample.image) for one in given]
    return [result.labels for result in (*refined, Refiner()(own, attention, sample.image))]


def main() -> None:
    """Compare both dtypes on every image, and print the shares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=SHARED / "voc_real")
    parser.add_argument("--model", type=Path, default=SHARED / "dinov2_s14")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--side", type=int, default=378)
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    folder = open_folder(args.data, None, "all")
    models = []
    names: tuple[DtypeName, ...] = ("float32", args.dtype)
    for dtype in names:
        models.append(ViT(args.model, folder.name))
        size = (args.side, args.side)
        models[-1].backbone = TimmBackbone(args.model, size=size, dtype=dtype)
    shares = []
    for stem in folder.ids[:: len(folder.ids) // args.images][: args.images]:
        sample = folder.read(stem)
        one, two = (labels_of(vit, sample) for vit in models)
        shares.append([float((x == y).float().mean()) for x, y in zip(one, two, strict=True)])
    table = torch.tensor(shares)
    rows = {
        kind: {"mean": round(float(x.mean()), 4), "least": round(float(x.min()), 4)}
        for kind, x in zip(KINDS, table.T, strict=True)
    }
    for kind, row in rows.items():
        print(f"| {kind} | {row['mean']:.4f} | {row['least']:.4f} |")
    if args.json:
        options = {"dtype": args.dtype, "images": args.images, "side": args.side}
        args.json.write_text(json.dumps({"machine": machine(), **options, **rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
