"""The decision rule of the published baselines: from coarse logits to a label map, unrefined.

SCLIP (F. Wang et al., ECCV 2024) and its descendants use this rule, and so must a comparison of
"refined" with "not refined". It differs from the refinement's own confidence, which sums the
probabilities of synonyms.

Axes: B images, K prompts, M classes, (h, w) grid of the logits, (H, W) pixels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.checks import check_count, check_number
from ovss_refine.logits import Logits


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """A segmentation without refinement. Without the leading B where the input had none.

    Attributes:
        labels: [B, H, W] int64 class of every pixel, in [0, M).
        scores: [B, M, H, W] float32 in [0, 1], the highest probability of the class's prompts; 0
            for classes dropped as too small. They do not sum to one.
    """

    labels: Tensor
    scores: Tensor


def decide(
    logits: Logits,
    size: tuple[int, int] | None = None,
    *,
    through: tuple[int, int] | None = None,
    probability_threshold: float = 0.0,
    area_threshold: float | None = None,
) -> Decision:
    """Decide on a class for every pixel.

    Softmax over all prompts, the best prompt of each class, the best class of each pixel.
    B * (K + M) * H * W floats.

    Args:
        logits: values, scale and the class of each prompt.
        size: (H, W) of the result; None: the grid of the logits.
        through: a size to resize to first. NACLIP, CASS and RF-CLIP, on whole images, resize to
            the size of the resized image and from there to `size`.
        probability_threshold: pixels whose best class has less become class 0, in [0, 1].
        area_threshold: of the pixels won by classes other than 0, the share up to which such a
            class is dropped, in [0, 1]; None: none is dropped.

    Raises:
        ValueError: on a size without pixels or a threshold outside [0, 1].
        TypeError: if a size or a threshold is not a number.

    Example:
        >>> logits = Logits(torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]]))  # [2, 1, 2]
        >>> decide(logits, (1, 4)).labels
        tensor([[0, 0, 1, 1]])
    """
    check_number("probability_threshold", probability_threshold, 0, 1)
    if area_threshold is not None:
        check_number("area_threshold", area_threshold, 0, 1)
    batched = logits.values.ndim == 4
    values = (logits.values if batched else logits.values[None]).float()
    for name, wanted in (("through", through), ("size", size)):
        if wanted is not None:
            check_count(f"{name}[0]", wanted[0], 1)
            check_count(f"{name}[1]", wanted[1], 1)
            values = F.interpolate(values, wanted, mode="bilinear", align_corners=False)
    scores = (logits.scale * values).softmax(dim=1)  # [B, K, H, W]
    if logits.prompt_index is not None:
        scores = _class_scores(scores, torch.as_tensor(logits.prompt_index, device=scores.device))
    if area_threshold is not None:
        scores = _drop_small(scores, area_threshold)
    best, labels = scores.max(dim=1)  # [B, H, W]
    labels = labels.masked_fill(best < probability_threshold, 0)
    return Decision(labels, scores) if batched else Decision(labels[0], scores[0])


def _class_scores(probabilities: Tensor, index: Tensor) -> Tensor:
    """Take the best prompt of each class, [B, K, H, W] to [B, M, H, W]; 0 without prompts."""
    B, _, H, W = probabilities.shape
    scores = probabilities.new_zeros(B, int(index.max()) + 1, H, W)
    where = index.view(1, -1, 1, 1).expand_as(probabilities)
    return scores.scatter_reduce(1, where, probabilities, reduce="amax")


def _drop_small(scores: Tensor, area_threshold: float) -> Tensor:
    M = scores.shape[1]
    winner = scores.argmax(dim=1).flatten(1)  # [B, H * W]
    area = torch.zeros(len(scores), M, device=scores.device, dtype=torch.int64)
    area.scatter_add_(1, winner, torch.ones_like(winner))
    foreground = area[:, 1:].sum(dim=1, keepdim=True)  # [B, 1]
    small = area <= area_threshold * foreground  # [B, M]
    small[:, 0] = False
    return scores.masked_fill(small[:, :, None, None], 0.0)
