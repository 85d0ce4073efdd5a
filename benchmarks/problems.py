"""Synthetic problems of any size that behave like real ones."""

import torch
import torch.nn.functional as F

from ovss_refine import Attention
from ovss_refine.attention import affinity

Problem = tuple[torch.Tensor, Attention, torch.Tensor]


def smooth_field(
    channels: int, size: tuple[int, int], generator: torch.Generator, detail: int
) -> torch.Tensor:
    """Random [channels, *size] values that vary over about 1 / `detail` of the image."""
    coarse = torch.randn(1, channels, detail, detail, generator=generator)
    return F.interpolate(coarse, size, mode="bicubic", align_corners=False)[0]


def problem(
    grid: tuple[int, int],
    K: int,
    size: tuple[int, int],
    device: str,
    *,
    present: int | None = None,
    batch: int | None = None,
    heads: int = 0,
    form: bool = False,
) -> Problem:
    """Make logits, attention and image.

    Logits and attention come from smooth random fields, so that classes form regions and attention
    is local, as in real ones: the number of steps of maximum velocity depends on that.

    Args:
        grid: (rows, columns) of the logits and the attention.
        K: number of classes.
        size: (height, width) of the image.
        device: of the result.
        present: number of classes in the image; the others are far less probable. None: all.
        batch: number of identical images; None: no batch axis.
        heads: 0: attention as a matrix, from features of 64 channels at temperature 0.1; else as
            queries and keys of that many heads of 40 channels.
        form: whether a refinement may form the map of these.
    """
    generator = torch.Generator().manual_seed(0)
    logits = 4 * smooth_field(K, grid, generator, 8)
    if present is not None:
        logits[present:] -= 40
    image = smooth_field(3, size, generator, 24).sigmoid()
    if heads:
        f = smooth_field(heads * 40, grid, generator, 12)
        f = F.normalize(f.view(heads, 40, -1).mT, dim=-1)  # [A, N, d]
        attention = Attention.from_factors(f.to(device), f.to(device), 10.0, grid, form=form)
    else:
        attention = affinity(smooth_field(64, grid, generator, 12).to(device), 0.1)
    logits, image = logits.to(device), image.to(device)
    if batch is None:
        return logits, attention, image
    if attention.weights is None:
        raise ValueError("`batch` must be None with `heads`.")
    weights = attention.weights.expand(batch, -1, -1).contiguous()
    return (
        logits.expand(batch, -1, -1, -1).contiguous(),
        Attention(weights, grid),
        image.expand(batch, -1, -1, -1).contiguous(),
    )
