"""TCL: CLIP with a trained decoder, whose masks of a prompt are four times as fine as the patches.

Source: J. Cha et al., "Learning to Generate Text-grounded Mask for Open-world Semantic Segmentation
from Only Image-Text Pairs", CVPR 2023. A last block of its own, in which patches attend only to
themselves, and a convolutional decoder were trained on images and captions; everything else is
CLIP. The masks are refined by PAMR and mixed with those of MaskCLIP.

Axes: B images, K prompts, C channels, D channels of the joint image-text space, (h, w) grid,
N = h * w patches.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine.baseline.pamr import pamr
from ovss_refine.checks import check_count, check_number
from ovss_refine.labels import LabelsLike
from ovss_refine_adapters.backbones.clip_tower import to_map
from ovss_refine_adapters.backbones.positions import resize_positions_to
from ovss_refine_adapters.logits.dense import DenseClip
from ovss_refine_adapters.logits.talk2dino import PAMR_DILATIONS
from ovss_refine_adapters.logits.talk2dino import TEMPLATES as SEVEN
from ovss_refine_adapters.logits.tcl_masker import SHIFT, SLOPE, as_masker, check_fit
from ovss_refine_adapters.logits.windowed import check_background
from ovss_refine_adapters.logits.windows import upsample
from ovss_refine_adapters.text import as_classes, raw_text_features

TEMPLATES = (*SEVEN, "a photo of many {}.", "a photo of {}s.")
# ImageNet's, in grey levels.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class TclLogits(DenseClip):
    """CLIP's patches, decoded to a finer grid, and compared with prompts.

    The logits are masks in [0, 1]: no softmax is published, and `logit_scale` is our choice. On
    whole images they lie on a grid four times as fine as that of the patches, or on the pixels if
    these are not whole patches. Memory beyond the tower's: a few times B * 16 * N * C floats.
    Further arguments and exceptions are those of `DenseClip`. `faithful` also puts the corner
    pixels of the image that guides PAMR on the corners of the grid.

    Args:
        masker: weight file of the trained part, such as the released "tcl.pth", a folder with it or
            with a single weight file, or a ready `TclMasker` on the model's device. Required.
        background: None: class 0 is a class like any other. A number in [0, 1]: class 0 is the
            background, it has one prompt, which is not compared with the image, and its mask is
            this constant (published: 0.4, or 0.5 without PAMR).
        maskclip_weight: share of MaskCLIP's masks, in [0, 1].
        pamr_steps: iterations of PAMR on the masks of each window, dilations 1 to 24; 0: none.
        options: fields of `ClipOptions`. `text_features` need not be of unit length.

    Raises:
        ValueError: also without `masker`, or if it was trained for a tower of other widths.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "short_side": 448,
        "window": 448,
        "stride": 224,
        # The sigmoid's slope is at most 10 / 4 before training, so that this is 40 on cosines.
        "logit_scale": 16.0,
        "templates": TEMPLATES,
    }

    def __init__(
        self,
        classes: LabelsLike,
        *,
        masker: str | Path | nn.Module | None = None,
        background: float | None = None,
        maskclip_weight: float = 0.3,
        pamr_steps: int = 10,
        **options: Any,
    ) -> None:
        """Load the models and embed the classes."""
        if background is not None:
            check_number("background", background, 0, 1)
        check_number("maskclip_weight", maskclip_weight, 0, 1)
        check_count("pamr_steps", pamr_steps, 0)
        self.background = background
        self.maskclip_weight = maskclip_weight
        self.pamr_steps = pamr_steps
        # Before anything is loaded.
        self.classes = as_classes(classes)
        self._check_classes()
        loaded = as_masker(masker)
        super().__init__(self.classes, **options)
        check_fit(loaded, self.tower.visual.proj)
        if loaded is not masker:
            loaded = loaded.to(self.device).computing_in(self.tower.visual.conv1.weight.dtype)
        self.masker = loaded
        self._mean, self._std = (
            torch.tensor(row, device=self.device).view(1, 3, 1, 1) for row in (MEAN, STD)
        )

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The image tower and the trained part."""
        return (self.tower.visual, self.masker)

    def features(self, pixels: Tensor) -> Tensor:
        """Compute decoded features: [B, 3, H, W] normalised pixels to [B, D, 4h, 4w] float32."""
        return self.decoded(self.patches(pixels), self.tower.grid(*pixels.shape[-2:]))

    def patches(self, pixels: Tensor) -> Tensor:
        """Run the tower up to its last block: [B, 3, H, W] normalised pixels to [B, N, C]."""
        tower = self.tower
        table = tower.visual.positional_embedding
        x = tower.stem(pixels, resize_positions_to(table, tower.grid(*pixels.shape[-2:])))
        x, _ = tower.blocks(x, 0, tower.layers - 1)
        return x[:, 1:]

    def decoded(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Run the trained part: [B, N, C] to [B, D, 4h, 4w] float32."""
        features: Tensor = self.masker(patches, grid)
        return features

    def plain(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Run CLIP's own last block as MaskCLIP does: [B, N, C] to [B, D, h, w] float32."""
        tower, last = self.tower, self.tower.layers - 1
        (v,) = tower.qkv(last, patches, "v")
        return to_map(tower.head(tower.after_attention(last, patches, v)), grid)

    def values(self, pixels: Tensor, context: Any) -> Tensor:
        """Compute masks of all prompts but the background's: [B, K, 4h, 4w], or on pixels."""
        (H, W), (height, width) = pixels.shape[-2:], self.tower.patch
        rows, columns = -H % height, -W % width
        if not rows and not columns:
            return self.masks(pixels)
        # Normalised pixels: zero is the mean colour.
        top, left = rows // 2, columns // 2
        padded = F.pad(pixels, (left, columns - left, top, rows - top))
        masks = upsample(self.masks(padded), (H + rows, W + columns))
        return masks[..., top : top + H, left : left + W]

    def masks(self, pixels: Tensor) -> Tensor:
        """Compute masks of whole patches: [B, 3, H, W] normalised pixels to [B, K, 4h, 4w]."""
        grid = self.tower.grid(*pixels.shape[-2:])
        patches = self.patches(pixels)
        masks = self.masker.masks(self.compare(self.decoded(patches, grid)))
        if self.pamr_steps:
            guide = pixels
            if self.options.faithful:
                size = tuple(masks.shape[-2:])
                guide = F.interpolate(pixels, size, mode="bilinear", align_corners=True)
            masks = pamr(masks, guide, iterations=self.pamr_steps, dilations=PAMR_DILATIONS)
        share = self.maskclip_weight
        if not share:
            return masks
        found = (SLOPE * self.compare(self.plain(patches, grid)) + SHIFT).sigmoid()
        return share * upsample(found, (masks.shape[-2], masks.shape[-1])) + (1 - share) * masks

    def finish(self, values: Tensor, images: Tensor) -> Tensor:
        """Add the mask of the background."""
        if self.background is None:
            return values
        return torch.cat([torch.full_like(values[:, :1], self.background), values], dim=1)

    def _check_classes(self) -> None:
        if self.background is not None:
            check_background(self.classes)

    def _text(self) -> Tensor:
        background = self.background is not None
        rows = raw_text_features(
            self._clip, self.classes, self.options, "K D", background=background
        )
        return F.normalize(rows.to(self.tower.device), dim=-1)
