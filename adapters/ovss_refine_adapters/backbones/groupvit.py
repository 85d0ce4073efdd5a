"""Load a GroupViT of transformers, and run it in parts, for images of any size.

Axes: B images, (H, W) pixels, N patches on an (h, w) grid, G groups, C channels of the joint
image-text space, n texts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine.sources.device import DtypeLike, given_dtype
from ovss_refine_adapters.backbones.open_clip import Clip, Tokenizer, own_tokenizer
from ovss_refine_adapters.backbones.positions import resize_positions_to
from ovss_refine_adapters.backbones.transformers_model import load_transformers
from ovss_refine_adapters.backbones.weights import check_finite_weights, check_unset

# ImageNet's statistics, which the released evaluation uses.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """What GroupViT makes of images.

    Attributes:
        assignments: soft assignments of each stage, to its groups: [B, G1, N], [B, G, G1].
        features: [B, G, C] of the last groups, not of unit length.
        mean: [B, C] of the whole images, not of unit length.
    """

    assignments: tuple[Tensor, ...]
    features: Tensor
    mean: Tensor

    def of_patches(self) -> Tensor:
        """Return how much each patch belongs to each of the last groups: [B, G, N]."""
        first, *others = self.assignments
        for later in others:
            first = later @ first
        return first


def load_groupvit(
    model: str | Path | nn.Module,
    device: str | torch.device | None = None,
    dtype: DtypeLike = None,
) -> nn.Module:
    """Load a model, or take a ready one.

    Args:
        model: "owner/name" on the hub, a folder ("local-dir:PATH" or a path) with config.json and
            the weights, or a ready `GroupViTModel`, whose device and mode are left alone.
        device: device to load onto; None: the CPU.
        dtype: dtype that the image side is converted to, as for `given_dtype`; None: float32.

    Raises:
        ModuleNotFoundError, FileNotFoundError: if transformers, a folder or weights are missing.
        ValueError: on another model, weights that do not fit or are not finite, or a folder whose
            files may run code.
    """
    if isinstance(model, nn.Module):
        check_unset({"dtype": dtype}, "a ready model")
    loaded: Any = load_transformers(model, {"groupvit": "GroupViTModel"}, device)
    if (converted := given_dtype(dtype, loaded.logit_scale.device)) is not None:
        for side in (loaded.vision_model, loaded.visual_projection):
            check_finite_weights(side.to(converted), str(model))
    ready: nn.Module = loaded
    return ready


class TextTower(nn.Module):
    """The text side of a GroupViT, with the method that `text_features` calls.

    Args:
        model: a `GroupViTModel`; its parts are shared.
    """

    def __init__(self, model: Any) -> None:
        """Take the parts."""
        super().__init__()
        self.text_model = model.text_model
        self.text_projection = model.text_projection

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embed [n, context] token ids: [n, C], not of unit length."""
        embedded: Tensor = self.text_projection(self.text_model(input_ids=tokens).pooler_output)
        return embedded


def text_side(model: Any, tokenizer: Tokenizer | None) -> Clip:
    """Return the text side as `text_features` takes it; CLIP's vocabulary without `tokenizer`.

    Padding comes after the end of a text, which attention sees no further than.
    """
    config = model.config.text_config
    if tokenizer is None:
        tokenizer = own_tokenizer(config.max_position_embeddings, config.vocab_size)
    return Clip(TextTower(model), tokenizer, MEAN, STD)


def encode(model: Any, pixels: Tensor) -> Groups:
    """Run the image side on [B, 3, H, W] normalised pixels."""
    vision = model.vision_model
    embeddings = vision.embeddings
    x = embeddings.patch_embeddings.projection(pixels.to(embeddings.position_embeddings.dtype))
    grid = (x.shape[2], x.shape[3])
    table = resize_positions_to(embeddings.position_embeddings[0], grid, prefix=0)
    x = embeddings.layernorm(x.flatten(2).mT) + table.to(x.dtype)  # [B, N, width]
    out = vision.encoder(x, output_attentions=True, return_dict=True)
    tokens = vision.layernorm(out.last_hidden_state)  # [B, G, width]
    B, G, width = tokens.shape
    features = model.visual_projection(tokens.reshape(B * G, width)).view(B, G, -1)
    mean = model.visual_projection(tokens.mean(dim=1))
    assignments = tuple(one.float() for one in out.attentions)
    return Groups(assignments, features.float(), mean.float())


def group_maps(groups: Groups, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Upsample how much patches belong to groups to pixels: [B, G, *size]."""
    maps = groups.of_patches()
    maps = maps.reshape(*maps.shape[:2], *grid)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
