"""Large square maps, held as a matrix or as factors, in blocks of rows.

Axes: B images, A heads, N tokens, d channels of a head.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ovss_refine.tensors.tracing import exporting

# Entries per block. On a CPU a block stays in the cache between the few passes over it (twice as
# fast as eight times the size); a GPU prefers few large launches.
CPU_BLOCK = 1 << 21
GPU_BLOCK = 1 << 26
# Thinner blocks make thin matrix products, which are slow.
MIN_ROWS = 64
# Where half precision is widened once: to widen it takes longer than a product does.
WIDENED_ONCE = ("cuda",)


class Dense(NamedTuple):
    """A map held as a matrix.

    Attributes:
        weights: [N, N] or [B, N, N], any float type.
    """

    weights: Tensor

    @property
    def shape(self) -> torch.Size:
        """[N, N] or [B, N, N]."""
        return self.weights.shape

    def blocks(self, divisor: int) -> Iterator[tuple[slice, Tensor]]:
        """Iterate over the rows of all B maps: (rows, [B, n, N] float32).

        Float32 rows are not copied; half precision is widened a block at a time. An exported graph
        cannot count the blocks of a symbolic size and gets a single one.
        """
        if exporting():
            yield slice(None), self.weights.float()
            return
        B, N, _ = self.weights.shape
        for rows in _ranges(N, max(_block_size(self.weights) // (B * N), MIN_ROWS) // divisor):
            yield rows, self.weights[:, rows].float()


class Factors(NamedTuple):
    """A map held as what it is made of: the mean over heads of softmax(q k^T).

    Attributes:
        q: [A, N, d] or [B, A, N, d] float32 queries, scaled.
        k: keys of the same shape.
    """

    q: Tensor
    k: Tensor

    @property
    def shape(self) -> torch.Size:
        """[N, N] or [B, N, N]."""
        *lead, _, N, _ = self.q.shape
        return torch.Size((*lead, N, N))

    def blocks(self, divisor: int) -> Iterator[tuple[slice, Tensor]]:
        """Iterate over the rows of all B maps: (rows, [B, n, N] float32), a block at a time."""
        B, A, N, _ = self.q.shape
        for rows in _ranges(N, _block_size(self.q) // (B * N * divisor)):
            block = self.q.new_zeros(())
            for head in range(A):  # one head at a time: the heads' maps are never held together
                block = block + (self.q[:, head, rows] @ self.k[:, head].mT).softmax(dim=-1)
            yield rows, block.div_(A)


def _block_size(tensor: Tensor) -> int:
    return CPU_BLOCK if tensor.device.type == "cpu" else GPU_BLOCK


def _ranges(N: int, n: int) -> Iterator[slice]:
    n = max(1, n)
    return (slice(start, min(start + n, N)) for start in range(0, N, n))


def worth_a_copy(weights: Tensor) -> bool:
    """Whether a float32 map made of `weights`, beside them, saves time."""
    half = weights.dtype in (torch.float16, torch.bfloat16)
    return weights.dtype == torch.float32 or (half and weights.device.type in WIDENED_ONCE)
