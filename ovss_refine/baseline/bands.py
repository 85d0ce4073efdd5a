"""The decision without refinement, for images whose upsampled logits do not fit in memory.

Axes: B images, K prompts, (h, w) grid of the logits, (H, W) pixels.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.baseline.decision import decide
from ovss_refine.logits import Logits

# How many logits are upsampled at once, in floats.
BAND = 1 << 24


def decide_without(logits: Logits, size: Sequence[int]) -> Tensor:
    """Decide as `decide` does by default, at (H, W) = `size`, one band of rows at a time.

    Memory: the result and a few times 2^24 floats.

    Args:
        logits: with a batch axis.
        size: (H, W) of the result.

    Returns:
        [B, H, W] int64, on the device of the logits.
    """
    values = logits.values.float()
    B, K, _, _ = values.shape
    H, W = size
    rows = max(1, BAND // (B * K * W))
    bands = []
    with torch.no_grad(), torch.autocast(values.device.type, enabled=False):
        for start in range(0, H, rows):
            part = _upsampled(values, (H, W), start, min(start + rows, H))
            bands.append(decide(replace(logits, values=part)).labels)
    return torch.cat(bands, dim=1)


def _upsampled(values: Tensor, size: tuple[int, int], start: int, stop: int) -> Tensor:
    """Return rows `start` to `stop` of the maps resized bilinearly to `size`: [B, K, rows, W]."""
    (H, W), h = size, values.shape[2]
    # Half-pixel centres, as in `F.interpolate(..., align_corners=False)`.
    rows = torch.arange(start, stop, dtype=torch.float64, device="cpu")
    place = ((rows + 0.5) * h / H - 0.5).clamp(min=0)
    above = place.long().clamp(max=h - 1)
    below = (above + 1).clamp(max=h - 1).to(values.device)
    weight = (place - above).float().to(values.device)[:, None]
    upper, lower = values[:, :, above.to(values.device)], values[:, :, below]
    return F.interpolate(upper + weight * (lower - upper), (stop - start, W), mode="bilinear")
