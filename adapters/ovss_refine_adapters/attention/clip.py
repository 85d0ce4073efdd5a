"""Self-attention of CLIP's image tower: q-k, q-q or k-k, of one block or several.

q-k is the attention that the tower computes; q-q and k-k compare queries with queries and keys with
keys (F. Wang et al., "SCLIP", ECCV 2024; S. Hajimiri et al., "NACLIP", WACV 2025).

Axes: B images, A heads, T = 1 + N tokens (class token first), N = gh * gw patches, d channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ovss_refine.attention import Attention
from ovss_refine.checks import check_choice, check_count
from ovss_refine.images.convert import ImagesLike
from ovss_refine_adapters.backbones.capture import (
    check_images,
    check_layer_weights,
    check_size,
    mix_attention,
    resize,
    target_size,
    undisturbed,
)
from ovss_refine_adapters.backbones.clip_tower import Tower
from ovss_refine_adapters.backbones.open_clip import load_clip

Similarity = Literal["qk", "qq", "kk"]


class CLIPAttention:
    """The self-attention of an open_clip image tower.

    Args:
        model: "B/16", "L/14" (OpenAI's weights), an open_clip name, "hf-hub:owner/name", a folder
            ("local-dir:PATH" or a path), or a ready model.
        pretrained: tag or file of the weights, for an open_clip name. A tag is refused if its
            weights were trained with a different activation.
        similarity: what is compared: "qk", "qq" or "kk".
        layers: blocks whose maps are averaged, negative from the end; or "all".
        layer_weights: one per layer, >= 0, not all zero, divided by their sum; None:
            equal.
        size: size to resize images to. None: their own, each side rounded to a multiple of the
            patch; a number: the shorter side; a pair: (height, width).
        faithful: True: add the position table unchanged to any grid with as many patches, as the
            released code of the compared methods does; False: only to its own grid.
        factors: return queries and keys instead of the N x N map. Every head's softmax then
            excludes the class token, so that each head's rows sum to one before the mean over
            heads, not after it. The weights of the layers must be equal.
        device: device to load onto; None: the CPU.

    Raises:
        ModuleNotFoundError: if open_clip is not installed.
        FileNotFoundError: if the weights are unavailable; the message says what to do.
        TypeError: on a value of the wrong kind.
        ValueError: on options out of range, an unknown model, another kind of tower or an
            activation other than the weights'.
    """

    def __init__(
        self,
        model: str | Path | nn.Module = "B/16",
        pretrained: str | Path | None = None,
        *,
        similarity: Similarity = "qk",
        layers: Sequence[int] | Literal["all"] = (-1,),
        layer_weights: Sequence[float] | None = None,
        size: int | tuple[int, int] | None = None,
        faithful: bool = True,
        factors: bool = False,
        device: str | torch.device | None = None,
    ) -> None:
        """Load the model and check the options."""
        check_choice("similarity", similarity, ("qk", "qq", "kk"))
        clip = load_clip(model, pretrained, device=device)
        self.tower = Tower(getattr(clip.model, "visual", None), faithful)
        self.layers = _check_layers(layers, self.tower.layers)
        self.layer_weights = check_layer_weights(
            "layer_weights", layer_weights, len(self.layers), factors=factors
        )
        self.size = check_size("size", size, self.tower.patch)
        self.similarity = similarity
        self.factors = factors
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (clip.mean, clip.std))

    def attention(self, images: ImagesLike) -> Attention:
        """Compute the attention of B `images`, in any form that `AttentionSource` lists.

        Memory beyond the model and its activations: B * N * N floats, four blocks of 2^21, and
        2 * B * A * T * d floats for each layer, 4 with `factors`.

        Returns:
            B maps over the grid of patches, float32, on the device of `images`.

        Raises:
            TypeError: on images in none of these forms.
            ValueError: on images of another shape or range.
        """
        images = check_images(images)
        tower, device = self.tower, self.tower.device
        size = target_size(self.size, images.shape[2], images.shape[3], tower.patch)
        pairs = {}
        with undisturbed(tower.visual):
            pixels = resize(images.to(device), size)
            x = tower.stem((pixels - self.mean.to(device)) / self.std.to(device))
            for i in range(max(self.layers) + 1):
                if i in self.layers:
                    q, k, _ = tower.qkv(i, x)
                    pairs[i] = {"qk": (q, k), "qq": (q, q), "kk": (k, k)}[self.similarity]
                if i < max(self.layers):
                    x = tower.block(i, x)
        return mix_attention(
            [(*pairs[i], pairs[i][0].shape[-1] ** -0.5) for i in self.layers],
            self.layer_weights,
            tower.grid(*size),
            prefix=1,
            factors=self.factors,
            device=images.device,
        )


def _check_layers(layers: Sequence[int] | Literal["all"], count: int) -> list[int]:
    """Return `layers` counted from the start."""
    if layers == "all":
        return list(range(count))
    if isinstance(layers, str) or len(layers) == 0:
        raise ValueError(f"`layers` must be 'all' or name at least one layer; got {layers!r}.")
    for layer in layers:
        check_count("layers", layer, -count)
        if layer >= count:
            raise ValueError(f"`layers` must be in [-{count}, {count - 1}]; got {layer}.")
    return [layer % count for layer in layers]


def clip_b16(**options: Any) -> CLIPAttention:
    """CLIP ViT-B/16 with OpenAI's weights; the shorter side is 448 pixels."""
    own: dict[str, Any] = {"model": "B/16", "size": 448}
    return CLIPAttention(**(own | options))


def clip_l14(**options: Any) -> CLIPAttention:
    """CLIP ViT-L/14 with OpenAI's weights; the shorter side is 448 pixels."""
    own: dict[str, Any] = {"model": "L/14", "size": 448}
    return CLIPAttention(**(own | options))
