"""What a named device and a named dtype stand for, and the options of sources that say so."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch

from ovss_refine.sources import DtypeName

# As torch names what gives a CPU products in bfloat16: x86 with AMX or AVX-512, ARM.
FAST_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
DtypeLike = DtypeName | torch.dtype | None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the models of a source given by name are put, and what they compute in.

    Attributes:
        device: of the models.
        dtype: as for `given_dtype`.
    """

    device: torch.device
    dtype: DtypeLike = None

    def options(self, factory: Callable[..., object]) -> dict[str, Any]:
        """Return the keyword arguments that say so; without those that `factory` does not take."""
        # Models start on the CPU, in the dtype of their weights.
        wanted: dict[str, Any] = {}
        if self.device.type != "cpu":
            wanted["device"] = str(self.device)
        if self.dtype is not None:
            wanted["dtype"] = self.dtype
        taken = inspect.signature(factory).parameters.values()
        any_name = any(p.kind is p.VAR_KEYWORD for p in taken)
        names = {p.name for p in taken}
        return {key: value for key, value in wanted.items() if any_name or key in names}


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device to compute on.

    Args:
        device: a device of torch, such as "cpu" or "cuda:1"; None or "auto": the first GPU if
            there is one, else the CPU.

    Raises:
        ValueError: if torch cannot use it here.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        _check_gpu(found)
        torch.empty(0, device=found)
    except Exception as err:  # each backend has its own errors
        raise ValueError(
            f"`device` must be 'auto' or one that torch can use; got {str(device)!r}: "
            f"{_reason(err)}"
        ) from None
    return found


def given_device(device: str | torch.device | None) -> torch.device | None:
    """Return None for None, which leaves a model where it is, else as `resolve_device` does."""
    return None if device is None else resolve_device(device)


def given_dtype(dtype: DtypeLike, device: torch.device | None) -> torch.dtype | None:
    """Return the dtype that a model is converted to; None for None, which leaves its own.

    Args:
        dtype: of torch, of floating-point numbers; or "float32", "bfloat16" or "float16"; or
            "auto": the fastest that the device multiplies in: float16 on a GPU, bfloat16 on a CPU
            that has instructions for it, else float32.
        device: of the model; None: the CPU.

    Raises:
        ValueError: on another dtype.

    Example:
        >>> given_dtype("auto", torch.device("cuda"))
        torch.float16
    """
    if dtype is None:
        return None
    if dtype == "auto":
        kind = "cpu" if device is None else device.type
        cpu = torch.bfloat16 if _has_bfloat16() else torch.float32
        return {"cuda": torch.float16, "cpu": cpu}.get(kind, torch.float32)
    if isinstance(dtype, str) and dtype in get_args(DtypeName):
        found: torch.dtype = getattr(torch, dtype)
        return found
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1:
        return dtype
    raise ValueError(
        f"`dtype` must be None, a floating-point dtype of torch, or one of "
        f"{list(get_args(DtypeName))}; got {dtype!r}."
    )


def _has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16; False where torch is too old to tell."""
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name, False) for name in FAST_BFLOAT16)


def _check_gpu(device: torch.device) -> None:
    """Raise RuntimeError, clearer than torch's, if there is no such GPU."""
    if device.type != "cuda":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise RuntimeError(f"torch finds {count or 'no'} GPU{'s' if count > 1 else ''}.")


def _reason(error: Exception) -> str:
    """Return the first sentence of an error, unless torch explains only its own parts."""
    reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
    internal = isinstance(error, (NotImplementedError, ImportError)) or "INTERNAL" in reason
    return "torch finds no such device." if internal else reason
