"""Attention of vision transformers: DINO, DINOv2, DINOv3 and any other in timm.

The maps are those of the method's paper (J. Li et al., CVPR 2026, section 4.1 and its Table 5):
softmax attention of chosen blocks, mean over heads, prefix tokens dropped, rows renormalised.

Axes: B images, A heads, N = gh * gw patches, d channels per head.
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
from ovss_refine_adapters.attention.affinity import AffinityAttention
from ovss_refine_adapters.backbones.capture import check_images, check_layer_weights, mix_attention
from ovss_refine_adapters.backbones.timm import Positions, TimmBackbone

Kind = Literal["attention", "affinity"]
_DINO: dict[str, Any] = {"size": 448, "positions": "reference"}


class ViTAttention:
    """The self-attention of a timm vision transformer.

    Further arguments and exceptions are those of `TimmBackbone`.

    Args:
        layers: blocks whose maps are averaged, negative from the end.
        layer_weights: one per layer, >= 0, not all zero, divided by their sum; None: equal.
        kind: "attention", or "affinity": softmax(cosine / temperature) of the features after
            the one block in `layers`.
        temperature: of the affinity, > 0.
        factors: return queries and keys instead of the N x N map. Every head's softmax then
            excludes prefix tokens, so that each head's rows sum to one before the mean over heads,
            not after it. The weights of the layers must be equal.

    Raises:
        TypeError, ValueError: on a layer that does not exist, weights that do not fit the layers,
            several layers for an affinity, or a model whose blocks do not have plain softmax
            attention.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        layers: Sequence[int] = (-1,),
        layer_weights: Sequence[float] | None = None,
        kind: Kind = "attention",
        temperature: float = 0.1,
        factors: bool = False,
        weights: str | Path | None = None,
        size: int | tuple[int, int] | None = None,
        positions: Positions = "timm",
        device: str | torch.device | None = None,
        dtype: DtypeLike = None,
    ) -> None:
        """Load the model and check the options."""
        check_choice("kind", kind, get_args(Kind))
        options: dict[str, Any] = {"weights": weights, "size": size, "positions": positions}
        self.backbone = TimmBackbone(model, **options, device=device, dtype=dtype)
        self.layers = self.backbone.check_layers(layers)
        self.layer_weights = check_layer_weights(
            "layer_weights", layer_weights, len(self.layers), factors=factors
        )
        self.kind = kind
        self.factors = factors
        if kind == "attention":
            self.backbone.check_attention(self.layers)
            return
        if len(self.layers) != 1:
            raise ValueError(f"`layers` must be one layer for an affinity; got {list(layers)}.")
        self._affinity = AffinityAttention(
            self.backbone, layer=self.layers[0], temperature=temperature, factors=factors
        )

    def attention(self, images: ImagesLike) -> Attention:
        """Compute B float32 maps over the grid of patches, on the device of `images`.

        Images and exceptions are those of `AttentionSource`. Memory beyond the model and its
        activations: B * N * N floats and four blocks of 2^21, or 4 * B * A * N * d floats for each
        layer with `factors`.

        Raises:
            ValueError: also on a size that the model was not made for.
            RuntimeError: if a block ran without computing attention.
        """
        images = check_images(images)
        if self.kind == "affinity":
            return self._affinity.attention(images)
        found = self.backbone.projections(images, self.layers)
        return mix_attention(
            [(one.q, one.k, one.scale) for one in found],
            self.layer_weights,
            self.backbone.grid(images),
            prefix=self.backbone.prefix,
            factors=self.factors,
            device=images.device,
        )


def dino_b8(**options: Any) -> ViTAttention:
    """DINO ViT-B/8 with its own position rule; the shorter side is 448 pixels, 56 patches."""
    return ViTAttention(**{"model": "vit_base_patch8_224.dino", **_DINO, **options})


def dino_b16(**options: Any) -> ViTAttention:
    """DINO ViT-B/16 with its own position rule; the shorter side is 448 pixels, 28 patches."""
    return ViTAttention(**{"model": "vit_base_patch16_224.dino", **_DINO, **options})


def dinov2_b14(**options: Any) -> ViTAttention:
    """DINOv2 ViT-B/14; the shorter side is 518 pixels, its native size, 37 patches."""
    return ViTAttention(**{"model": "vit_base_patch14_dinov2.lvd142m", "size": 518, **options})


def dinov2_b14_reg(**options: Any) -> ViTAttention:
    """DINOv2 ViT-B/14 with four registers; the shorter side is 518 pixels, 37 patches."""
    return ViTAttention(**{"model": "vit_base_patch14_reg4_dinov2.lvd142m", "size": 518, **options})


def dinov3_b16(**options: Any) -> ViTAttention:
    """DINOv3 ViT-B/16 from timm's ungated copy; the shorter side is 512 pixels, 32 patches."""
    return ViTAttention(**{"model": "vit_base_patch16_dinov3.lvd1689m", "size": 512, **options})


def radio_b16(**options: Any) -> ViTAttention:
    """C-RADIO v3 ViT-B/16, in its NaFlex form; the shorter side is 512 pixels, 32 patches."""
    return ViTAttention(
        **{"model": "naflexvit_base_patch16_radio_v3.c_radio", "size": 512, **options}
    )


def tipsv2_b14(**options: Any) -> ViTAttention:
    """TIPSv2 ViT-B/14; the shorter side is 448 pixels, its native size, 32 patches."""
    return ViTAttention(**{"model": "vit_base_patch14_reg1_tipsv2.webli", "size": 448, **options})
