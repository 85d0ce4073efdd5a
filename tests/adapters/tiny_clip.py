"""A tiny CLIP of open_clip's own classes, with random weights large enough to make a difference."""

import open_clip
import torch
from torch import nn

VISION = {"layers": 3, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
CONFIG = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}
CLASSES = ["cat/kitten", "dog", "grass"]


def tiny_clip(**vision):
    """An `open_clip.CLIP` with patches of 8 pixels and a native grid of 4 x 4."""
    model = open_clip.CLIP(
        24,
        open_clip.CLIPVisionCfg(**(VISION | vision)),
        open_clip.CLIPTextCfg(**TEXT),
        quick_gelu=True,
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        # So that attention is neither flat nor one-hot, and all parts have similar magnitudes.
        mean = float("ln_" in name and name.endswith("weight"))
        std = 0.5 if name.endswith("embedding") else 0.1
        if name != "logit_scale":
            nn.init.normal_(parameter, mean=mean, std=std, generator=generator)
    return model.eval()


def make(producer, classes=CLASSES, model=None, **options):
    """A producer on a tiny CLIP: whole images at their own size, one template, no cache."""
    plain = {"short_side": None, "window": None, "templates": "single", "cache_dir": None}
    return producer(
        classes=classes, model=tiny_clip() if model is None else model, **(plain | options)
    )


def images(B=2, H=48, W=80):
    return torch.rand(B, 3, H, W, generator=torch.Generator().manual_seed(1))


def halves(images):
    """Return two masks of each image: its left half, and the rest."""
    B, _, H, W = images.shape
    left = torch.arange(W).expand(B, H, W) < W // 2
    return torch.stack([left, ~left], dim=1)
