"""Self-attention of CLIP's image tower: q-k, q-q or k-k, of one block or several.

q-k is the attention that the tower computes; q-q and k-k compare queries with queries and keys with
keys (F. Wang et al., "SCLIP", ECCV 2024; S. Hajimiri et al., "NACLIP", WACV 2025).

Axes: B images, A heads, T = 1 + N tokens (class token first), N = gh * gw patches, d channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from ovss_refine.attention import Attention
from ovss_refine.checks import check_choice
from ovss_refine.images.convert import ImagesLike
from ovss_refine.sources.device import DtypeLike
from ovss_refine_adapters.backbones.capture import (
    check_images,
    check_layer_weights,
    check_layers,
    check_size,
    mix_attention,
    resize,
    target_size,
)
from ovss_refine_adapters.backbones.clip_tower import Tower
from ovss_refine_adapters.backbones.open_clip import load_clip
from ovss_refine_adapters.backbones.plain import undisturbed

Similarity = Literal["qk", "qq", "kk"]


class CLIPAttention:
    """The self-attention of an open_clip image tower.

    Args:
        model: as in `ClipOptions`.
        pretrained: as in `ClipOptions`. A tag is refused if its weights were trained with a
            different activation.
        similarity: what is compared: "qk", "qq" or "kk".
        layers: blocks whose maps are averaged, negative from the end; or "all".
        layer_weights: as in `ViTAttention`.
        size: as in `TimmBackbone`.
        faithful: True: add the position table unchanged to any grid with as many patches, as the
            released code of the compared methods does; False: only to its own grid.
        factors: as in `ViTAttention`.
        device: device to load onto; None: the CPU.
        dtype: as in `ClipOptions`.

    Raises:
        ModuleNotFoundError, FileNotFoundError: if open_clip or the weights are missing.
        TypeError, ValueError: on options of the wrong kind or out of range, an unknown model,
            another kind of tower or an activation other than the weights'.
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
        dtype: DtypeLike = None,
    ) -> None:
        """Load the model and check the options."""
        check_choice("similarity", similarity, get_args(Similarity))
        clip = load_clip(model, pretrained, device=device, dtype=dtype)
        self.tower = Tower(getattr(clip.model, "visual", None), faithful)
        count = self.tower.layers
        self.layers = check_layers(range(count) if layers == "all" else layers, count)
        self.layer_weights = check_layer_weights(
            "layer_weights", layer_weights, len(self.layers), factors=factors
        )
        self.size = check_size("size", size, self.tower.patch)
        self.similarity = similarity
        self.factors = factors
        self.mean, self.std = (
            torch.tensor(x, dtype=torch.float32).view(3, 1, 1) for x in (clip.mean, clip.std)
        )

    def attention(self, images: ImagesLike) -> Attention:
        """Compute B float32 maps over the grid of patches, on the device of `images`.

        Images and exceptions are those of `AttentionSource`. Memory beyond the model and its
        activations: B * N * N floats, four blocks of 2^21, and 2 * B * A * T * d floats for each
        layer, 4 with `factors`.
        """
        images = check_images(images)
        tower, device = self.tower, self.tower.device
        size = target_size(self.size, images, tower.patch)
        pairs = {}
        with undisturbed(tower.visual):
            pixels = resize(images.to(device), size)
            x = tower.stem((pixels - self.mean.to(device)) / self.std.to(device))
            for i in range(max(self.layers) + 1):
                if i == max(self.layers):
                    found = tower.qkv(i, x, "".join(dict.fromkeys(self.similarity)))
                    pairs[i] = found[0], found[-1]
                elif i in self.layers:
                    q, k, v = tower.qkv(i, x)
                    pairs[i] = {"qk": (q, k), "qq": (q, q), "kk": (k, k)}[self.similarity]
                    x = tower.block_of(i, x, q, k, v)
                else:
                    x = tower.block(i, x)
        return mix_attention(
            [(*pairs[i], pairs[i][0].shape[-1] ** -0.5) for i in self.layers],
            self.layer_weights,
            tower.grid(*size),
            prefix=1,
            factors=self.factors,
            device=images.device,
        )


def clip_b16(**options: Any) -> CLIPAttention:
    """CLIP ViT-B/16 with OpenAI's weights; the shorter side is 448 pixels."""
    return CLIPAttention(**{"model": "B/16", "size": 448, **options})


def clip_l14(**options: Any) -> CLIPAttention:
    """CLIP ViT-L/14 with OpenAI's weights; the shorter side is 448 pixels."""
    return CLIPAttention(**{"model": "L/14", "size": 448, **options})
