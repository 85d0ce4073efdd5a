"""Attention: a checked self-attention map with its token grid.

Axes: B images, A heads, N tokens of the grid (gh, gw), row-major, N = gh * gw; M classes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.checks import (
    SCALES,
    check_flag,
    check_number,
    check_rows,
    check_shape,
    check_values,
    check_weights_shape,
)
from ovss_refine.images.convert import as_tensor
from ovss_refine.tensors.blocks import Dense, Factors, worth_a_copy
from ovss_refine.tensors.layout import check_grid
from ovss_refine.tensors.memory import free_bytes

# Steps between two checks of a stopping test; on a GPU each waits for everything launched before.
GPU_TEST_EVERY = 4


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """A self-attention map over a grid of patches, held as a matrix or as its factors.

    `attention[b]` is the map of one image of a batch; `for one in attention` iterates over them.

    Attributes:
        weights: [N, N], [B, N, N] or [B, A, N, N], a tensor or an array; row = query; entries
            >= 0; every row sums to one within 1e-2. Heads are averaged on construction, so the
            attribute has no head axis afterwards. None where the map is held as factors.
        grid: (gh, gw) with gh * gw = N; token n is the patch in row n // gw, column n % gw.
        factors: None, or scaled queries and keys, each [B, A, N, d] or [A, N, d]: `from_factors`.
        block_divisor: divides the size of the blocks in which the map is processed; above 1 no
            other N x N map is formed beside it. Same results, slower, less memory.
        may_form: whether a refinement may form the map of factors, where memory is plentiful.

    Raises:
        TypeError, ValueError: on another type or shape, a grid that does not have N patches,
            entries that are negative or not finite, or rows that do not sum to one.

    Example:
        >>> import torch
        >>> Attention(torch.full((2, 6, 6), 1 / 6), grid=(2, 3))[0].shape
        torch.Size([6, 6])
    """

    weights: Tensor | None  # an array becomes a tensor on construction
    grid: tuple[int, int]
    factors: tuple[Tensor, Tensor] | None = None
    block_divisor: int = 1
    may_form: bool = True

    def __post_init__(self) -> None:
        """Check the map and average its heads."""
        if self.factors is not None:
            if self.weights is not None:
                raise ValueError("`weights` must be None with `factors`; got both.")
            object.__setattr__(self, "grid", check_grid(self.grid, self.shape[-1]))
            return
        given = self.weights if self.weights is None else as_tensor(self.weights, "weights")
        weights = check_weights_shape("weights", given)
        object.__setattr__(self, "grid", check_grid(self.grid, weights.shape[-1]))
        if weights.ndim == 4:
            # Per head, so that a negative entry of one head cannot hide behind another's.
            lowest = float(weights.detach().amin())
            weights = weights.mean(dim=1, dtype=torch.promote_types(weights.dtype, torch.float32))
            check_rows(weights, lowest)
        else:
            check_rows(weights)
        object.__setattr__(self, "weights", weights)

    @classmethod
    def from_factors(
        cls, q: Tensor, k: Tensor, scale: float, grid: tuple[int, int], *, form: bool = True
    ) -> "Attention":
        """Hold attention as queries and keys: mean over heads of softmax(scale q k^T).

        The N x N map is not held. A refinement forms it if it and a copy take less than a quarter
        of the free memory; else its rows are computed in blocks, again for each product: beside q
        and k, 2 * B * A * N * d floats, it then needs about 10 * B * M * N floats for M classes,
        and 4 blocks of 2^21 (CPU) or 2^26 (GPU) entries, or of a row if that is more.

        Args:
            q: [B, A, N, d] or [A, N, d] queries, finite, any float type.
            k: [B, A, N, d] or [A, N, d] keys, of the shape, type and device of `q`.
            scale: factor on the products, in [1e-6, 1e6]; usually d ** -0.5.
            grid: (gh, gw) with gh * gw = N.
            form: whether a refinement may form the map at all.

        Raises:
            TypeError, ValueError: on another type, shapes that differ, values that are not finite,
                a `scale` out of range, or a grid that does not have N patches.
        """
        axes = "A N d" if getattr(q, "ndim", 4) == 3 else "B A N d"
        sizes = check_shape("q", q, axes)
        check_shape("k", k, axes, **sizes)
        for name, x in (("q", q), ("k", k)):
            check_values(name, x)
        scale = check_number("scale", scale, *SCALES)
        return cls(None, grid, (q.float() * scale, k.float()), may_form=check_flag("form", form))

    @classmethod
    def stack(cls, maps: Sequence["Attention"]) -> "Attention":
        """Put the maps of B images into one batch.

        Args:
            maps: at least one, without batch axis, on one grid, all held in the same way, or
                ValueError is raised.
        """
        if not isinstance(maps, Sequence) or not all(isinstance(one, Attention) for one in maps):
            raise TypeError(f"`maps` must be a list of `Attention`; got {maps!r}.")
        kinds = {(tuple(part.shape for part in one._held), one.grid) for one in maps}
        if len(kinds) != 1 or len(maps[0].shape) != 2:
            raise ValueError(
                "`maps` must be maps without batch axis, on one grid and held in the same way; got "
                f"{[(*one.shape, one.grid) for one in maps]}."
            )
        return maps[0]._with(map(torch.stack, zip(*(one._held for one in maps), strict=True)))

    def __getitem__(self, b: int) -> "Attention":
        """Return the map of image `b` of a batch, counted from the end if negative; not a copy.

        Raises:
            TypeError, IndexError: if the map has no batch axis, or there is no such image.
        """
        if len(self.shape) != 3:
            raise TypeError("`attention[b]` must be of a batch; this is the map of one image.")
        return self._each(lambda x: x[b])

    def batched(self) -> "Attention":
        """Return the same maps with a batch axis, of one if there was none; not a copy."""
        return self if len(self.shape) == 3 else self._each(lambda x: x[None])

    def to(self, device: torch.device | str) -> "Attention":
        """Return the same maps on `device`."""
        return self._each(lambda x: x.to(device))

    def in_blocks(self, divisor: int) -> "Attention":
        """Return the same maps, processed in blocks that are `divisor` times smaller."""
        other = copy(self)
        object.__setattr__(other, "block_divisor", divisor)
        return other

    @property
    def shape(self) -> torch.Size:
        """[N, N] or [B, N, N], held or not."""
        return self._held.shape

    @property
    def batch(self) -> int:
        """Number of maps, B; 1 without a batch axis."""
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def device(self) -> torch.device:
        """The device of the map, or of its factors."""
        return self._held[0].device

    @property
    def fits_twice(self) -> bool:
        """Whether other N x N maps may be formed beside this one, to save time."""
        held = self.weights
        return held is not None and worth_a_copy(held) and self.block_divisor == 1

    @property
    def test_every(self) -> int:
        """How many steps a loop over this map takes between two checks of its stopping test."""
        return 1 if self.device.type == "cpu" else GPU_TEST_EVERY

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Iterate over the rows in order: (rows, [B, n, N] float32 weights of those rows).

        Float32 weights are not copied; others are widened, or multiplied out, a block at a time.
        """
        return self.batched()._held.blocks(self.block_divisor)

    def left_matmul(self, x: Tensor) -> Tensor:
        """Return `x` times the attention, [B, M, N] float32 in and out."""
        out = torch.zeros_like(x)
        for rows, block in self.blocks():
            out.baddbmm_(x[..., rows], block)
        return out

    def formed(self) -> "Attention":
        """Return the same maps held as a matrix, where they may be and memory is plentiful."""
        if self.factors is None or not self.may_form or self.block_divisor > 1:
            return self
        one = self.batched()
        if 2 * 4 * one.shape.numel() > free_bytes(self.device) / 4:
            return self
        other = copy(one)
        object.__setattr__(other, "weights", torch.cat([rows for _, rows in one.blocks()], dim=1))
        object.__setattr__(other, "factors", None)
        return other

    @property
    def _held(self) -> Dense | Factors:
        if self.factors is not None:
            return Factors(*self.factors)
        assert self.weights is not None  # noqa: S101 - checked on construction
        return Dense(self.weights)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Attention":
        """Apply `change` to every tensor that is held."""
        return self._with(map(change, self._held))

    def _with(self, parts: Iterable[Tensor]) -> "Attention":
        """Return a copy that holds other tensors, without the checks."""
        other, held = copy(self), tuple(parts)
        dense = self.factors is None
        object.__setattr__(other, "weights", held[0] if dense else None)
        object.__setattr__(other, "factors", None if dense else held)
        return other


@runtime_checkable
class AttentionSource(Protocol):
    """Anything that gives the self-attention of images, row = query."""

    def attention(self, images: Tensor) -> Attention:
        """Compute the attention of `images`.

        Args:
            images: [B, 3, H, W] RGB in [0, 1]; the source resizes and normalises them. Those of
                this library also take uint8, arrays [B, H, W, 3] and lists of images of one size.

        Returns:
            B maps over the patches, without other tokens, on the grid that the source chooses.

        Raises:
            FileNotFoundError: if an image is a path without a file.
            TypeError, ValueError: on images of another form, shape or range.
        """
        ...


def affinity(features: Tensor, temperature: float) -> Attention:
    """Attention from the similarity of dense features, by the method's section 5.

    Args:
        features: [B, C, gh, gw] or [C, gh, gw] features of any backbone, finite.
        temperature: of the softmax over each row; the smaller, the sharper, in [1e-6, 1e6].

    Raises:
        TypeError, ValueError: on another type or shape, or a number not finite or out of range.

    Example:
        >>> affinity(torch.rand(8, 6, 9), temperature=0.1).grid
        (6, 9)
    """
    unbatched = getattr(features, "ndim", 4) == 3
    check_shape("features", features, "C gh gw" if unbatched else "B C gh gw")
    check_values("features", features)
    temperature = check_number("temperature", temperature, *SCALES)
    gh, gw = features.shape[-2:]
    with torch.autocast(features.device.type, enabled=False):  # whose products have 8 or 11 bits
        unit = F.normalize(features.float().flatten(-2), dim=-2)  # [..., C, N]
        return Attention((unit.mT @ unit / temperature).softmax(dim=-1), (gh, gw))
