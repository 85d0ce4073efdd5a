"""Tiny models of the real libraries' classes with random weights, and tiny data sets.

They are in folders like real ones, for `--models-dir` and `--data`. As a script, this file is the
command `ovss-refine` with sources that resize images to small sizes (`with_tiny_sizes`).
"""

import functools
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from ovss_refine import registry
from ovss_refine.cli import main
from ovss_refine.evaluation.dataset import IGNORE, DataSet
from ovss_refine.registry import require

SEED = 0
# As deep as the real ones, since some methods choose their blocks by depth; two heads, like DINO's.
CLIP = {"width": 64, "head_width": 32}
SIZES = {
    "clip-b16": (12, 16, 32),  # layers, patch, image
    "clip-b16-laion2b": (12, 16, 32),
    "clip-l14": (24, 14, 28),
}
# Chosen so that patches and tokens differ and no attention is uniform: with one value for all, a
# single class would win everywhere.
# The residual branches of the image tower are small, as in trained models.
CLIP_STD = {
    "embedding|conv1": 1.0,
    r"visual.*(out|c)_proj": 0.01,
    "visual": 0.1,
    "": 0.5,  # the text tower
}
UNET_STD = {r"attn1\.to_[qk]": 0.75}
VITS = {
    "dino-b8": "vit_base_patch8_224",
    "dinov2-b14": "vit_base_patch14_dinov2",
    "dinov2-b14-reg": "vit_base_patch14_reg4_dinov2",
}
WORDS = {"a</w>": 0, "a": 1, "!": 2, "<|startoftext|>": 3, "<|endoftext|>": 4}
IMAGES, SIDE, BLOCK = 2, (48, 64), 8

# Options for tiny models and images; Stable Diffusion has 1/8 of its real resolution.
ALL_LOGITS = {"templates": "single", "cache_dir": None, "short_side": 64}
WINDOWS: Mapping[str, Any] = {"window": 48, "stride": 16}
LOGITS: Mapping[str, Mapping[str, Any]] = {
    "kk-mean": {},
    "qq-mean": {},
    "rf-clip": {"sink_channels": [1, 5], **WINDOWS},
    "talk2dino": {"window": 42, "stride": 14},
}
ATTENTION = {"clip-b16": 64, "dino-b8": 48, "dinov2-b14": 42, "dinov2-b14-reg": 42}
SHRINK, RESOLUTION = 8, 512


def tiny_options(kind: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a source, as tiny models take them.

    Args:
        kind: "logits" or "attention".
        name: of the source.
        options: those that the real models would be given.
    """
    if kind == "logits":
        return {**options, **ALL_LOGITS, **LOGITS.get(name, WINDOWS)}
    if name == "sd2":
        side = options.get("resolution", RESOLUTION) // SHRINK
        return {**options, "resolution": side, "cache_dir": None}
    return {"size": ATTENTION[name], **options} if name in ATTENTION else dict(options)


def with_tiny_sizes(registered: Callable[[str], Mapping[str, Any]]) -> Callable[[str], Any]:
    """Wrap `registry._registered`: sources are given options that suit tiny models."""

    def make(kind: str, name: str, factory: Callable[..., Any], **options: Any) -> Any:
        return factory(**tiny_options(kind, name, options))

    def load(kind: str, name: str, point: Any) -> Callable[..., Any]:
        return functools.partial(make, kind, name, point.load())

    def wrapped(kind: str) -> dict[str, Any]:
        points = registered(kind).items()
        return {
            name: SimpleNamespace(name=name, load=functools.partial(load, kind, name, point))
            for name, point in points
        }

    return wrapped


def write_models(folder: Path) -> None:
    """Write a folder for each of the weights, unless it exists."""
    makers: dict[str, Callable[[Path], None]] = {
        **{name: _clip_writer(*sizes) for name, sizes in SIZES.items()},
        **{name: _vit_writer(architecture) for name, architecture in VITS.items()},
        "sd2": _write_diffusion,
        "clip-dinoiser": _write_heads,
        "tcl": _write_masker,
        "groupvit": _write_groupvit,
        "talk2dino": _write_projection,
    }
    for name, write in makers.items():
        _once(folder / name, write)


def write_data(folder: Path, dataset: DataSet) -> None:
    """Write a few blocky images and masks in the layout of a data set, unless they exist."""
    _once(folder, lambda part: _write_data(part, dataset))


def _once(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder under a temporary name, so that it exists whole or not at all."""
    if folder.is_dir():
        return
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        write(part)
    part.replace(folder)


def _randomised(model: Any, std: float, others: Mapping[str, float] | None = None) -> Any:
    """Sample all parameters.

    Args:
        model: any model.
        std: standard deviation.
        others: other ones, by a pattern of the parameter's name; the first that fits decides.
    """
    for name, parameter in model.named_parameters():
        norm = any(part in name for part in ("ln_", "norm")) and name.endswith("weight")
        fitting = (value for pattern, value in (others or {}).items() if re.search(pattern, name))
        own = next(fitting, std)
        nn.init.normal_(parameter, mean=float(norm), std=own)
    return model.eval()


def _clip_writer(layers: int, patch: int, side: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        library = require("open_clip", "models")
        vision = {**CLIP, "layers": layers, "patch_size": patch, "image_size": side}
        text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
        config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
        model = library.CLIP(
            24, library.CLIPVisionCfg(**vision), library.CLIPTextCfg(**text), quick_gelu=True
        )
        described = {"model_cfg": config, "preprocess_cfg": {}}
        (folder / "open_clip_config.json").write_text(json.dumps(described), encoding="utf-8")
        tensors = require("safetensors.torch", "models")
        weights = _randomised(model, 0.1, CLIP_STD).state_dict()
        tensors.save_file(weights, folder / "open_clip_model.safetensors")

    return write


def _vit_writer(architecture: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        timm, tensors = require("timm", "models"), require("safetensors.torch", "models")
        tiny = {"depth": 3, "embed_dim": 64, "num_heads": 2}
        model = timm.create_model(architecture, pretrained=False, num_classes=0, **tiny)
        config = {"architecture": architecture, "model_args": tiny, "pretrained_cfg": {}}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        tensors.save_file(_randomised(model, 0.3).state_dict(), folder / "model.safetensors")

    return write


def _write_heads(folder: Path) -> None:
    """Write CLIP-DINOiser's, as wide as the tiny CLIP."""
    convolutions = {"obj_proj": nn.Conv2d(64, 8, 3), "bkg_decoder": nn.Conv2d(64, 1, 1)}
    heads = _randomised(nn.ModuleDict(convolutions), 0.3)
    torch.save({"model_state_dict": heads.state_dict()}, folder / "last.pt")


def _write_projection(folder: Path) -> None:
    """Write Talk2DINO's, from the tiny CLIP's text to the tiny DINOv2's width."""
    hidden = nn.ModuleList([nn.Linear(64, 64)])
    layers = nn.ModuleDict({"linear_layer": nn.Linear(24, 64), "hidden_layers": hidden})
    torch.save(_randomised(layers, 0.3).state_dict(), folder / "vitb_mlp_infonce.pth")


def _write_masker(folder: Path) -> None:
    """Write TCL's, as wide as the tiny CLIP, with the released names."""
    from ovss_refine_adapters.logits.tcl_masker import RELEASED, TclMasker

    old = {new: name for name, new in RELEASED.items()}
    masker = _randomised(TclMasker(64, 24), 0.3)
    masker.sim2mask.w.data.fill_(10.0)
    parts = [name.partition(".")[::2] for name in masker.state_dict()]
    values = zip(parts, masker.state_dict().values(), strict=True)
    state = {old[f"{part}."] + name: value for (part, name), value in values}
    torch.save({"model": state}, folder / "tcl.pth")


def _write_groupvit(folder: Path) -> None:
    transformers = require("transformers", "models")
    vision = {
        "image_size": 32,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "depths": [1, 1, 1],
        "num_group_tokens": [6, 3, 0],
        "num_output_groups": [6, 3, 3],
        "mlp_ratio": 2,
    }
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = transformers.GroupViTConfig(
        vision_config=vision,
        text_config=text | {"num_attention_heads": 2},
        projection_dim=24,
        projection_intermediate_dim=20,
    )
    stds = {"token|position|projection|assign": 1.0}
    _randomised(transformers.GroupViTModel(config), 0.3, stds).save_pretrained(folder)


def _write_diffusion(folder: Path) -> None:
    diffusers = require("diffusers", "models")
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    )
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        use_linear_projection=True,
    )
    _randomised(vae, 0.2).save_pretrained(folder / "vae")
    _randomised(unet, 0.15, UNET_STD).save_pretrained(folder / "unet")
    diffusers.DDPMScheduler().save_pretrained(folder / "scheduler")
    _write_empty_prompt(folder)


def _write_empty_prompt(folder: Path) -> None:
    """Write a text encoder and a tokenizer for the empty prompt only."""
    transformers = require("transformers", "models")
    config = transformers.CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=3,
        eos_token_id=4,
        pad_token_id=4,
    )
    encoder = _randomised(transformers.CLIPTextModel(config), 0.2)
    encoder.save_pretrained(folder / "text_encoder")
    # From files: transformers 4 takes nothing else.
    (folder / "tokenizer").mkdir(exist_ok=True)
    vocab, merges = folder / "tokenizer" / "vocab.json", folder / "tokenizer" / "merges.txt"
    vocab.write_text(json.dumps(WORDS))
    merges.write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(vocab), str(merges), model_max_length=77, pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder / "tokenizer")


def _write_data(folder: Path, dataset: DataSet) -> None:
    rng = np.random.default_rng(SEED)
    ids = [f"town/town_{i}" if dataset.recursive else f"tiny_{i}" for i in range(IMAGES)]
    for id in ids:
        image = folder / dataset.images / f"{id}{dataset.image_suffix[0]}"
        mask = folder / dataset.masks / f"{id}{dataset.mask_suffix}"
        for path, content in ((image, _blocks(rng, 256, 3)), (mask, _labels(rng, dataset))):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
    if dataset.split:
        split = folder / dataset.split
        split.parent.mkdir(parents=True, exist_ok=True)
        split.write_text("".join(f"{id}\n" for id in ids), encoding="utf-8")


def _labels(rng: np.random.Generator, dataset: DataSet) -> NDArray[np.uint8]:
    labels = _blocks(rng, dataset.highest + 1, 1)[..., 0]
    labels[:BLOCK, :BLOCK] = IGNORE
    return labels


def _blocks(rng: np.random.Generator, values: int, channels: int) -> NDArray[np.uint8]:
    """Sample [H, W, channels] values below `values`, constant within a block."""
    H, W = SIDE
    drawn = rng.integers(0, values, (H // BLOCK, W // BLOCK, channels), dtype=np.uint8)
    return drawn.repeat(BLOCK, 0).repeat(BLOCK, 1)


if __name__ == "__main__":
    registry._registered = with_tiny_sizes(registry._registered)
    sys.exit(main(sys.argv[1:]))
