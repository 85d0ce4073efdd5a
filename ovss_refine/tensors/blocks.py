"""Rows of an attention map a block at a time, and products of thin matrices with them.

Axes: B images, A heads, N tokens, M vectors.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ovss_refine.tensors.tracing import exporting

# Entries of a block. On a CPU a block stays in the cache between the few passes over it (twice as
# fast as eight times the size), a GPU wants few large launches.
CPU_BLOCK = 1 << 21
GPU_BLOCK = 1 << 26
# Thinner blocks make thin matrix products, which are slow.
LEAST_ROWS = 64
# Rows turned into columns at a time: half the time of one transposed copy of the whole.
TURN_ROWS = 32


def dense_blocks(weights: Tensor, shrink: int) -> Iterator[tuple[slice, Tensor]]:
    """Walk over the rows of `weights` [B, N, N]: (rows, [B, n, N] float32).

    Float32 rows are not copied; half precision is widened a block at a time. A graph, which could
    not count blocks of a symbol, gets one.
    """
    if exporting():
        yield slice(None), weights.float()
        return
    B, N, _ = weights.shape
    size = CPU_BLOCK if weights.device.type == "cpu" else GPU_BLOCK
    n = max(size // (B * N), LEAST_ROWS) // shrink
    for rows in _ranges(N, n):
        yield rows, weights[:, rows].float()


def factor_blocks(q: Tensor, k: Tensor, shrink: int) -> Iterator[tuple[slice, Tensor]]:
    """Walk over the rows of mean over heads of softmax(q k^T): (rows, [B, n, N] float32).

    Args:
        q: [B, A, N, d] queries, scaled.
        k: [B, A, N, d] keys.
        shrink: divides the size of a block.
    """
    B, A, N, _ = q.shape
    size = CPU_BLOCK if q.device.type == "cpu" else GPU_BLOCK
    for rows in _ranges(N, size // (B * N * shrink)):
        block = torch.zeros(())
        for head in range(A):  # one head at a time: the heads' maps are not held side by side
            block = block + (q[:, head, rows] @ k[:, head].mT).softmax(dim=-1)
        yield rows, block.div_(A)


def _ranges(N: int, n: int) -> Iterator[slice]:
    n = max(1, n)
    return (slice(start, min(start + n, N)) for start in range(0, N, n))


def right(x: Tensor, block: Tensor) -> Tensor:
    """Return x block^T, [B, M, n], of `x` [B, M, N] and a `block` [B, n, N] of rows."""
    if not _has_onednn(x.device):
        return x @ block.mT
    return torch.stack([_linear(one, A) for one, A in zip(x, block, strict=True)])


def add_left(out: Tensor, x: Tensor, block: Tensor) -> None:
    """Add x block to `out` [B, M, N], of `x` [B, M, n] and a `block` [B, n, N] of rows."""
    if not _has_onednn(x.device) or x.shape[1] == 1:
        out.baddbmm_(x, block)
        return
    for total, one, A in zip(out, x, block, strict=True):
        total += _linear(one, A.mT)


def turned(weights: Tensor) -> Tensor | None:
    """Return a transposed copy of `weights` [B, N, N], or None where that saves no time.

    A chain multiplies by the same map many times, and a CPU is faster at x A^T than at x A.
    """
    if not _has_onednn(weights.device):
        return None
    out = torch.empty_like(weights)
    for rows in _ranges(weights.shape[1], TURN_ROWS):
        out[:, :, rows].copy_(weights[:, rows].mT)
    return out


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x weight^T by oneDNN, for thin x up to twice as fast as torch's own choice."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return out


def _has_onednn(device: torch.device) -> bool:
    return (
        device.type == "cpu"
        and bool(torch._C._has_mkldnn)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and not torch.compiler.is_compiling()
    )
