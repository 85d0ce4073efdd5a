"""Which tensors take the kernels that Triton compiles for a GPU; it comes with torch for CUDA."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from ovss_refine.tensors.compiled import load_loops
from ovss_refine.tensors.tracing import exporting

LOOPS = "ovss_refine.tensors.gpu_loops"
# What the kernels read; they compute in float32.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The oldest generation of GPUs that the kernels are compiled for in the tests.
CAPABILITY = (8, 0)
# The oldest Triton that flushes no small number to 0 in a division, and interprets the kernels.
TRITON = (3, 7)


def available(module: str, *tensors: Tensor) -> bool:
    """Whether the kernels of `module` can work on `tensors`.

    Never while torch traces a graph, nor where a gradient is wanted.
    """
    if exporting() or torch.compiler.is_compiling():
        return False
    for t in tensors:
        if type(t) is not Tensor or t.dtype not in DTYPES or not capable(t.device):
            return False
        if t.requires_grad and torch.is_grad_enabled():
            return False
    if not triton_is_known():
        return False
    # The first module runs a kernel as it is imported: so it is known whether Triton works here.
    return all(load_loops(name, "triton") is not None for name in (LOOPS, module))


@cache
def capable(device: torch.device) -> bool:
    """Whether the kernels are for such a device."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= CAPABILITY


@cache
def triton_is_known() -> bool:
    """Whether there is a Triton for which the kernels are tested."""
    try:
        found = version("triton")
    except PackageNotFoundError:
        return False
    return tuple(map(int, found.split(".")[:2])) >= TRITON


def current(device: torch.device) -> AbstractContextManager[object]:
    """Launch kernels on `device`, where Triton does not look at the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
