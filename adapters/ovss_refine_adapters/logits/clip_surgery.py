"""CLIP Surgery: a second stream of v-v attention, and prompts weighted by the whole image.

Source: Y. Li et al., "A Closer Look at the Explainability of Contrastive Language-Image
Pre-training", Pattern Recognition 162, 2025 (arXiv 2304.05653). In each of the last blocks the
values attend to themselves; the second stream adds the outputs. Feature surgery then weights each
prompt by how well it fits the whole image, and subtracts what all prompts have in common.

Axes: B images, K prompts, A heads of d channels, T = 1 + N tokens (class token first), C channels
of the tower, D of the joint space, (h, w) grid.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.checks import check_finite, check_float, check_shape
from ovss_refine.labels import LabelsLike
from ovss_refine_adapters.backbones.clip_tower import self_similarity, to_map
from ovss_refine_adapters.backbones.positions import resize_positions_to
from ovss_refine_adapters.logits.two_streams import TwoStreamClip, stretch
from ovss_refine_adapters.logits.windows import upsample

# Factor on the cosines of prompts and image before the softmax that weights the prompts.
WEIGHT_SCALE = 2.0


class ClipSurgeryLogits(TwoStreamClip):
    """CLIP with v-v attention in its last blocks, and feature surgery.

    Logits are cosines times weights of mean one, less their mean over prompts, so they can leave
    [-1, 1]. Memory beyond the tower's: a few times B * A * T * T floats.
    Further arguments and exceptions are those of `DenseClip`.

    Args:
        blocks: number of last blocks with v-v attention.
        redundant: [D] text features of what all prompts share, such as an empty text: their cosines
            are subtracted instead, without weights. None: feature surgery.
        options: fields of `ClipOptions`. `faithful` resizes images to a square of `short_side`, by
            Pillow's bicubic filter; otherwise they keep their shape.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "templates": "imagenet-scene",
        "short_side": 512,
        "window": None,
        "logit_scale": 100.0,
    }

    def __init__(
        self,
        classes: LabelsLike,
        *,
        blocks: int = 6,
        redundant: Tensor | None = None,
        **options: Any,
    ) -> None:
        """Load the model and embed the classes."""
        super().__init__(classes, blocks=blocks, **options)
        if redundant is not None:
            check_shape("redundant", redundant, "D", D=self.text.shape[1])
            check_float("redundant", redundant)
            check_finite("redundant", redundant)
            redundant = F.normalize(redundant.detach().to(self.tower.device).float(), dim=0)
        self.redundant = redundant

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute patch features [B, D, h, w] and the class embedding [B, D], both float32."""
        first, y = self.streams(pixels)
        tokens = self.tower.head(torch.cat([first, y[:, 1:]], dim=1))
        return to_map(tokens[:, 1:], self.tower.grid(*pixels.shape[-2:])), tokens[:, 0]

    def features(self, pixels: Tensor) -> Tensor:
        """Compute patch features: [B, 3, H, W] normalised pixels to [B, D, h, w] float32."""
        return self.encode(pixels)[0]

    def cosines(self, pixels: Tensor, context: Any) -> Tensor:
        """Compare patches with prompts, after surgery: [B, K, h, w] float32."""
        patches, whole = self.encode(pixels)
        unit = F.normalize(patches, dim=1)
        text = self.text if self.redundant is None else self.text - self.redundant
        cosines = torch.einsum("bdhw,kd->bkhw", unit, text)
        if self.redundant is not None:
            return cosines
        return feature_surgery(cosines, weights(F.normalize(whole, dim=-1) @ self.text.T))

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Resize the tower's position embeddings to the grid: [T, C]."""
        table: Tensor = self.tower.visual.positional_embedding
        if self.options.faithful and grid[0] * grid[1] == len(table) - 1:
            return table  # whatever the grid's shape
        return resize_positions_to(table, grid, mode="bilinear")

    def attend(self, i: int, tokens: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Average the values by v-v attention: [B, T, C] to [B, A, T, d] float32."""
        return self_similarity(v, v) @ v


def weights(whole: Tensor) -> Tensor:
    """Weight prompts by their cosines with the whole image: [B, K] to [B, K] of mean one."""
    return (WEIGHT_SCALE * whole).softmax(dim=-1) * whole.shape[-1]


def feature_surgery(cosines: Tensor, weights: Tensor) -> Tensor:
    """Weight the cosines of each prompt, and subtract their mean over prompts at each patch.

    The mean is the same for all prompts, so that it changes heat maps but neither a softmax over
    prompts nor the best one.

    Args:
        cosines: [B, K, h, w].
        weights: [B, K], from `weights`.

    Returns:
        [B, K, h, w] with a mean over prompts of zero; all zero for a single prompt.
    """
    weighted = cosines * weights[:, :, None, None]
    return weighted - weighted.mean(dim=1, keepdim=True)


def heat_maps(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Map the range of each prompt's map onto [0, 1], then upsample, as CLIP Surgery shows them.

    For drawing: a map always reaches 1 at a patch, whether the class is there or not.

    Args:
        values: [B, K, h, w] logits, from `ClipSurgeryLogits` on whole images.
        size: (H, W) of the image.

    Returns:
        [B, K, H, W] in [0, 1].

    Raises:
        ValueError: if `values` do not have four axes.
    """
    check_shape("values", values, "B K h w")
    return upsample(stretch(values), size)
