"""LaVG: SCLIP's logits averaged over masks that you bring.

Source: D. Kang and M. Cho, "In Defense of Lazy Visual Grounding for Open-Vocabulary Semantic
Segmentation", ECCV 2024. This is its second stage. The first, which finds the masks by normalised
cuts of DINO's features, is not here: it is random in the last digits, and its masks can be
replaced by those of any segmenter.

Axes: B images, K prompts, S masks, (H, W) pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.checks import check_shape
from ovss_refine.labels import LabelsLike
from ovss_refine_adapters.logits.attending import Compared
from ovss_refine_adapters.logits.clip import ClipLogits, LastBlock
from ovss_refine_adapters.logits.regions import first_argmax, region_means
from ovss_refine_adapters.logits.windows import upsample

Masks = Callable[[Tensor], Sequence[Tensor]]


class LavgLogits(ClipLogits):
    """SCLIP, averaged over given masks.

    Logits lie on the pixels of the resized image; within a window, all pixels of a mask have the
    same. Memory beyond SCLIP's: B * (K + S) * H * W floats.
    Further arguments and exceptions are those of `DenseClip`.

    Args:
        masks: [B, 3, H, W] float32 images in [0, 1] to B tensors, or one tensor, of [S, H, W] bool
            masks each; S may differ. A pixel of several masks belongs to the first, one of none
            keeps its own logits. The last mask is what is no object.
        no_object_is_background: in the last mask every prompt but those of the first class gets the
            least logit of the window, as the released code does on PASCAL VOC 21.
        options: fields of `ClipOptions`; they and `faithful` are those of `sclip`.

    Raises:
        ValueError: also without `masks`; when called, if they are not of the images' number and
            size.
        TypeError: also if masks are not bool tensors.
    """

    def __init__(
        self,
        classes: LabelsLike,
        *,
        masks: Masks | None = None,
        no_object_is_background: bool = False,
        **options: Any,
    ) -> None:
        """Load the model and embed the classes."""
        if masks is None:
            raise ValueError("`masks` must be a function of images; got None.")
        block = LastBlock(similarity="qq + kk", residual=True, feed_forward=True)
        super().__init__(classes, block, **options)
        self.masks = masks
        self.no_object_is_background = no_object_is_background

    def prepare(self, images: Tensor) -> Tensor:
        """Resize and normalise, with masks as further channels: [B, 3 + S, H', W'] float32."""
        pixels = super().prepare(images)
        found = _check_masks(self.masks(images), images)
        most = max(len(masks) for masks in found)
        # The last mask stays the last.
        padded = [torch.cat([m.new_zeros(most - len(m), *m.shape[1:]), m]) for m in found]
        masks = torch.stack(padded).to(pixels.device, torch.float32)
        return torch.cat([pixels, F.interpolate(masks, pixels.shape[-2:], mode="nearest")], dim=1)

    def cosines(self, pixels: Tensor, context: Any) -> Tensor:
        """Compare pixels with prompts, averaged over masks: [B, K, H, W] float32.

        Args:
            pixels: [B, 3 + S, H, W] normalised pixels, then masks of 0 and 1.
            context: not used.
        """
        return self._grounded(super().cosines(pixels[:, :3], context), pixels)

    def compared(self, pixels: Tensor) -> Compared:
        """Run the tower up to the last queries and keys, on pixels without masks."""
        return super().compared(pixels[:, :3])

    def values_and_compared(self, pixels: Tensor, context: Any) -> tuple[Tensor, Compared]:
        """Return what `cosines` and `compared` return, from one pass."""
        values, found = super().values_and_compared(pixels[:, :3], context)
        return self._grounded(values, pixels), found

    def _grounded(self, values: Tensor, pixels: Tensor) -> Tensor:
        """Average [B, K, h, w] cosines over the masks behind the pixels: [B, K, H, W]."""
        H, W = pixels.shape[-2:]
        full = upsample(values, (H, W))
        masks = pixels[:, 3:] > 0.5
        return torch.stack([self._ground(*one) for one in zip(full, masks, strict=True)])

    def _ground(self, values: Tensor, masks: Tensor) -> Tensor:
        """Average [K, H, W] over [S, H, W] masks, the first of which counts: [K, H, W]."""
        means = region_means(values.flatten(1), masks.flatten(1))  # [K, S]
        grounded = torch.where(masks.any(dim=0), means[:, first_argmax(masks)], values)
        if not self.no_object_is_background:
            return grounded
        index = torch.as_tensor(self.classes.prompt_index, device=values.device)
        lowered = (index > 0)[:, None, None] & masks[-1]  # [K, H, W]
        return torch.where(lowered, grounded.min(), grounded)


def _check_masks(masks: Sequence[Tensor], images: Tensor) -> Sequence[Tensor]:
    """Return the masks of B images, or raise."""
    B, _, H, W = images.shape
    if len(masks) != B:
        raise ValueError(f"`masks` must return masks for each of B={B} images; got {len(masks)}.")
    for one in masks:
        if not isinstance(one, Tensor) or one.dtype != torch.bool:
            kind = getattr(one, "dtype", type(one).__name__)
            raise TypeError(f"`masks` must return bool tensors; got {kind}.")
        check_shape("masks", one, "S H W", H=H, W=W)
    return masks
