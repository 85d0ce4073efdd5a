"""The kernels for a GPU, compiled as they are called, for one that need not be there.

For a process of its own: Triton is told of a GPU, and to compile only.
"""

import re

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from ovss_refine import RefineConfig
from ovss_refine.method import upsample_gpu
from ovss_refine.method.markov import LARGE
from ovss_refine.tensors import gpu_chain, gpu_device, gpu_loops

COMPILED = []


class MissingGpu:
    """A driver of Triton's that knows what to compile for."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self.target


def without_launch(kernel, grid):
    """Compile for these arguments, and launch nothing."""

    def call(*arguments, **options):
        COMPILED.append(kernel.run(*arguments, grid=grid, warmup=True, **options))

    return call


def compile_all(capability):
    """Call what launches kernels, on tensors of a CPU that nothing is written to."""
    triton.runtime.driver.set_active(MissingGpu(capability))
    JITFunction.__getitem__ = without_launch
    for N in (1, 100, 4096):
        for dtype in gpu_device.DTYPES if N == 4096 else (torch.float32,):
            gpu_chain.scaled(torch.ones(1, N, N, dtype=dtype), 2, LARGE, form=N != 100)
    x, options = torch.ones(1), {"WIDTH": gpu_chain.MOST_TOKENS, "num_warps": 16}
    gpu_loops.scale_round[1, 1](x, x, x, gpu_chain.MOST_TOKENS, 512, LARGE=LARGE, **options)
    for B, m, N in ((1, 1, 1), (2, 3, 100), (1, 21, 1024)):
        gpu_chain.first_passage(torch.ones(B, m, N), torch.ones(B, N, N), 0.3, 1, 1)
    for K in (1, 21):
        low, image = torch.ones(1, K, 4, 4), torch.ones(1, 3, 16, 16)
        for band in upsample_gpu.gpu_bands(low, image, RefineConfig(), 1e-12):
            assert band.labels().dtype == torch.int64
            band.means()
    assert {kernel.name for kernel in COMPILED} == {
        "scale_round",
        "finish_scaling",
        "arrive",
        "upsample_pixels",
    }
    for kernel in COMPILED:
        assert len(kernel.asm["cubin"]) > 1000
        assert re.search(rf"^\.target sm_{capability}", kernel.asm["ptx"], re.MULTILINE)
        assert ".ftz" not in kernel.asm["ptx"]  # flushed to 0, weak columns would be lost
