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
    except (RuntimeError, AssertionError, TypeError) as err:
        reason = str(err).splitlines()[0]
        raise ValueError(
            f"`device` must be 'auto' or one that torch can use; got {str(device)!r}: {reason}"
        ) from None
    return found


def _check_gpu(device: torch.device) -> None:
    """Raise RuntimeError, clearer than torch's, if there is no such GPU."""
    if device.type != "cuda":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise RuntimeError(f"torch finds {count or 'no'} GPU{'s' if count > 1 else ''}.")
