"""Timing, rates of the machine, and memory."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def seconds(run: Callable[[], object], device: str, repeats: int) -> dict[str, float]:
    """Time `run` after a warm-up, waiting for the device inside the timed region."""
    times = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    times = times[1:]
    low, _, high = statistics.quantiles(times, n=4) if repeats > 1 else times * 3
    return {
        "median": statistics.median(times),
        "first_quartile": low,
        "third_quartile": high,
        "repeats": repeats,
    }


def wait(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def rates(device: str) -> dict[str, float]:
    """Measure the rates that bound everything here: bytes, multiply-adds, exponentials per second.

    Bytes: a copy of 256 MB, read and written. Multiply-adds: the product of two 4096 x 4096
    matrices. Exponentials: on a CPU of values that stay in a cache, on a GPU of many.
    """
    source = torch.rand(1 << 26, device=device)
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), device, 9)["median"]
    a = torch.rand(4096, 4096, device=device)
    product = seconds(lambda: a @ a, device, 5)["median"]
    few = source[: (1 << 18) if device == "cpu" else (1 << 26)]
    out = torch.empty_like(few)
    times = 100 if device == "cpu" else 1
    exp = seconds(lambda: [torch.exp(few, out=out) for _ in range(times)], device, 9)["median"]
    return {
        "bytes": 2 * 4 * source.numel() / copy,
        "multiply_adds": 4096**3 / product,
        "exponentials": times * few.numel() / exp,
    }


def floor(rate: dict[str, float], **work: float) -> float:
    """Return the least time for `work` (keys of `rates`), done in sequence, in seconds."""
    return sum(amount / rate[name] for name, amount in work.items())


def reset_peak(device: str) -> float:
    """Reset the peak memory; return the bytes in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak
    return peak(device)


def peak(device: str) -> float:
    """Return the peak memory since `reset_peak`, in bytes."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status").read_text().splitlines()
    high = next(line for line in status if line.startswith("VmHWM"))
    return float(high.split()[1]) * 1024
