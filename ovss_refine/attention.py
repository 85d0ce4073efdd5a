"""Attention: a checked self-attention map with its token grid.

Axes: B images, A heads, N tokens of the grid (gh, gw), row-major, N = gh * gw; M classes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.checks import check_finite, check_float, check_number, check_shape
from ovss_refine.tensors.blocks import add_left, dense_blocks, factor_blocks, turned

ROW_SUM_TOLERANCE = 1e-2
# Steps of a loop between two looks at its stopping test: on a GPU a look waits for all that
# was launched before it.
GPU_TEST_EVERY = 4


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """A self-attention map over a grid of patches, held as a matrix or as its factors.

    Attributes:
        weights: [N, N], [B, N, N] or [B, A, N, N]; row = query; entries >= 0; every row sums
            to one within 1e-2. Heads are averaged on construction, so the attribute has no
            head axis afterwards. None where the map is held as factors.
        grid: (gh, gw) with gh * gw = N; token n is the patch in row n // gw, column n % gw.
        factors: None, or scaled queries and keys, each [B, A, N, d] or [A, N, d]: `from_factors`.
        shrink: divides the size of the blocks in which the map is walked over; above 1 nothing
            of N * N entries is formed beside what is held. Same results, slower, less memory.

    Raises:
        TypeError: if `weights` is not a floating-point tensor.
        ValueError: on a wrong shape, a grid that does not have N patches, entries that are
            negative or not finite, or rows that do not sum to one.
    """

    weights: Tensor | None
    grid: tuple[int, int]
    factors: tuple[Tensor, Tensor] | None = None
    shrink: int = 1

    def __post_init__(self) -> None:
        """Check the map and average its heads."""
        if self.factors is not None:
            if self.weights is not None:
                raise ValueError("`weights` must be None beside `factors`; got both.")
            object.__setattr__(self, "grid", _checked_grid(self.grid, self.shape[-1]))
            return
        weights = check_weights_shape("weights", self.weights)
        object.__setattr__(self, "grid", _checked_grid(self.grid, weights.shape[-1]))
        # Per head, so that a negative entry of one head cannot hide behind another's.
        lowest = weights.detach().amin()
        if weights.ndim == 4:
            weights = weights.mean(dim=1, dtype=_work_dtype(weights))
        _check_rows(weights, float(lowest))
        object.__setattr__(self, "weights", weights)

    @classmethod
    def from_factors(cls, q: Tensor, k: Tensor, scale: float, grid: tuple[int, int]) -> "Attention":
        """Hold attention as queries and keys: mean over heads of softmax(scale q k^T).

        The N x N map is never held. Its rows are computed a block at a time, again for every
        product: beside q and k, 2 * B * A * N * d floats, a refinement of M classes needs about
        10 * B * M * N floats, and 4 blocks of 2^21 (CPU) or 2^26 (GPU) entries, or of a row if
        that is more.

        Args:
            q: [B, A, N, d] or [A, N, d] queries, finite, any float type.
            k: keys, of the shape, type and device of `q`.
            scale: factor on the products, > 0; usually d ** -0.5.
            grid: (gh, gw) with gh * gw = N.

        Raises:
            TypeError: if `q` or `k` is not a floating-point tensor.
            ValueError: on shapes that differ, values that are not finite, `scale` <= 0, or a
                grid that does not have N patches.
        """
        axes = "A N d" if getattr(q, "ndim", 4) == 3 else "B A N d"
        sizes = check_shape("q", q, axes)
        check_shape("k", k, axes, **sizes)
        for name, x in (("q", q), ("k", k)):
            check_float(name, x)
            check_finite(name, x)
        check_number("scale", scale, 0, open_ends=True)
        return cls(None, grid, factors=(q.float() * scale, k.float()))

    @property
    def shape(self) -> torch.Size:
        """[N, N] or [B, N, N], held or not."""
        if self.factors is None:
            assert self.weights is not None  # noqa: S101 - checked on construction
            return self.weights.shape
        *lead, _, N, _ = self.factors[0].shape
        return torch.Size((*lead, N, N))

    @property
    def batch(self) -> int:
        """Number of maps, B; 1 without a batch axis."""
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def device(self) -> torch.device:
        """Where the map, or its factors, lie."""
        held = self.weights if self.factors is None else self.factors[0]
        assert held is not None  # noqa: S101 - checked on construction
        return held.device

    @property
    def roomy(self) -> bool:
        """Whether other N x N maps may be formed beside this one, to save time."""
        return self.weights is not None and self.weights.dtype == torch.float32 and self.shrink == 1

    @property
    def test_every(self) -> int:
        """How many steps a loop over this map takes between two looks at its stopping test."""
        return 1 if self.device.type == "cpu" else GPU_TEST_EVERY

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Walk over the rows in order: (rows, [B, n, N] float32 weights of those rows).

        Float32 weights are not copied. Half precision is widened a block at a time, and factors
        are multiplied out a block at a time, so that the full float32 map is never held.
        """
        if self.factors is not None:
            q, k = (x if x.ndim == 4 else x[None] for x in self.factors)
            return factor_blocks(q, k, self.shrink)
        return dense_blocks(self._batched(), self.shrink)

    def left(self, x: Tensor) -> Tensor:
        """Return `x` times the attention, [B, M, N] float32 in and out."""
        out = torch.zeros_like(x)
        for rows, block in self.blocks():
            add_left(out, x[..., rows], block)
        return out

    def turned(self) -> Tensor | None:
        """Return the columns as rows, [B, N, N], or None: no room for it, or no use here."""
        return turned(self._batched()) if self.roomy else None

    def _batched(self) -> Tensor:
        assert self.weights is not None  # noqa: S101 - the callers have looked
        return self.weights if self.weights.ndim == 3 else self.weights[None]


@runtime_checkable
class AttentionSource(Protocol):
    """Anything that gives the self-attention of images, row = query."""

    def attention(self, images: Tensor) -> Attention:
        """Attend over `images`.

        Args:
            images: [B, 3, H, W] RGB in [0, 1]. Resizing, normalising and dropping tokens that are
                no patches is the source's business.

        Returns:
            B maps over the grid of patches, which is the source's own.
        """
        ...


def _checked_grid(grid: Sequence[int], N: int) -> tuple[int, int]:
    if len(grid) != 2 or min(grid) < 1 or math.prod(grid) != N:
        raise ValueError(
            f"`grid` must be (gh, gw) with gh * gw = N={N}, one patch per token; got {tuple(grid)}."
        )
    return grid[0], grid[1]


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


def check_weights_shape(name: str, weights: Tensor | None) -> Tensor:
    """Return `weights`, floating-point and [N, N], [B, N, N] or [B, A, N, N], or raise."""
    ndim = getattr(weights, "ndim", 2)
    check_shape(name, weights, {2: "N N", 4: "B A N N"}.get(ndim, "B N N"))
    assert weights is not None  # noqa: S101 - or it had no shape
    check_float(name, weights)
    return weights


def _work_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _check_rows(weights: Tensor, lowest: float) -> None:
    """Check the values of [..., N, N] `weights`, whose smallest entry is `lowest`."""
    sums = weights.sum(dim=-1, dtype=_work_dtype(weights))
    low, high = (float(x) for x in sums.detach().aminmax())
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
