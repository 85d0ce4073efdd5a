"""Argument checks shared by every public function, so that all messages read alike.

Torch is imported for types only: `config.py` needs these checks without it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ROW_SUM_TOLERANCE = 1e-2
# Entries of a map that are checked at a time on a CPU.
ROWS_BLOCK = 1 << 18
# Of scales, spreads and temperatures: their squares, reciprocals and products with numbers of size
# one are far from the ends of float32.
SCALES = (1e-6, 1e6)


def check_shape(name: str, tensor: Tensor | None, spec: str, **known: int) -> dict[str, int]:
    """Match `tensor` against axis names such as "B K h w" and return their sizes.

    Raises:
        TypeError: if `tensor` is not a tensor.
        ValueError: if the number of axes differs, if an axis named twice (or listed in
            `known`) has two different sizes, or if an axis is empty.
    """
    return check_sizes(name, check_dense(name, tensor).shape, spec, **known)


def check_dense(name: str, tensor: Tensor | None) -> Tensor:
    """Return `tensor`, or raise TypeError unless it is a tensor that holds one value per entry."""
    import torch  # whoever has a tensor to check has loaded it already

    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor; got {type(tensor).__name__}.")
    kinds = {
        "a nested tensor. Pad its parts to one size": tensor.is_nested,
        f"{tensor.layout}. Pass `{name}.to_dense()`": tensor.layout != torch.strided,
        f"{tensor.dtype}. Pass `{name}.dequantize()`": tensor.is_quantized,
        "one on the device `meta`, which holds no values": tensor.is_meta,
    }
    if got := [kind for kind, found in kinds.items() if found]:
        raise TypeError(f"`{name}` must be a dense tensor; got {got[0]}.")
    return tensor


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


def check_float(name: str, tensor: Tensor, kinds: str = "a floating-point tensor") -> None:
    """Raise TypeError unless `tensor` holds floating-point numbers of 16 bits or more."""
    small = tensor.is_floating_point() and tensor.itemsize < 2
    if small or not tensor.is_floating_point():
        fix = f" Pass `{name}.float()`." if small else ""
        raise TypeError(f"`{name}` must be {kinds}; got {tensor.dtype}.{fix}")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ValueError if `tensor` holds a NaN or an infinity, or what float32 cannot hold."""
    finite = tensor.float().isfinite()
    if not bool(finite.all()):
        fix = " in float32, which ends at 3.4e38" if bool(tensor.isfinite().all()) else ""
        bad = int((~finite).sum())
        raise ValueError(
            f"`{name}` must be finite; got {bad} NaN or infinite of {tensor.numel()} values{fix}."
        )


def check_all_finite(tensors: dict[str, Tensor]) -> None:
    """Do `check_finite` on tensors of one device, by name; the host waits once for them all."""
    import torch

    if not bool(torch.stack([t.float().isfinite().all() for t in tensors.values()]).all()):
        for name, tensor in tensors.items():
            check_finite(name, tensor)


def check_values(name: str, tensor: Tensor) -> None:
    """Do `check_float` and `check_finite`."""
    check_float(name, tensor)
    check_finite(name, tensor)


def check_weights_shape(name: str, weights: Tensor | None) -> Tensor:
    """Return `weights`, floating-point and [N, N], [B, N, N] or [B, A, N, N], or raise."""
    weights = check_dense(name, weights)
    check_sizes(name, weights.shape, {2: "N N", 4: "B A N N"}.get(weights.ndim, "B N N"))
    check_float(name, weights)
    return weights


def check_rows(weights: Tensor, lowest: float = math.inf) -> None:
    """Raise ValueError unless attention `weights` [..., N, N] are finite, >= 0 and sum to one.

    Args:
        weights: the map, its heads averaged.
        lowest: the smallest entry before the average.
    """
    least, low, high = _row_bounds(weights)
    lowest = min(lowest, least)
    # A NaN or an infinity anywhere is one in its row's sum as well.
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("the attention `weights` must be finite; got NaN or infinite entries.")
    if not lowest >= 0:
        raise ValueError(
            f"the attention `weights` must be >= 0; got {lowest:.3g}. Take a softmax over the last "
            "axis of raw scores."
        )
    if not (low >= 1 - ROW_SUM_TOLERANCE and high <= 1 + ROW_SUM_TOLERANCE):
        fix = _row_advice(weights, low, high)
        raise ValueError(
            f"the rows of the attention `weights` must sum to one within {ROW_SUM_TOLERANCE}; "
            f"got sums from {low:.4g} to {high:.4g}. {fix}; row = query."
        )


def _row_bounds(weights: Tensor) -> tuple[float, float, float]:
    """Return the smallest entry, and the smallest and largest sum of a row; reads the map once."""
    import torch

    dtype = torch.promote_types(weights.dtype, torch.float32)
    rows = weights.detach().flatten(0, -2)
    size = ROWS_BLOCK if rows.device.type == "cpu" else rows.numel()
    least, sums = [], []
    for block in torch.split(rows, max(1, size // rows.shape[1])):
        least.append(block.amin().to(dtype))
        sums.append(block.sum(dim=1, dtype=dtype))  # reads the block from the cache
    low, high = torch.cat(sums).aminmax()
    found: list[float] = torch.stack([torch.stack(least).amin(), low, high]).tolist()
    return found[0], found[1], found[2]


def _row_advice(weights: Tensor, low: float, high: float) -> str:
    """Say what to do with `weights` whose rows sum to `low` to `high`, by what they seem to be."""
    if bool(((weights.float().sum(dim=-2) - 1).abs() <= ROW_SUM_TOLERANCE).all()):
        return "The columns do: pass `weights.mT`"
    if low == 0:
        return "Remove tokens that attend to nothing, or let each attend to itself"
    # Probabilities that lost tokens sum to less than one, and sums of heads to one number.
    if high <= 1 + ROW_SUM_TOLERANCE:
        return "Divide by `weights.sum(-1, keepdim=True)`"
    if high - low <= ROW_SUM_TOLERANCE * high or float(weights.max()) <= 1:
        return "Divide by `weights.sum(-1, keepdim=True)`, or take a softmax of raw scores"
    return "Take a softmax over the last axis of raw scores"


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
    if not (inside and abs(number) <= sys.float_info.max):
        span = number_range(low, high, open_ends=open_ends)
        raise ValueError(f"`{name}` must be {span}; got {number!r}.")
    return number


def number_range(low: float, high: float = math.inf, *, open_ends: bool = False) -> str:
    """Say the range of `check_number` in words."""
    if high == math.inf:
        return f"a finite number {'>' if open_ends else '>='} {low:g}"
    return f"in ({low:g}, {high:g})" if open_ends else f"in [{low:g}, {high:g}]"


def check_count(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return `value` as a Python int in [low, high], or of at least `low`, or raise.

    Raises:
        TypeError: if `value` is not a whole number of Python, NumPy or torch.
        ValueError: if it is outside the range.
    """
    number = _plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"`{name}` must be a whole number; got {value!r}.")
    if number < low or (high is not None and number > high):
        span = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"`{name}` must be {span}; got {number}.")
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
