"""What a refinement returns.

Axes: B images, M classes, (gh, gw) grid of the attention, (H, W) pixels.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class RefineResult:
    """A refined segmentation. Without the leading B where the input had none.

    Attributes:
        labels: [B, H, W] int64 class of every pixel, in [0, M).
        discrepancy: [B, M, gh, gw] float32 score of every class at every patch; -inf for
            rejected classes. Comparable within an image; its unit is the mode's.
        kept: [B, M] bool, the classes that were not rejected.
        seeds: [B, M, gh, gw] bool, the patches that a kept class started from. In modes
            "propagation" and "anchored" all the patches that it won.
        scores: [B, M, H, W] float32, `discrepancy` upsampled, -inf for rejected classes; None
            unless `keep_scores` was set.
    """

    labels: Tensor
    discrepancy: Tensor
    kept: Tensor
    seeds: Tensor
    scores: Tensor | None
