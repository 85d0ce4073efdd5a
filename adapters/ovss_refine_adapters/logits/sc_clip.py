"""SC-CLIP: the last block's input, repaired and smoothed with features of earlier blocks.

Source: S. Bai et al., "Self-Calibrated CLIP for Training-Free Open-Vocabulary Segmentation", 2024.
Outlying patches are found by their local density and replaced by their neighbours; patches are
aggregated by the similarity of earlier blocks' features, before and after the last block; and the
last block runs a second time on the sum of several blocks.

The released code computes a patch's row by dividing by the number of rows, which is right only on
squares; here any grid works.

F_i is the output of block i, counted from 0, class token included; L blocks.
Axes: B images, A heads, N = h * w patches, C channels.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.checks import check_count, check_number
from ovss_refine.labels import LabelsLike
from ovss_refine_adapters.backbones.clip_tower import self_similarity, to_map
from ovss_refine_adapters.logits.dense import DenseClip
from ovss_refine_adapters.logits.proxyclip import masked_softmax

# Factor before the softmax of the masked map.
GAMMA = 3.0
# Avoids 0 / 0 for a patch similar to no patch, not even itself: a zero vector.
FLOOR = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Which blocks' outputs calibrate the last one; blocks are counted from 0.

    Attributes:
        pre_adjust: block by whose features patches are aggregated before the last block.
        post_adjust: block by whose features they are aggregated after it.
        multi_start: first block of the sum on which the last block runs a second time.
        multi_end: one past the last block of that sum.
        class_weight: share of the class token added after the last block, >= 0.

    Raises:
        TypeError, ValueError: if a value is not a number or negative, or the sum is empty.
    """

    pre_adjust: int
    post_adjust: int
    multi_start: int
    multi_end: int
    class_weight: float

    def __post_init__(self) -> None:
        """Check what can be checked without a tower."""
        for name in ("pre_adjust", "post_adjust", "multi_start"):
            check_count(name, getattr(self, name), 0)
        check_count("multi_end", self.multi_end, self.multi_start + 1)
        check_number("class_weight", self.class_weight, 0)


# By number of blocks: ViT-B/16 and ViT-L/14.
PUBLISHED = {
    12: Calibration(pre_adjust=8, post_adjust=3, multi_start=3, multi_end=10, class_weight=0.3),
    24: Calibration(pre_adjust=16, post_adjust=6, multi_start=8, multi_end=19, class_weight=0.1),
}


class ScClipLogits(DenseClip):
    """CLIP, calibrated by its own earlier blocks.

    Memory beyond the tower's: B * N * N floats for each of three maps, B * A * N * N for attention.
    Further arguments and exceptions are those of `DenseClip`.

    Args:
        calibration: which blocks to use; None: as published for 12 and 24 blocks.
        similarity_threshold: cosines below it count as 0 when patches are aggregated, in [0, 1].
        neighbours: patches from which a patch's density is estimated, >= 1; at most all others are
            used.
        contamination: share of patches that are outliers, in [0, 1).
        options: fields of `ClipOptions`. `faithful` measures outliers as the released code does,
            see `outlier_factor`.

    Raises:
        ValueError: also without `calibration` for a tower of another depth.
    """

    def __init__(
        self,
        classes: LabelsLike,
        *,
        calibration: Calibration | None = None,
        similarity_threshold: float = 0.4,
        neighbours: int = 30,
        contamination: float = 0.05,
        **options: Any,
    ) -> None:
        """Load the model and embed the classes."""
        check_number("similarity_threshold", similarity_threshold, 0, 1)
        check_count("neighbours", neighbours, 1)
        check_number("contamination", contamination, 0, 1)
        super().__init__(classes, **options)
        self.calibration = _check_calibration(calibration, self.tower.layers)
        self.similarity_threshold = similarity_threshold
        self.neighbours = neighbours
        self.contamination = contamination

    def features(self, pixels: Tensor) -> Tensor:
        """Compute patch features: [B, 3, H, W] normalised pixels to [B, D, h, w] float32."""
        tower, how = self.tower, self.calibration
        grid = tower.grid(*pixels.shape[-2:])
        summed = range(how.multi_start, how.multi_end)
        x, kept = tower.blocks(
            tower.stem(pixels), 0, tower.layers - 1, {how.pre_adjust, how.post_adjust, *summed}
        )
        x, kept = x.float(), {i: tokens.float() for i, tokens in kept.items()}
        outliers = self.outliers(x[:, 1:])
        middle = F.normalize(repair(kept[how.pre_adjust][:, 1:], outliers, grid), dim=-1)
        similarity = middle @ middle.mT  # [B, N, N]
        patches = self._gather(similarity, repair(x[:, 1:], outliers, grid))
        guide = masked_softmax(similarity, 1.0, GAMMA)[:, None]  # [B, 1, N, N]
        early = F.normalize(kept[how.post_adjust][:, 1:], dim=-1)
        early = early @ early.mT
        total = torch.stack([kept[i] for i in summed]).sum(dim=0)
        once = self._gather(early, self._last_block(patches, x[:, :1], guide))
        again = self._gather(early, self._last_block(total[:, 1:], total[:, :1], guide))
        return to_map(tower.head((once + again).to(tower.visual.conv1.weight.dtype)), grid)

    def outliers(self, patches: Tensor) -> Tensor:
        """Mark the patches whose outlier factor exceeds the quantile: [B, N, C] to [B, N] bool."""
        factor = outlier_factor(patches, self.neighbours, self.options.faithful)
        threshold = factor.quantile(1 - self.contamination, dim=1, keepdim=True)
        return factor > threshold

    def _gather(self, similarity: Tensor, patches: Tensor) -> Tensor:
        """Average patches by the cosines [B, N, N] that reach the threshold."""
        weights = similarity.masked_fill(similarity < self.similarity_threshold, 0.0)
        return weights / (weights.sum(dim=-1, keepdim=True) + FLOOR) @ patches

    def _last_block(self, patches: Tensor, first: Tensor, guide: Tensor) -> Tensor:
        """Run the last block on patches only: half k-k attention, half `guide`; add `first`."""
        tower = self.tower
        last = tower.layers - 1
        k, v = tower.qkv(last, patches.to(tower.visual.conv1.weight.dtype), "kv")
        mixed = (guide + self_similarity(k, k)) / 2 @ v  # [B, A, N, d]
        return tower.project(last, mixed).float() + self.calibration.class_weight * first


def outlier_factor(patches: Tensor, neighbours: int, faithful: bool) -> Tensor:
    """Measure how much sparser a patch's neighbourhood is than those of its neighbours.

    The local outlier factor of M. Breunig et al., "LOF: Identifying Density-Based Local Outliers",
    SIGMOD 2000, definitions 5 to 7.

    Args:
        patches: [B, N, C] float32.
        neighbours: k, at most N - 1 are used.
        faithful: True: what the released code computes: the mean over the k neighbours b of a of
            D(a) / D(b), D the squared distance to the k-th neighbour. It takes a patch's own
            k-distance for the reachability distance. False: the definition, on plain distances.

    Returns:
        [B, N], about 1 where density is even; 1 if there is only one patch.
    """
    B, N, _ = patches.shape
    k = min(neighbours, N - 1)
    if k == 0:
        return patches.new_ones(B, N)
    # Not by matrix products, whose rounding of squares near 0 may change the order.
    distance = torch.cdist(patches, patches, compute_mode="donot_use_mm_for_euclid_dist")
    if faithful:
        distance = distance**2
    own = torch.eye(N, dtype=torch.bool, device=patches.device)
    nearest, index = distance.masked_fill(own, torch.inf).topk(k, largest=False)  # [B, N, k]
    reach = _clamp_zeros(nearest[..., -1])  # [B, N]
    if faithful:
        return (reach[..., None] / _lookup(reach, index)).mean(dim=-1)
    sparse = _clamp_zeros(torch.maximum(nearest, _lookup(reach, index)).mean(dim=-1))
    return sparse * (1 / _lookup(sparse, index)).mean(dim=-1)


def _clamp_zeros(distance: Tensor) -> Tensor:
    """Raise zeros, which equal patches give, just enough that quotients stay finite."""
    limits = torch.finfo(distance.dtype)
    return distance.clamp(min=(limits.eps * distance.amax(dim=1, keepdim=True)).clamp(limits.tiny))


def _lookup(values: Tensor, index: Tensor) -> Tensor:
    """Look up [B, N] values by [B, N, k] patch indices."""
    return values.gather(1, index.flatten(1)).view_as(index)


def repair(patches: Tensor, outliers: Tensor, grid: tuple[int, int]) -> Tensor:
    """Replace outliers by the mean of those of their 8 neighbours that are not outliers.

    [B, N, C] float32 patches on the `grid` and [B, N] bool to [B, N, C]; an outlier without such a
    neighbour is unchanged.
    """
    good = (~outliers).to(patches.dtype)[..., None]  # [B, N, 1]
    # An outlier itself counts as 0, so that the sum over the window of 9 is that of its neighbours.
    window = (to_map(x, grid) for x in (patches * good, good))
    total, count = (
        F.avg_pool2d(x, 3, stride=1, padding=1, divisor_override=1).flatten(2).mT for x in window
    )
    replaced = outliers[..., None] & (count > 0)
    return torch.where(replaced, total / count.clamp(min=1), patches)


def _check_calibration(calibration: Calibration | None, layers: int) -> Calibration:
    """Return `calibration`, by default the published one, or raise if it does not fit the tower."""
    if calibration is None:
        if layers not in PUBLISHED:
            raise ValueError(
                f"`calibration` must be given for a tower of {layers} blocks; it is published for "
                f"{sorted(PUBLISHED)}."
            )
        return PUBLISHED[layers]
    last = max(calibration.pre_adjust, calibration.post_adjust, calibration.multi_end - 1)
    if last > layers - 2:
        raise ValueError(
            f"`calibration` must name blocks before the last of {layers}, 0 to {layers - 2}; got "
            f"{last}."
        )
    return calibration
