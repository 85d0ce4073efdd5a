"""RankSEG, a decision rule: labels that maximise an image's expected Dice, not each pixel's chance.

Sources: B. Dai and C. Li, "RankSEG: A Consistent Ranking-based Framework for Segmentation", JMLR
2023; Z. Wang and B. Dai, "RankSEG-RMA: An Efficient Segmentation Algorithm via Reciprocal Moment
Approximation", NeurIPS 2025. Computed by the authors' package `rankseg` (BSD), with its defaults.
"""

import torch
from torch import Tensor

from ovss_refine.baseline.probabilities import class_probabilities
from ovss_refine.checks import check_shape
from ovss_refine.logits import Logits
from ovss_refine.registry import require


def rankseg(logits: Logits, images: Tensor) -> Tensor:
    """Label images by RankSEG on the class probabilities of bilinearly upsampled logits.

    Memory: some times B * M * H * W floats, as the package sorts the pixels of every class.

    Args:
        logits: of B images, with their scale.
        images: [B, 3, H, W]; only their size matters.

    Returns:
        [B, H, W] int64, on the device of the logits.

    Raises:
        ModuleNotFoundError: if `rankseg` is not installed; names the extra.
        ValueError: if the shapes do not fit.
    """
    package = require("rankseg", "rivals")
    B = check_shape("logits.values", logits.values, "B K h w")["B"]
    check_shape("images", images, "B C H W", B=B, C=3)
    with torch.no_grad(), torch.autocast(logits.values.device.type, enabled=False):
        P = class_probabilities(logits, images.shape[2:])
        if P.shape[1] == 1:  # which the package refuses
            return torch.zeros_like(P[:, 0], dtype=torch.int64)
        labels: Tensor = package.RankSEG().predict(P.clamp(0, 1))  # sums may exceed 1 by rounding
    return labels
