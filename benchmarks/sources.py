"""The cost of the attention sources at full size: time, parameters, FLOPs, peak memory.

    python benchmarks/sources.py [--device cpu|cuda] [--dtype float32|float16] [--repeats N]
                                 [--cases NAME ...] [--json OUT]

The models have the real architectures and random weights: nothing is downloaded, and quality is not
measured. Every case runs in its own process, whose peak memory is reported: on a CPU that of the
process (libraries and weights included), on a GPU what torch allocated. CPU seconds, summed over
cores, depend less on other load. Each map is checked: rows sum to one, are not uniform, and the
first rows equal those of a second computation. FLOPs are counted by torch, two per multiply-add.

The paper's table, for comparison: RTX 3090, 512 x 512 pixels, attention 0.25 s of 0.57 s per image;
CLIP B/16 and Stable Diffusion 2 together 1006.8 M parameters and 339 GFLOPs.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import open_clip
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from adapters.flops import UNCOUNTED
from machine import machine
from ovss_refine import Attention
from ovss_refine_adapters.attention.clip import CLIPAttention
from ovss_refine_adapters.attention.stable_diffusion import StableDiffusionAttention
from ovss_refine_adapters.attention.vit import ViTAttention
from ovss_refine_adapters.backbones.diffusion import Parts
from timing import peak, reset_peak, seconds

# Name: (model, pixels, options of the source).
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "dinov2-b14, 518, map": ("dinov2", 518, {}),
    "dino-b8, 448, map": ("dino", 448, {"positions": "reference"}),
    "radio-b16, 512, map": ("radio", 512, {}),
    "tipsv2-b14, 448, map": ("tipsv2", 448, {}),
    "clip-b16, 448, map": ("clip", 448, {}),
    "clip-b16, 448, k-k mean of all layers": ("clip", 448, {"similarity": "kk", "layers": "all"}),
    "sd2, 512, map": ("sd2", 512, {"resolution": 512}),
    "sd2, 512, factors": ("sd2", 512, {"resolution": 512, "factors": True}),
    "sd2, 1024, factors": ("sd2", 1024, {"resolution": 1024, "factors": True}),
}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2": ("vit_base_patch14_dinov2.lvd142m", {"dynamic_img_size": True}),
    "dino": ("vit_base_patch8_224.dino", {"dynamic_img_size": True}),
    "radio": ("naflexvit_base_patch16_radio_v3.c_radio", {}),
    "tipsv2": ("vit_base_patch14_reg1_tipsv2.webli", {"dynamic_img_size": True}),
}


def stable_diffusion_2() -> Parts:
    """Make Stable Diffusion 2's VAE and UNet in their published configuration."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    )
    prompt = torch.randn(1, 77, 1024)
    return Parts(vae.eval(), unet.eval(), diffusers.DDPMScheduler(), prompt)


def model_of(what: str, device: str, dtype: torch.dtype) -> Any:
    """Make a model with random weights."""
    torch.manual_seed(0)
    if what == "sd2":
        parts = stable_diffusion_2()
        parts.vae.to(device, dtype)
        parts.unet.to(device, dtype)
        return parts
    if what == "clip":
        made: nn.Module = open_clip.create_model("ViT-B-16-quickgelu", load_weights=False)
    else:
        name, kwargs = TIMM[what]
        made = timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
    return made.to(device, dtype).eval()


def source_of(what: str, model: Any, options: dict[str, Any]) -> Any:
    """Make the source from a loaded model."""
    kinds = {"sd2": StableDiffusionAttention, "clip": CLIPAttention}
    return kinds.get(what, ViTAttention)(model, **options)


def first_rows(attention: Attention) -> Tensor:
    """Return the first block of rows, at most 64 of them."""
    return next(iter(attention.blocks()))[1][:, :64]


def check(what: str, model: Any, options: dict[str, Any], x: Tensor) -> None:
    """Raise unless rows sum to one, are not uniform, and agree with a second computation.

    For Stable Diffusion, factors are compared with the map; otherwise, the source with itself in a
    batch with a second image.
    """
    rows = first_rows(source_of(what, model, options).attention(x))
    if not bool(((rows.sum(-1) - 1).abs() < 1e-2).all()) or float(rows.std()) == 0:
        raise RuntimeError(f"{what} {options}: not the rows of an attention map")
    if what == "sd2":
        if x.shape[-1] > 512 and x.device.type == "cpu":
            return  # the map would not fit
        other = {"resolution": options["resolution"], "factors": not options.get("factors", False)}
        again = first_rows(source_of(what, model, other).attention(x))
    else:
        again = first_rows(source_of(what, model, options).attention(torch.cat([x, 1 - x])))[:1]
    if float((rows - again).abs().max() / rows.max()) > 1e-2:
        raise RuntimeError(f"{what} {options}: two computations of the map disagree")


def parameters(model: Any) -> int:
    """Count the parameters in use: of the image encoder alone, or of VAE and UNet."""
    used = (
        [model.vae, model.unet] if isinstance(model, Parts) else [getattr(model, "visual", model)]
    )
    return sum(p.numel() for part in used for p in part.parameters())


def measure(name: str, device: str, dtype: str, repeats: int) -> dict[str, float]:
    """Check, count and time one case."""
    what, side, options = CASES[name]
    if what == "sd2" and not options.get("factors"):
        options = options | {"map_dtype": getattr(torch, dtype)}
    model = model_of(what, device, getattr(torch, dtype))
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    source = source_of(what, model, options)
    counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    with counter:
        attention = source.attention(x)
    N = attention.shape[-1]
    del attention
    reset_peak(device)
    before = time.process_time()
    times = seconds(lambda: source.attention(x), device, repeats)
    spent = (time.process_time() - before) / (repeats + 1)
    most = peak(device)
    check(what, model, options, x)  # after reading the memory: it holds two maps
    return {
        "tokens": N,
        "parameters_m": round(parameters(model) / 1e6, 1),
        "gflops": round(counter.get_total_flops() / 1e9, 1),
        **times,
        "processor_seconds": spent,
        "peak_gib": round(most / 2**30, 2),
    }


def main() -> None:
    """Measure every case in its own process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--alone", choices=list(CASES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(measure(args.alone, args.device, args.dtype, args.repeats)))
        return
    report: dict[str, object] = {
        "machine": machine(args.device),
        "versions": {lib.__name__: lib.__version__ for lib in (timm, open_clip, diffusers)},
        "dtype": args.dtype,
    }
    print("| source | N | params (M) | GFLOPs | median s | CPU s | peak GiB |")
    print("|---|---|---|---|---|---|---|")
    for name in args.cases:
        load = os.getloadavg()[0]
        flags = ["--device", args.device, "--dtype", args.dtype, "--repeats", str(args.repeats)]
        done = subprocess.run(
            [sys.executable, __file__, "--alone", name, *flags],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        row = json.loads(done.stdout.splitlines()[-1]) | {"load_before": load}
        report[name] = row
        print(
            f"| {name} | {row['tokens']} | {row['parameters_m']} | {row['gflops']} | "
            f"{row['median']:.3f} | {row['processor_seconds']:.3f} | {row['peak_gib']} |",
            flush=True,
        )
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
