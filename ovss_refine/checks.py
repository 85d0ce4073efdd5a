"""Argument checks shared by every public function, so that all messages read alike.

Torch is imported for types only: `config.py` needs these checks without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ROW_SUM_TOLERANCE = 1e-2
# Tokens that a transformer has beside its patches: one for the class, four registers or so.
MOST_EXTRA_TOKENS = 8
NAMED_GRID = "`Attention(attn, grid=(gh, gw))`, or add `grid` = [gh, gw] to an .npz file"


def check_shape(name: str, tensor: Tensor | None, spec: str, **known: int) -> dict[str, int]:
    """Match `tensor` against axis names such as "B K h w" and return their sizes.

    Raises:
        TypeError: if `tensor` is not a tensor.
        ValueError: if the number of axes differs, if an axis named twice (or listed in
            `known`) has two different sizes, or if an axis is empty.
    """
    from torch import Tensor  # whoever has a tensor to check has loaded torch already

    if not isinstance(tensor, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor; got {type(tensor).__name__}.")
    return check_sizes(name, tensor.shape, spec, **known)


def check_sizes(name: str, shape: Sequence[int], spec: str, **known: int) -> dict[str, int]:
    """Do the work of `check_shape` for a `shape` alone.

    Raises:
        ValueError: as `check_shape` does.
    """
    axes, sizes = spec.split(), dict(known)
    if (
        len(shape) == len(axes)
        and 0 not in shape
        and all(
            sizes.setdefault(axis, size) == size for axis, size in zip(axes, shape, strict=True)
        )
    ):
        return sizes
    wanted = ", ".join(f"{a}={known[a]}" if a in known else a for a in axes)
    empty = ", none of them 0" if 0 in shape else ""
    raise ValueError(f"`{name}` must have shape [{wanted}]{empty}; got {list(shape)}.")


def check_float(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless `tensor` holds floating-point numbers."""
    if not tensor.is_floating_point():
        raise TypeError(f"`{name}` must be a floating-point tensor; got {tensor.dtype}.")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ValueError if `tensor` holds a NaN or an infinity."""
    if not bool(tensor.isfinite().all()):
        bad = int((~tensor.isfinite()).sum())
        raise ValueError(
            f"`{name}` must be finite; got {bad} NaN or infinite of {tensor.numel()} values."
        )


def check_weights_shape(name: str, weights: Tensor | None) -> Tensor:
    """Return `weights`, floating-point and [N, N], [B, N, N] or [B, A, N, N], or raise."""
    ndim = getattr(weights, "ndim", 2)
    check_shape(name, weights, {2: "N N", 4: "B A N N"}.get(ndim, "B N N"))
    assert weights is not None  # noqa: S101 - or it had no shape
    check_float(name, weights)
    return weights


def check_grid(grid: Sequence[int], N: int) -> tuple[int, int]:
    """Return `grid` as (gh, gw) with gh * gw = N, or raise ValueError."""
    if len(grid) != 2 or min(grid) < 1 or math.prod(grid) != N:
        raise ValueError(
            f"`grid` must be (gh, gw) with gh * gw = N={N}, one patch per token; got {tuple(grid)}."
        )
    return grid[0], grid[1]


def find_grid(N: int, logits_size: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int]:
    """Return the grid of a bare attention tensor, by the rule of the method's section 0.

    Args:
        N: number of tokens.
        logits_size: (h, w) of the logits, the grid of first choice.
        image_size: (H, W) of the image. A square is the second choice, if a grid of N patches in
            the shape of the logits or of the image is square to within a patch.

    Raises:
        ValueError: if neither will do; names the tokens to drop where a few are left over.
    """
    h, w = logits_size
    extra, side = N - h * w, math.isqrt(N)
    if extra == 0:
        return logits_size
    if 1 <= extra <= MOST_EXTRA_TOKENS:
        raise ValueError(
            f"`attn` must be over the h * w = {h * w} patches of the logits alone; got N={N}, like "
            f"a map with {extra} class or register tokens in front. Drop them and divide: "
            f"`attn = attn[..., {extra}:, {extra}:]; attn = attn / attn.sum(-1, keepdim=True)`. If "
            f"all are patches, pass {NAMED_GRID}."
        )
    shapes = (logits_size, image_size)
    if side * side == N and any(abs(side * math.sqrt(y / x) - side) < 1 for y, x in shapes):
        return side, side
    raise ValueError(
        f"`attn` must have N = h * w = {h * w} tokens (the logits' grid), or a square number for a "
        f"square image or square logits; got N={N}. Pass {NAMED_GRID}."
    )


def check_rows(weights: Tensor, lowest: float) -> None:
    """Raise ValueError unless attention `weights` [..., N, N] are finite, >= 0 and sum to one.

    Args:
        weights: the map, its heads averaged.
        lowest: the smallest entry before the average.
    """
    import torch

    dtype = torch.promote_types(weights.dtype, torch.float32)
    low, high = (float(x) for x in weights.sum(dim=-1, dtype=dtype).detach().aminmax())
    # A NaN or an infinity anywhere is one in its row's sum as well.
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("the attention `weights` must be finite; got NaN or infinite entries.")
    if not lowest >= 0:
        raise ValueError(
            f"the attention `weights` must be >= 0; got {lowest:.3g}. Take a softmax over the last "
            "axis of raw scores."
        )
    if not (low >= 1 - ROW_SUM_TOLERANCE and high <= 1 + ROW_SUM_TOLERANCE):
        fix = "Divide by `weights.sum(-1, keepdim=True)`"
        if high > 1 + ROW_SUM_TOLERANCE:  # probabilities that lost tokens sum to less than one
            fix += ", or take a softmax over the last axis of raw scores"
        raise ValueError(
            f"the rows of the attention `weights` must sum to one within {ROW_SUM_TOLERANCE}; "
            f"got sums from {low:.4g} to {high:.4g}. {fix}; row = query."
        )


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Return `value`, one of `choices`, or raise ValueError."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}; got {value!r}.")
    return value


def check_number(
    name: str, value: object, low: float, high: float = math.inf, *, open_ends: bool = False
) -> float:
    """Return `value` as a Python number in [low, high], or in (low, high) if `open_ends`, or raise.

    Raises:
        TypeError: if `value` is not a finite real number of Python, NumPy or torch.
        ValueError: if it is outside the range.
    """
    number = _plain(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"`{name}` must be a number; got {value!r}.")
    inside = low < number < high if open_ends else low <= number <= high
    if not (inside and math.isfinite(number)):
        ends = "()" if open_ends else "[]"
        span = f"in {ends[0]}{low:g}, {high:g}{ends[1]}"
        if high == math.inf:
            span = f"a finite number {'>' if open_ends else '>='} {low:g}"
        raise ValueError(f"`{name}` must be {span}; got {number!r}.")
    return number


def check_count(name: str, value: object, low: int) -> int:
    """Return `value` as a Python int of at least `low`, or raise.

    Raises:
        TypeError: if `value` is not a whole number of Python, NumPy or torch.
        ValueError: if it is smaller than `low`.
    """
    number = _plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"`{name}` must be a whole number; got {value!r}.")
    if number < low:
        raise ValueError(f"`{name}` must be at least {low}; got {number}.")
    return number


def check_flag(name: str, value: object) -> bool:
    """Return `value` as a Python bool, or raise TypeError."""
    flag = _plain(value)
    if not isinstance(flag, bool):
        raise TypeError(f"`{name}` must be True or False; got {value!r}.")
    return flag


def _plain(value: Any) -> object:
    """Return the Python number in a NumPy scalar or a 0-d array or tensor; the rest as it is."""
    return value.item() if getattr(value, "shape", None) == () else value
