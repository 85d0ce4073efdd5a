"""What a named device stands for."""

import torch


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
