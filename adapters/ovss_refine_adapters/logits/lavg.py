"""LaVG: SCLIP's logits averaged over masks that you bring.

Source: D. Kang and M. Cho, "In Defense of Lazy Visual Grounding for Open-Vocabulary Semantic
Segmentation", ECCV 2024. This is its second stage. The first, which finds the masks by normalised
cuts of DINO's features, is not here: it is random in the last digits, and its masks can be
replaced by those of any segmenter.

Axes: B images, K prompts, S masks, (H, W) pixels.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.attention import Attention
from ovss_refine.checks import check_shape
from ovss_refine.folders.arrays import read_arrays
from ovss_refine.folders.paths import local_path
from ovss_refine.images.convert import ImagesLike
from ovss_refine.labels import LabelsLike
from ovss_refine.logits import Logits
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

    Attributes:
        folder_by_id: the folder of masks, for whose files the methods take `image_ids`; None:
            `masks` is a function.

    Args:
        masks: [B, 3, H, W] float32 images in [0, 1] to B tensors, or one tensor, of [S, H, W] bool
            masks each; S may differ. A pixel of several masks belongs to the first, one of none
            keeps its own logits. The last mask is what is no object. Or a folder with a file
            `<image id>.npz` for each image, with an array `masks` [S, h, w] bool of any size.
        no_object_is_background: in the last mask every prompt but those of the first class gets the
            least logit of the window, as the released code does on PASCAL VOC 21.
        options: fields of `ClipOptions`; they and `faithful` are those of `sclip`.

    Raises:
        ValueError: also without `masks`; when called, if they are not of the images' number and
            size, or a file is damaged.
        TypeError: also if `masks` is something else, or masks are not bool tensors.
        FileNotFoundError: also if the folder, or when called a file, does not exist.
    """

    def __init__(
        self,
        classes: LabelsLike,
        *,
        masks: Masks | str | Path | None = None,
        no_object_is_background: bool = False,
        **options: Any,
    ) -> None:
        """Load the model and embed the classes."""
        self.masks, self.folder_by_id = _as_function(masks)
        block = LastBlock(similarity="qq + kk", residual=True, feed_forward=True)
        super().__init__(classes, block, **options)
        self.no_object_is_background = no_object_is_background

    def logits(self, images: ImagesLike, image_ids: Sequence[str] = ()) -> Logits:
        """Compute [B, K, h, w] logits; see `DenseClip`.

        Args:
            images: B images; see `LogitsSource`.
            image_ids: B ids, if `masks` is a folder.
        """
        return super(LavgLogits, self._of(image_ids)).logits(images)

    def attention(self, images: ImagesLike) -> Attention:
        """Compute CLIP's attention; see `AttendingLogits`. No masks are asked for."""
        return super(LavgLogits, self._with(_no_masks)).attention(images)

    def logits_and_attention(
        self, images: ImagesLike, image_ids: Sequence[str] = ()
    ) -> tuple[Logits, Attention]:
        """Compute both; see `AttendingLogits`, and `logits` for `image_ids`."""
        return super(LavgLogits, self._of(image_ids)).logits_and_attention(images)

    def prepare(self, images: Tensor) -> Tensor:
        """Resize and normalise, with masks as further channels: [B, 3 + S, H', W'] float32."""
        pixels = super().prepare(images)
        found = _check_masks(self.masks(images), images, any_size=self.folder_by_id is not None)
        size, most = pixels.shape[-2:], max(len(masks) for masks in found)
        resized = [F.interpolate(m[None].to(pixels), size, mode="nearest") for m in found]
        # The last mask stays the last.
        padded = [F.pad(m, (0, 0, 0, 0, most - m.shape[1], 0)) for m in resized]
        return torch.cat([pixels, torch.cat(padded)], dim=1)

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

    def _of(self, image_ids: Sequence[str]) -> Self:
        """Return a source with the masks of the images that have these ids, if there are any."""
        if self.folder_by_id is None or not image_ids:
            return self
        return self._with(partial(_read_masks, self.folder_by_id, image_ids))

    def _with(self, masks: Masks) -> Self:
        """Return the same source with other masks."""
        other = copy.copy(self)
        other.masks = masks
        return other

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


def _as_function(masks: Masks | str | Path | None) -> tuple[Masks, Path | None]:
    """Return a function of images, and the folder that it reads; or raise."""
    if isinstance(masks, (str, Path)):
        folder = local_path("masks", masks).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"`masks` must be an existing folder; got `{folder}`.")
        return partial(_read_masks, folder, ()), folder
    if masks is None:
        raise ValueError("`masks` must be a function of images or a folder; got None.")
    if not callable(masks):
        kind = type(masks).__name__
        raise TypeError(f"`masks` must be a function of images or a folder; got {kind}.")
    return masks, None


def _read_masks(folder: Path, image_ids: Sequence[str], images: Tensor) -> list[Tensor]:
    """Read the masks of B images, [S, h, w] bool each, from `folder`; raises as `LavgLogits`."""
    if len(image_ids) != len(images):
        raise ValueError(
            f"`image_ids` must name the B={len(images)} images, whose masks are in `{folder}`; got "
            f"{list(image_ids)}."
        )
    return [_read(folder / f"{image_id}.npz") for image_id in image_ids]


def _read(path: Path) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(f"`masks` must have a file for each image; `{path}` is missing.")
    masks = read_arrays(path, ["masks"])["masks"]
    if masks.dtype != bool or masks.ndim != 3 or masks.size == 0:
        raise ValueError(
            f"`masks` of `{path}` must be a bool array [S, h, w]; got {masks.dtype} "
            f"{list(masks.shape)}."
        )
    return torch.from_numpy(masks)


def _no_masks(images: Tensor) -> Sequence[Tensor]:
    """Return one empty mask for each of [B, 3, H, W] images: B tensors [1, H, W]."""
    return torch.zeros_like(images[:, :1], dtype=torch.bool).unbind()


def _check_masks(masks: Sequence[Tensor], images: Tensor, *, any_size: bool) -> Sequence[Tensor]:
    """Return the masks of B images, or raise."""
    B, _, H, W = images.shape
    sizes = {} if any_size else {"H": H, "W": W}
    if len(masks) != B:
        raise ValueError(f"`masks` must return masks for each of B={B} images; got {len(masks)}.")
    for one in masks:
        if not isinstance(one, Tensor) or one.dtype != torch.bool:
            kind = getattr(one, "dtype", type(one).__name__)
            raise TypeError(f"`masks` must return bool tensors; got {kind}.")
        check_shape("masks", one, "S H W", **sizes)
    return masks
