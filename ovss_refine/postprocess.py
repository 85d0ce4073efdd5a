"""What `Refiner.post_process_semantic_segmentation` does: Hugging Face's outputs to label maps.

Axes: B images, K classes, Q queries, (h, w) grid of the model's output, N tokens, (H, W) pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.attention import Attention, AttentionSource
from ovss_refine.checks import check_shape
from ovss_refine.method.upsample import as_guide
from ovss_refine.result import RefineResult

TargetSizes = Tensor | Sequence[Sequence[int]] | None
Attentions = Tensor | Attention | AttentionSource | Sequence[Tensor | Attention]


def label_maps(
    refiner: Callable[[Tensor, Any, Tensor], RefineResult],
    outputs: Any,
    target_sizes: TargetSizes,
    attn: Attentions,
    images: Tensor | Sequence[Any],
) -> list[Tensor]:
    """Refine a model's outputs image by image; see `Refiner.post_process_semantic_segmentation`.

    Args:
        refiner: from logits [1, K, h, w], attention and image [1, 3, H, W] to labels [1, H, W].
        outputs: of the model.
        target_sizes: (H, W) of each label map.
        attn: of each image.
        images: the B images.

    Returns:
        B label maps [H, W] int64.
    """
    logits = semantic_logits(outputs)
    B = logits.shape[0]
    if len(images) != B:
        raise ValueError(f"`images` must be the B={B} images of `outputs`; got {len(images)}.")
    sizes = _sizes(target_sizes, B)
    maps = []
    for b, attention in enumerate(_one_by_one(attn, B)):
        guide = _guide(images[b], f"images[{b}]", sizes[b])
        maps.append(refiner(logits[b : b + 1], attention, guide).labels[0])
    return maps


def semantic_logits(outputs: Any) -> Tensor:
    """Find or make the scores [B, K, h, w] in a model's outputs.

    Args:
        outputs: has `logits` [B, K, h, w]; or masks and classes of Q queries, the last class
            none: `class_queries_logits` [B, Q, K + 1] and `masks_queries_logits` [B, Q, h, w]
            (MaskFormer, Mask2Former, OneFormer, EoMT), or `logits` and `pred_masks` (DETR); or is
            the scores itself.

    Raises:
        TypeError: if it has none of them, or they are no floating-point tensors.
        ValueError: if their shapes are others.
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
    """Turn Q masks with a class each into scores whose softmax is the share of each class."""
    sizes = check_shape(f"outputs.{masks_name}", masks, "B Q h w")
    known = {axis: sizes[axis] for axis in "BQ"}
    check_shape(f"outputs.{classes_name}", classes, "B Q K+1", **known)
    probabilities = classes.float().softmax(dim=-1)[..., :-1]  # the last is "no object"
    votes = torch.einsum("bqk,bqhw->bkhw", probabilities, masks.float().sigmoid())
    return votes.clamp_min(torch.finfo(votes.dtype).tiny).log()


def _sizes(target_sizes: TargetSizes, B: int) -> list[tuple[int, int] | None]:
    """Check and list the target sizes; None where an image keeps its own."""
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


def _guide(image: Any, name: str, size: tuple[int, int] | None) -> Tensor:
    """Check an image and resize it: [1, 3, H, W] float32 in [0, 1]."""
    if not isinstance(image, Tensor):
        # A PIL image of any mode, or an array that looks like one.
        pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise ValueError(
                f"`{name}` must be a [3, H, W] tensor, a PIL image or a [H, W, 3] uint8 array; got "
                f"{type(image).__name__} of shape {list(pixels.shape)}, {pixels.dtype}."
            )
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    check_shape(name, image, "C H W", C=3)
    guide = as_guide(image[None])
    if size is None or size == tuple(guide.shape[2:]):
        return guide
    guide = F.interpolate(guide, size, mode="bilinear", align_corners=False, antialias=True)
    return guide.clamp_(0, 1)  # which it leaves by a rounding error


def _one_by_one(attn: Attentions, B: int) -> Iterator[Tensor | Attention | AttentionSource]:
    """Give the attention of each of `B` images with a batch axis, or the source of it."""
    if isinstance(attn, AttentionSource):
        return iter([attn] * B)
    got = attn.batch if isinstance(attn, Attention) else len(attn)
    if got != B:
        raise ValueError(
            f"`attn` must hold a map for each of the B={B} images of `outputs`; got {got}."
        )
    if isinstance(attn, Attention):
        return (_part(attn, b) for b in range(B))
    if isinstance(attn, Tensor):
        return (attn[b : b + 1] for b in range(B))
    return (_part(one, 0) if isinstance(one, Attention) else one[None] for one in attn)


def _part(attention: Attention, b: int) -> Attention:
    """Take map `b`, with a batch axis of one."""
    if attention.factors is not None:
        q, k = (x if x.ndim == 4 else x[None] for x in attention.factors)
        return replace(attention, factors=(q[b : b + 1], k[b : b + 1]))
    weights = attention.weights
    assert weights is not None  # noqa: S101 - checked on construction
    return replace(attention, weights=weights[b : b + 1] if weights.ndim == 3 else weights[None])
