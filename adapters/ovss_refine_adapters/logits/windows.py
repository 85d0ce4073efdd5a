"""Sliding windows: cut, compute the logits of each, average where windows overlap.

The scheme is the one that SCLIP (F. Wang et al., ECCV 2024) and its descendants share, after
MMSegmentation's: the last window of a row or column is shifted back inside, every window's logits
are upsampled to the window's pixels, summed and divided by the number of windows at each pixel.

Axes: B images, K prompts, (H, W) pixels, (h, w) grid of a window.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly, half-pixel centres, no antialias: [B, K, h, w] to [B, K, *size]."""
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)


def regrid(tokens: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resize [B, A, N, d] tokens bilinearly from one grid of N patches to another."""
    B, A, _, d = tokens.shape
    maps = tokens.mT.reshape(B, A * d, *grid)
    return upsample(maps, target).view(B, A, d, -1).mT


def slide(
    pixels: Tensor,
    score: Callable[[Tensor], Tensor],
    *,
    window: int,
    stride: int,
    multiple: int = 1,
) -> Tensor:
    """Compute the logits of windows and average them: [B, 3, H, W] pixels to [B, K, H, W].

    Args:
        pixels: normalised pixels.
        score: [B, 3, y, x] pixels of a window to [B, K, h, w] logits on any grid.
        window: side of a window in pixels; cropped to the image if larger.
        stride: step between windows in pixels, >= 1 and at most `window`.
        multiple: windows are padded with zeros on all sides to a multiple of this many pixels,
            and their logits cropped back.
    """
    H, W = pixels.shape[-2:]
    total, count = torch.zeros(()), pixels.new_zeros(H, W)
    for top, bottom in spans(H, window, stride):
        for left, right in spans(W, window, stride):
            logits = _score_padded(pixels[..., top:bottom, left:right], score, multiple)
            if total.ndim == 0:  # the first window gives the number of maps
                total = logits.new_zeros(*logits.shape[:2], H, W)
            total[..., top:bottom, left:right] += logits
            count[top:bottom, left:right] += 1
    return total / count


def spans(size: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Split [0, size) into windows that cover it: (start, stop) of each."""
    steps = max(size - window + stride - 1, 0) // stride + 1
    stops = [min(i * stride + window, size) for i in range(steps)]
    return [(max(stop - window, 0), stop) for stop in stops]


def _score_padded(pixels: Tensor, score: Callable[[Tensor], Tensor], multiple: int) -> Tensor:
    y, x = pixels.shape[-2:]
    rows, columns = -y % multiple, -x % multiple
    top, left = rows // 2, columns // 2
    padded = F.pad(pixels, (left, columns - left, top, rows - top))
    logits = upsample(score(padded), (y + rows, x + columns))
    return logits[..., top : top + y, left : left + x]
