"""From logits to one distribution over patches per class: the method's steps 1 to 5.

Source: J. Li et al., "Direct Segmentation without Logits Optimization for Training-Free
Open-Vocabulary Semantic Segmentation", CVPR 2026, section 3 and supplement (early rejection,
NMS). The relative bar and the area gate are ours.

Axes: B images, K prompts, M classes, N = gh * gw patches.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ovss_refine.config import RefineConfig
from ovss_refine.tensors.tracing import whole_number

# What `logit_scale="auto"` aims at.
USUAL_CONFIDENCE = 0.9
# Scales from e^-70 to e^70, the logarithms halved so often that 1e-5 of a scale is left.
SCALE_REACH = 70.0
BISECTIONS = 24
# Confidences this close to each other, relatively, are equal.
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Seeds:
    """Which classes go on, and from where.

    Attributes:
        kept: [B, M] bool, at least one True per image.
        mask: [B, M, N] bool, the seeds of the kept classes; every kept class has one or more,
            and no patch is a seed of two classes.
    """

    kept: Tensor
    mask: Tensor


def confidence(
    logits: Tensor,
    prompt_index: Tensor | None,
    logit_scale: float | Literal["auto"],
    background: tuple[int, float] | None,
) -> tuple[Tensor, Tensor]:
    """Probability of every class at every patch.

    Args:
        logits: [B, K, N] scores on the attention's grid.
        prompt_index: [K] class of each prompt, or None where every prompt is its own class.
        logit_scale: factor on the logits before the softmax over prompts, or "auto".
        background: None or (class, threshold): a patch whose best class is less probable
            than the threshold becomes that class, one-hot.

    Returns:
        P: [B, M, N]; sums to one over classes at every patch.
        assigned: [B, N] bool, the patches that the background rule decided.
    """
    # The softmax of the same, from differences <= 0, whose products may overflow to -inf unharmed.
    logits = logits - logits.amax(dim=1, keepdim=True)
    scale = calibrate(logits, USUAL_CONFIDENCE) if logit_scale == "auto" else logit_scale
    P = sum_prompts((scale * logits).softmax(dim=1), prompt_index)
    if background is None:
        return P, torch.zeros_like(P[:, 0], dtype=torch.bool)
    index, threshold = background
    assigned = P.amax(dim=1) < threshold  # [B, N]
    one_hot = torch.zeros_like(P)
    one_hot[:, index] = 1
    return torch.where(assigned[:, None], one_hot, P), assigned


def sum_prompts(P: Tensor, prompt_index: Tensor | None) -> Tensor:
    """Sum the probabilities [B, K, N] of each class's prompts: [B, M, N]."""
    if prompt_index is None:
        return P
    B, _, N = P.shape
    M = whole_number(prompt_index.max() + 1)
    return P.new_zeros(B, M, N).index_add_(1, prompt_index, P)


def calibrate(logits: Tensor, aim: float) -> Tensor:
    """Find the scale at which an image's patches are as sure of their best prompt as is asked.

    Args:
        logits: [B, K, N], the largest of every patch 0.
        aim: in (0, 1).

    Returns:
        [B, 1, 1] scales at which the mean over patches of the best prompt's softmax probability is
        `aim`; where ties keep it away, as near to it as the reach of scales comes.
    """
    low = torch.full_like(logits[:, :1, :1], -SCALE_REACH)
    high = -low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        best = 1 / (middle.exp() * logits).exp().sum(dim=1, keepdim=True)  # [B, 1, N]
        unsure = best.mean(dim=2, keepdim=True) < aim
        low, high = torch.where(unsure, middle, low), torch.where(unsure, high, middle)
    return ((low + high) / 2).exp()


def find_seeds(P: Tensor, assigned: Tensor, config: RefineConfig, *, suppress: bool) -> Seeds:
    """Reject classes that win nowhere, then patches that are not confident enough.

    Args:
        P: [B, M, N] class confidence.
        assigned: [B, N] bool, patches that the background rule decided. Their confidence is 1
            by decree, so they do not set the relative bar: everything else would fall under it.
        config: `nms`: "classwise" (bar = the `seed_quantile` of the confidences at the patches that
            the same class wins), "relative" (bar = `nms_threshold` times the image's highest
            confidence) or "absolute" (bar = `nms_threshold`); `min_area`: share of the patches
            that a class must win.
        suppress: whether weak patches are dropped at all. If not, every patch is a seed
            of the class that wins it.
    """
    top, winner = P.max(dim=1)  # both [B, N]
    # A vote may leave only classes without any confidence at a patch: nobody wins it.
    wins = torch.zeros_like(P, dtype=torch.bool).scatter_(1, winner[:, None], top[:, None] > 0)
    area = wins.sum(dim=2, keepdim=True, dtype=P.dtype) / P.shape[2]  # [B, M, 1]
    large = wins & (area >= config.min_area)
    # An image must not end up empty: where no class is large enough, all that win go on.
    wins = large | (wins & ~large.any(dim=(1, 2), keepdim=True))
    if suppress:
        confident = wins & (top >= _bar(top, winner, assigned, P.shape[1], config))[:, None]
        wins = confident | (wins & ~confident.any(dim=(1, 2), keepdim=True))
    return Seeds(wins.any(dim=2), wins)


def _bar(top: Tensor, winner: Tensor, assigned: Tensor, M: int, config: RefineConfig) -> Tensor:
    """Return the confidence that makes a patch a seed: [B, N] or [B, 1]; see `find_seeds`."""
    if config.nms == "classwise":
        # The patches of the background rule, all of them seeds, and those that nobody wins.
        others = assigned | (top <= 0)
        bars = class_quantile(top, winner.masked_fill(others, M), M + 1, config.seed_quantile)
        return bars.gather(1, winner).masked_fill(assigned, 0) * (1 - ROUNDING)
    bar = torch.full_like(top[:, :1], config.nms_threshold)
    if config.nms == "absolute":
        return bar
    return bar * top.masked_fill(assigned, 0).amax(dim=1, keepdim=True)


def class_quantile(x: Tensor, group: Tensor, M: int, q: float) -> Tensor:
    """Quantile of each class's own values, with linear interpolation.

    Of n values in ascending order, counted from 0, it is the one at q (n - 1); between two of
    them, in proportion. That is the default of NumPy and torch.

    Args:
        x: [B, N] finite values.
        group: [B, N] int64 class of each value, in [0, M).
        M: number of classes.
        q: in [0, 1].

    Returns:
        [B, M]; without meaning for a class without values.
    """
    N = x.shape[1]
    # Order by class, then by value. All keys are whole numbers and distinct, so any sort will do.
    places = torch.arange(N, device=x.device).expand_as(group)
    rank = torch.empty_like(group).scatter_(1, x.argsort(dim=1), places)
    values = x.gather(1, (group * N + rank).argsort(dim=1))
    count = group.new_zeros(x.shape[0], M).scatter_add_(1, group, torch.ones_like(group))
    last = count.cumsum(dim=1) - 1  # where each class ends in `values`
    at = q * (count - 1).clamp_min(0).to(x.dtype)
    low = last - (count - 1).clamp_min(0) + at.long()
    low, high = (
        values.gather(1, torch.minimum(place, last).clamp(0, N - 1)) for place in (low, low + 1)
    )
    return torch.lerp(low, high, at - at.floor())


def normalise(P: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the seed patches of each class; zero elsewhere.

    Args:
        P: [B, M, N] class confidence.
        mask: [B, M, N] bool, at least one seed for every class.

    Returns:
        [B, M, N], every row sums to one.
    """
    return P.masked_fill(~mask, -torch.inf).softmax(dim=2)


def kept_index(kept: Tensor) -> Tensor:
    """Indices of the kept classes, ascending, as one rectangular tensor.

    Args:
        kept: [B, M] bool, at least one True per image.

    Returns:
        [B, m] int64, m = the most that any image keeps. An image that keeps fewer repeats its
        first one at the end: the repeats compute the same values again, so nobody has to mask.
    """
    counts = kept.sum(dim=1, keepdim=True)
    # Kept ones first; no two keys are equal, so that no sort can turn them around.
    M = kept.shape[1]
    index = torch.arange(M, device=kept.device)
    order = torch.where(kept, M - index, -index).sort(dim=1, descending=True).indices
    order = order[:, : whole_number(counts.max(), M)]
    within = torch.arange(order.shape[1], device=kept.device) < counts
    return torch.where(within, order, order[:, :1])
