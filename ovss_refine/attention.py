"""Attention: a checked self-attention map with its token grid.

Axes: B images, A heads, N tokens of the grid (gh, gw), row-major, N = gh * gw; M classes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine._checks import check_finite, check_float, check_number, check_shape

ROW_SUM_TOLERANCE = 1e-2
BLOCK_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """A self-attention map over a grid of patches.

    Attributes:
        weights: [N, N], [B, N, N] or [B, A, N, N]; row = query; entries >= 0; every row sums
            to one within 1e-2. Heads are averaged on construction, so the attribute has no
            head axis afterwards.
        grid: (gh, gw) with gh * gw = N; token n is the patch in row n // gw, column n % gw.

    Raises:
        TypeError: if `weights` is not a floating-point tensor.
        ValueError: on a wrong shape, a grid that does not have N patches, entries that are
            negative or not finite, or rows that do not sum to one.
    """

    weights: Tensor
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        """Check the map and average its heads."""
        weights = self.weights
        check_weights_shape("weights", weights)
        N = weights.shape[-1]
        grid = tuple(self.grid)
        if len(grid) != 2 or min(grid) < 1 or math.prod(grid) != N:
            raise ValueError(
                f"`grid` must be (gh, gw) with gh * gw = N={N}, the tokens of `weights`; "
                f"got {grid}."
            )
        # Per head, so that a negative entry of one head cannot hide behind another's.
        lowest = weights.amin()
        if weights.ndim == 4:
            weights = weights.mean(dim=1, dtype=_work_dtype(weights))
        _check_rows(weights, float(lowest))
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "grid", grid)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Walk over the rows in order: (rows, [B, n, N] float32 weights of those rows).

        Float32 weights come as one block and are not copied. Half precision is widened a block
        at a time, 64 MiB each, so that the full float32 map is never held.
        """
        weights = self.weights if self.weights.ndim == 3 else self.weights[None]
        B, N, _ = weights.shape
        n = N if weights.dtype == torch.float32 else max(1, BLOCK_ELEMENTS // (B * N))
        for start in range(0, N, n):
            rows = slice(start, min(start + n, N))
            yield rows, weights[:, rows].float()

    def left(self, x: Tensor) -> Tensor:
        """Return `x` times the attention, [B, M, N] float32 in and out."""
        out = torch.zeros_like(x)
        for rows, block in self.blocks():
            out.baddbmm_(x[..., rows], block)
        return out


def affinity(features: Tensor, temperature: float) -> Attention:
    """Attention from the similarity of dense features, by the method's section 5.

    Args:
        features: [B, C, gh, gw] or [C, gh, gw] features of any backbone, finite.
        temperature: the smaller, the sharper, > 0: softmax(cosine / temperature) over each row.

    Raises:
        TypeError: if `features` is not a floating-point tensor.
        ValueError: on a wrong shape, values that are not finite, or `temperature` <= 0.
    """
    unbatched = getattr(features, "ndim", 4) == 3
    check_shape("features", features, "C gh gw" if unbatched else "B C gh gw")
    check_float("features", features)
    check_finite("features", features)
    check_number("temperature", temperature, 0, open_ends=True)
    unit = F.normalize(features.float().flatten(-2), dim=-2)  # [..., C, N]
    gh, gw = features.shape[-2:]
    return Attention((unit.mT @ unit / temperature).softmax(dim=-1), (gh, gw))


def as_attention(attn: Tensor | Attention, logits_size: tuple[int, int]) -> Attention:
    """Give a bare tensor its grid, by the rule of the method's section 0.

    Args:
        attn: an `Attention`, or the tensor to make one of.
        logits_size: (h, w) of the logits, the grid of first choice.

    Raises:
        ValueError: if N is neither h * w nor a square number, and as `Attention` does.
    """
    if isinstance(attn, Attention):
        return attn
    check_weights_shape("attn", attn)
    N = attn.shape[-1]
    side = math.isqrt(N)
    if math.prod(logits_size) == N:
        return Attention(attn, logits_size)
    if side * side == N:
        return Attention(attn, (side, side))
    h, w = logits_size
    raise ValueError(
        f"`attn` must have N = h * w = {h * w} tokens (the logits' grid) or a square number; "
        f"got N={N}. Pass `Attention(attn, grid=(gh, gw))` to name its grid."
    )


def check_weights_shape(name: str, weights: Tensor) -> None:
    """Raise unless `weights` is floating-point and [N, N], [B, N, N] or [B, A, N, N]."""
    ndim = getattr(weights, "ndim", 2)
    check_shape(name, weights, {2: "N N", 4: "B A N N"}.get(ndim, "B N N"))
    check_float(name, weights)


def _work_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _check_rows(weights: Tensor, lowest: float) -> None:
    """Check the values of [..., N, N] `weights`, whose smallest entry is `lowest`."""
    sums = weights.sum(dim=-1, dtype=_work_dtype(weights))
    low, high = (float(x) for x in sums.aminmax())
    # A NaN or an infinity anywhere is one in its row's sum as well.
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("the attention `weights` must be finite; got NaN or infinite entries.")
    if not lowest >= 0:
        raise ValueError(f"the attention `weights` must be >= 0; got {lowest:.3g}.")
    if not (low >= 1 - ROW_SUM_TOLERANCE and high <= 1 + ROW_SUM_TOLERANCE):
        raise ValueError(
            f"the rows of the attention `weights` must sum to one within {ROW_SUM_TOLERANCE}; "
            f"got sums from {low:.4g} to {high:.4g}. Take a softmax over the last axis, or divide "
            "by `weights.sum(-1, keepdim=True)`; row = query."
        )
