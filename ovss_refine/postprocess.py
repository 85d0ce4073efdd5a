"""Hugging Face outputs to label maps.

Axes: B images, K classes, Q queries, (h, w) grid of the model's output, N tokens, (H, W) pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.attention import Attention, AttentionSource
from ovss_refine.checks import check_shape
from ovss_refine.images.convert import ImagesLike, as_image_list, as_image_tensor
from ovss_refine.result import RefineResult

TargetSizes = Tensor | Sequence[Sequence[int]] | None
Attentions = Tensor | Attention | AttentionSource | Sequence[Tensor | Attention]


def post_process_semantic_segmentation(
    refiner: Callable[[Tensor, Any, Tensor], RefineResult],
    outputs: Any,
    target_sizes: TargetSizes = None,
    *,
    attn: Attentions,
    images: ImagesLike,
) -> list[Tensor]:
    """Drop-in replacement for the image processor's method of the same name.

    Args:
        refiner: a `Refiner`, whose method this is.
        outputs: of a Hugging Face `*ForSemanticSegmentation`, MaskFormer or similar model; or
            logits [B, K, h, w].
        target_sizes: (H, W) of each label map, or [B, 2]; None: each image's own size.
        attn: as for a call of `Refiner`, of B images; or one `Attention` or [N, N] tensor for each.
        images: the B images, not normalised, of any sizes: [B, 3, H, W], or a list of them in any
            form. Files and PIL images are made upright; the model must have seen them upright too.

    Returns:
        B label maps [H, W] int64, on the device of the logits.

    Raises:
        TypeError: if `outputs` has no logits, or as a call of `Refiner` does.
        ValueError: if there are not B images, maps or sizes, or as a call of `Refiner` does.
    """
    logits = semantic_logits(outputs)
    B = logits.shape[0]
    named, _ = as_image_list(images, "images")
    if len(named) != B:
        raise ValueError(f"`images` must be the B={B} images of `outputs`; got {len(named)}.")
    sizes = _sizes(target_sizes, B)
    maps = []
    for b, attention in enumerate(_one_by_one(attn, B)):
        guide = _resized(as_image_tensor(*named[b]), sizes[b])
        maps.append(refiner(logits[b : b + 1], attention, guide).labels[0])
    return maps


def semantic_logits(outputs: Any) -> Tensor:
    """Return the logits [B, K, h, w] of a model's outputs, computed from queries if necessary.

    Args:
        outputs: has `logits` [B, K, h, w]; or masks and classes of Q queries, the last class being
            "no object": `class_queries_logits` [B, Q, K + 1] and `masks_queries_logits`
            [B, Q, h, w] (MaskFormer, Mask2Former, OneFormer, EoMT), or `logits` and `pred_masks`
            (DETR); or is the logits tensor itself.

    Raises:
        TypeError: if it has none of these, or they are not floating-point tensors.
        ValueError: on other shapes.
    """
    for classes, masks in (
        ("class_queries_logits", "masks_queries_logits"),
        ("logits", "pred_masks"),
    ):
        if getattr(outputs, masks, None) is not None:
            return _of_queries(getattr(outputs, classes), getattr(outputs, masks), classes, masks)
    logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if logits is None:
        raise TypeError(
            "`outputs` must have `logits`, or `class_queries_logits` and `masks_queries_logits`, "
            f"or be a tensor; got {type(outputs).__name__}."
        )
    check_shape("outputs.logits", logits, "B K h w")
    return logits


def _of_queries(classes: Tensor, masks: Tensor, classes_name: str, masks_name: str) -> Tensor:
    """Convert Q masks with class logits to logits whose softmax is the share of each class."""
    sizes = check_shape(f"outputs.{masks_name}", masks, "B Q h w")
    known = {axis: sizes[axis] for axis in "BQ"}
    check_shape(f"outputs.{classes_name}", classes, "B Q K+1", **known)
    probabilities = classes.float().softmax(dim=-1)[..., :-1]  # the last is "no object"
    votes = torch.einsum("bqk,bqhw->bkhw", probabilities, masks.float().sigmoid())
    return votes.clamp_min(torch.finfo(votes.dtype).tiny).log()


def _sizes(target_sizes: TargetSizes, B: int) -> list[tuple[int, int] | None]:
    """Check and list the target sizes; None: an image keeps its own size."""
    if target_sizes is None:
        return [None] * B
    try:
        rows = np.asarray(target_sizes.cpu() if isinstance(target_sizes, Tensor) else target_sizes)
    except ValueError:  # rows of different lengths
        rows = np.empty(0)
    if rows.shape != (B, 2) or rows.dtype.kind not in "iu" or rows.min() < 1:
        raise ValueError(
            f"`target_sizes` must be B={B} pairs (H, W) of whole numbers >= 1, one for each image "
            f"of `outputs`; got {target_sizes}."
        )
    return [(H, W) for H, W in rows.tolist()]


def _resized(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Resize an image [3, H, W] in [0, 1] to `size`, or keep its own: [1, 3, H, W]."""
    if size is None or size == tuple(image.shape[1:]):
        return image[None]
    guide = F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)
    return guide.clamp_(0, 1)  # rounding may leave the range


def _one_by_one(attn: Attentions, B: int) -> Iterator[Tensor | Attention | AttentionSource]:
    """Iterate over the attention of each image, with a batch axis, or repeat its source B times."""
    if isinstance(attn, AttentionSource):
        return iter([attn] * B)
    got = attn.batch if isinstance(attn, Attention) else len(attn)
    if got != B:
        raise ValueError(
            f"`attn` must hold a map for each of the B={B} images of `outputs`; got {got}."
        )
    if isinstance(attn, Attention):
        maps = attn.batched()
        return (maps[b].batched() for b in range(B))
    if isinstance(attn, Tensor):
        return (attn[b : b + 1] for b in range(B))
    return (one.batched() if isinstance(one, Attention) else one[None] for one in attn)
