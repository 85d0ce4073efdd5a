"""How published pipelines resize images and maps."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

# The longest side that the published settings allow, whatever the short side.
LONG_SIDE = 2048


def resized_size(H: int, W: int, short_side: int) -> tuple[int, int]:
    """Scale (H, W) to a short side of `short_side`, or to a long side of 2048 if that is less.

    Sides are rounded half up, as the published data pipelines do.
    """
    factor = min(LONG_SIDE / max(H, W), short_side / min(H, W))
    return int(H * factor + 0.5), int(W * factor + 0.5)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize [B, K, h, w] bilinearly to `size`, without antialiasing."""
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
