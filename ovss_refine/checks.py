"""Argument checks shared by every public function, so that all messages read alike.

Torch is imported for types only: `config.py` needs these checks without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}; got {value!r}.")


def check_number(
    name: str, value: float, low: float, high: float = math.inf, *, open_ends: bool = False
) -> None:
    """Raise unless `value` is a finite number in [low, high], or in (low, high) if `open_ends`.

    Raises:
        TypeError: if `value` is not a number (a bool is none).
        ValueError: if it is outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` must be a number; got {value!r}.")
    inside = low < value < high if open_ends else low <= value <= high
    if not (inside and math.isfinite(value)):
        ends = "()" if open_ends else "[]"
        span = f"in {ends[0]}{low:g}, {high:g}{ends[1]}"
        if high == math.inf:
            span = f"a finite number {'>' if open_ends else '>='} {low:g}"
        raise ValueError(f"`{name}` must be {span}; got {value!r}.")


def check_count(name: str, value: int, low: int) -> None:
    """Raise unless `value` is a whole number of at least `low`.

    Raises:
        TypeError: if `value` is not an int.
        ValueError: if it is smaller than `low`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be a whole number; got {value!r}.")
    if value < low:
        raise ValueError(f"`{name}` must be at least {low}; got {value}.")
