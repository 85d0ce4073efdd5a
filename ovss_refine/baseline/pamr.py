"""Pixel-adaptive mask refinement, a baseline refiner without attention.

Source: N. Araslanov and S. Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR
2020, section 3.3: scores repeatedly move to neighbours of similar colour. NACLIP's published
figures include it (10 iterations); the other baselines do not.

Axes: B images, K maps, (H, W) pixels, n neighbours: 8 for each dilation.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.checks import check_count, check_float, check_shape

# Offsets of the ring around a pixel.
RING = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
# The paper's weight of the colour spread, and a floor that keeps flat regions finite.
SPREAD, FLOOR = 0.1, 1e-8


def pamr(
    values: Tensor, image: Tensor, *, iterations: int = 10, dilations: Sequence[int] = (8, 16)
) -> Tensor:
    """Refine maps along the colours of an image.

    Memory: over B * H * W * (16 * n + 2 * K) bytes; the weights are kept, the neighbours are not.

    Args:
        values: [B, K, H, W] maps, any range and float type.
        image: [B, 3, H', W'] images, with any affine scaling of each channel; resized bilinearly
            to (H, W).
        iterations: number of iterations, >= 0.
        dilations: distances of the rings of 8 neighbours in pixels, >= 1.

    Returns:
        [B, K, H, W] float32; within the range of `values`.

    Raises:
        TypeError: if `values` or `image` is not a floating-point tensor.
        ValueError: on a wrong shape, negative `iterations`, or no dilation.

    Example:
        >>> pamr(torch.rand(1, 2, 32, 32), torch.rand(1, 3, 64, 64), iterations=2).shape
        torch.Size([1, 2, 32, 32])
    """
    sizes = check_shape("values", values, "B K H W")
    check_float("values", values)
    check_shape("image", image, "B C h w", B=sizes["B"], C=3)
    check_float("image", image)
    check_count("iterations", iterations, 0)
    if not dilations:
        raise ValueError("`dilations` must have at least one distance; got none.")
    for dilation in dilations:
        check_count("dilations", dilation, 1)
    with torch.no_grad(), torch.autocast(values.device.type, enabled=False):
        guide = F.interpolate(
            image.float(), (sizes["H"], sizes["W"]), mode="bilinear", align_corners=False
        )
        weights = _weights(guide, dilations)  # [B, n, H, W]
        maps = values.float()
        for _ in range(iterations):
            moved = zip(weights.unbind(1), _neighbours(maps, dilations), strict=True)
            maps = sum((w[:, None] * x for w, x in moved), torch.zeros_like(maps))
    return maps


def _weights(guide: Tensor, dilations: Sequence[int]) -> Tensor:
    """Weigh the neighbours: [B, n, H, W], summing to one over n."""
    around = torch.stack(list(_neighbours(guide, dilations)), dim=1)  # [B, n, 3, H, W]
    # Every ring includes its centre, which therefore counts once for each dilation.
    centre = guide[:, None].expand(-1, len(dilations), -1, -1, -1)
    spread = torch.cat([around, centre], dim=1).std(dim=1, keepdim=True)
    distance = (around - guide[:, None]).abs() / (FLOOR + SPREAD * spread)
    return (-distance.mean(dim=2)).softmax(dim=1)


def _neighbours(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Iterate over the n neighbours of all pixels, [B, K, H, W] each; the border is replicated."""
    H, W = maps.shape[-2:]
    for d in dilations:
        padded = F.pad(maps, (d, d, d, d), mode="replicate")
        for y, x in RING:
            yield padded[..., d + y * d : d + y * d + H, d + x * d : d + x * d + W]
