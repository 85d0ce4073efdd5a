"""The kernels for a GPU, compiled for one that need not be there.

For a process of its own, as Triton asks once where it keeps what it compiled.
"""

import re

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ovss_refine.method import upsample_triton
from ovss_refine.tensors import gpu_loops

FLOATS = ("whole", "tau", "scale", "floor")
INTEGERS = ("left", "y_cell", "x_cell")
LARGE = {"LARGE": 2.0**100}
# Name: (kernel, its tensors, what is fixed, warps).
KERNELS = {
    "scale": (gpu_loops.scale_round, "A sums parts", LARGE | {"WIDTH": 4096}, 8),
    "scale the widest": (gpu_loops.scale_round, "A sums parts", LARGE | {"WIDTH": 1 << 14}, 16),
    "scale one token": (
        gpu_loops.scale_round,
        "A sums parts",
        LARGE | {"WIDTH": 16, "N": 1, "G": 1},
        4,
    ),
    "form": (gpu_loops.finish_scaling, "A sums r c T", LARGE | {"WIDTH": 2048, "FORM": True}, 4),
    "factors": (gpu_loops.finish_scaling, "A sums r c T", LARGE | {"WIDTH": 16, "FORM": False}, 4),
    "arrive": (
        gpu_loops.arrive,
        "before after top_before top_after time left",
        {"BLOCK": 1024},
        4,
    ),
    **{
        f"upsample {maps} to {'labels' if labels else 'means'}": (
            upsample_triton.upsample_pixels,
            "low image means y_cell x_cell y_weights x_weights out",
            {"LABELS": labels, "MAPS": maps, "PIXELS": 128},
            4,
        )
        for maps in (1, 16)
        for labels in (True, False)
    },
}


def compile_kernel(name, capability, dtype="fp32"):
    """Compile down to the machine's code; flushing small numbers to 0 would lose weak columns."""
    kernel, tensors, fixed, warps = KERNELS[name]
    types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(FLOATS, "fp32")
    types |= dict.fromkeys(tensors.split(), "*fp32") | dict.fromkeys(INTEGERS, "*i32")
    types |= dict.fromkeys(fixed, "constexpr") | {"A": f"*{dtype}"}
    types["out"] = "*i64" if fixed.get("LABELS") else "*fp32"
    signature = {argument: types[argument] for argument in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    target = GPUTarget("cuda", capability, 32)
    done = triton.compile(source, target=target, options={"num_warps": warps})
    assert len(done.asm["cubin"]) > 1000
    assert re.search(rf"^\.target sm_{capability}", done.asm["ptx"], re.MULTILINE)
    assert ".ftz" not in done.asm["ptx"]
