"""The trained part of TCL: a last block of its own, a decoder, a projection, and a sigmoid.

Source: J. Cha et al., "Learning to Generate Text-grounded Mask for Open-world Semantic Segmentation
from Only Image-Text Pairs", CVPR 2023.

Axes: B images, K prompts, C channels of CLIP's image tower, D channels of the joint image-text
space, (h, w) grid of N = h * w patches, (y, x) any grid.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine_adapters.backbones.clip_tower import to_map
from ovss_refine_adapters.backbones.weights import check_finite_weights, load_head

# Each doubles the sides of the grid.
STAGES = 2
# Of the sigmoid of cosines before training.
SLOPE, SHIFT = 10.0, -2.5
# Beginnings of the tensors' names in the released file, and their names here.
RELEASED = {
    "masker.image_encoder.backbone.transformer.resblocks.11.": "block.",
    "masker.image_encoder.decoder.decoder.net.": "stages.",
    "masker.image_encoder.decoder.image_proj.": "image_proj.",
    "masker.sim2mask.": "sim2mask.",
}


class SelfBlock(nn.Module):
    """A block of OpenAI's CLIP in which every token attends only to itself.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        """Make the layers, named as in CLIP."""
        super().__init__()
        # The number of heads does not matter, as only the values are used.
        self.attn = nn.MultiheadAttention(channels, 1)
        self.ln_1 = nn.LayerNorm(channels)
        self.ln_2 = nn.LayerNorm(channels)
        layers = {
            "c_fc": nn.Linear(channels, 4 * channels),
            "c_proj": nn.Linear(4 * channels, channels),
        }
        self.mlp = nn.ModuleDict(layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Run the block: [B, N, C] to [B, N, C]."""
        weight, bias = self.attn.in_proj_weight.chunk(3)[2], self.attn.in_proj_bias.chunk(3)[2]
        x = tokens + self.attn.out_proj(F.linear(self.ln_1(tokens), weight, bias))
        hidden = self.mlp["c_fc"](self.ln_2(x))
        out: Tensor = x + self.mlp["c_proj"](hidden * (1.702 * hidden).sigmoid())
        return out


class GatedConvolution(nn.Module):
    """x + tanh(gate) * convolution of gelu(norm(x)), 3 x 3, zeros around the border.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        """Make the layers, named as in the released file."""
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate = nn.ParameterDict({"gate": nn.Parameter(torch.zeros(()))})

    def forward(self, maps: Tensor) -> Tensor:
        """Run the layers: [B, C, y, x] to [B, C, y, x]."""
        normal = self.norm(maps.movedim(1, -1)).movedim(-1, 1)
        out: Tensor = maps + self.gate["gate"].tanh() * self.conv(F.gelu(normal))
        return out


class Stage(nn.Module):
    """Twice the grid, then two gated convolutions.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        """Make the layers, named as in the released file."""
        super().__init__()
        self.conv = GatedConvolution(channels)
        self.conv2 = GatedConvolution(channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Run the layers: [B, C, y, x] to [B, C, 2y, 2x]."""
        larger = F.interpolate(maps, scale_factor=2, mode="nearest")
        out: Tensor = self.conv2(self.conv(larger))
        return out


class Projection(nn.Module):
    """From CLIP's channels to the joint space: a norm, then a matrix.

    Args:
        channels: C.
        joint: D.
    """

    def __init__(self, channels: int, joint: int) -> None:
        """Make the layers, named as in the released file."""
        super().__init__()
        self.ln = nn.LayerNorm(channels)
        self.proj = nn.Parameter(torch.zeros(channels, joint))

    def forward(self, maps: Tensor) -> Tensor:
        """Project [B, C, y, x] maps to [B, D, y, x]."""
        projected: Tensor = self.ln(maps.movedim(1, -1)) @ self.proj
        return projected.movedim(-1, 1)


class LearntSigmoid(nn.Module):
    """From cosines to masks."""

    def __init__(self) -> None:
        """Make both parameters, named as in the released file, as they were before training."""
        super().__init__()
        self.w = nn.Parameter(torch.tensor(SLOPE))
        self.b = nn.Parameter(torch.tensor(SHIFT))

    def forward(self, cosines: Tensor) -> Tensor:
        """Map cosines of any shape to [0, 1]."""
        return (self.w * cosines + self.b).sigmoid()


class TclMasker(nn.Module):
    """The trained part of TCL.

    Args:
        channels: C, the width of CLIP's image tower.
        joint: D, the width of the joint image-text space.
    """

    def __init__(self, channels: int, joint: int) -> None:
        """Make the layers."""
        super().__init__()
        self.block = SelfBlock(channels)
        self.stages = nn.ModuleList(Stage(channels) for _ in range(STAGES))
        self.image_proj = Projection(channels, joint)
        self.sim2mask = LearntSigmoid()

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Compute features, not of unit length, on a grid four times as fine: [B, D, 4h, 4w].

        In the dtype of the weights, then float32.

        Args:
            tokens: [B, N, C] patches that enter CLIP's last block.
            grid: (h, w).
        """
        maps = to_map(self.block(tokens.to(self.image_proj.proj.dtype)), grid)
        for stage in self.stages:
            maps = stage(maps)
        features: Tensor = self.image_proj(maps)
        return features.float()

    def masks(self, cosines: Tensor) -> Tensor:
        """Map [B, K, y, x] float32 cosines to masks in [0, 1]."""
        masks: Tensor = self.sim2mask(cosines)
        return masks

    def computing_in(self, dtype: torch.dtype) -> Self:
        """Convert all weights to a dtype, but not those of the sigmoid, and return the module."""
        for part in (self.block, self.stages, self.image_proj):
            part.to(dtype)
        return self


def as_masker(masker: str | Path | nn.Module | None) -> TclMasker:
    """Load the trained part, or take a ready one."""
    if masker is None:
        raise ValueError(
            "`masker` must be a weight file or a `TclMasker`; got None. Pass the path of `tcl.pth`,"
            " 0.1 GB, from release v1.0.0 of https://github.com/kakaobrain/tcl (MIT)."
        )
    if not isinstance(masker, nn.Module):
        loaded: Any = load_head(masker, "masker", "tcl.pth", masker_of, RELEASED)
        masker = loaded
    if not isinstance(masker, TclMasker):
        raise TypeError(
            f"`masker` must be a weight file or a `TclMasker`; got {type(masker).__name__}."
        )
    check_finite_weights(masker, type(masker).__name__)
    return masker


def masker_of(state: Mapping[str, Tensor]) -> TclMasker:
    """Make the trained part, without its values, that has these tensors."""
    channels, joint = state["image_proj.proj"].shape
    return TclMasker(channels, joint)


def check_fit(masker: TclMasker, projection: Tensor) -> None:
    """Raise unless CLIP has the widths that the trained part has.

    Args:
        masker: the trained part.
        projection: [C, D] of CLIP's image tower.
    """
    own, wanted = tuple(masker.image_proj.proj.shape), tuple(projection.shape)
    if own != wanted:
        raise ValueError(
            f"`masker` must have been trained for the model's {wanted[0]} and {wanted[1]} "
            f"channels; got {own[0]} and {own[1]}."
        )
