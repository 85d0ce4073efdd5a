"""A chain's scaling and first passage on a GPU, by few kernels: two a round, two a step.

Written in torch, a round is some fifteen launches and a step some twelve, which take longer than
their work.

Axes: B maps, N tokens, m vectors.
"""

from typing import Any, cast

import torch
from torch import Tensor

from ovss_refine.tensors.compiled import load_loops
from ovss_refine.tensors.gpu_device import LOOPS, available, current

# A row of the map is held by the threads of one block, in registers.
MOST_TOKENS = 1 << 14
# Rows that are added up by one program, and the most programs of a map: a few for each processor.
ROWS, GROUPS = 8, 512
# Entries of a walk that one program looks at.
BLOCK = 1024


def can_scale(weights: Tensor) -> bool:
    """Whether the kernels can scale these maps, [B, N, N] or [N, N]."""
    return weights.shape[-1] <= MOST_TOKENS and available(LOOPS, weights)


def can_walk(q: Tensor, T: Tensor) -> bool:
    """Whether the kernels can walk from q [B, m, N] along chains T [B, N, N]."""
    return q.dtype == T.dtype == torch.float32 and available(LOOPS, q, T)


def scaled(
    weights: Tensor, rounds: int, large: float, form: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scale columns, then rows, to sum to one, `rounds` times.

    Args:
        weights: [B, N, N], one of `gpu_device.DTYPES`, >= 0; read as they are, scaled in float32.
        rounds: >= 1.
        large: bound on the sums of columns before they are scaled, a power of two.
        form: whether to form the scaled maps.

    Returns:
        r, c: [B, 1, N] the factors of the rows and columns, of which only the products are
        determined; the scaled maps [B, N, N] float32, or None.
    """
    loops = cast(Any, load_loops(LOOPS, "triton"))
    weights = weights.contiguous()
    B, N, _ = weights.shape
    G, width = max(1, min(-(-N // ROWS), GROUPS)), 1 << max(4, (N - 1).bit_length())
    r, c = weights.new_empty(2, B, 1, N, dtype=torch.float32)
    parts = r.new_empty(B, G, N)
    T = r.new_empty(B, N, N) if form else None
    options = {"LARGE": large, "WIDTH": width, "num_warps": max(4, min(width // 512, 16))}
    sums = weights.sum(dim=1, dtype=torch.float32)
    with current(weights.device):
        for _ in range(rounds - 1):
            loops.scale_round[G, B](weights, sums, parts, N, G, **options)
            torch.sum(parts, dim=1, out=sums)
        out = r if T is None else T
        loops.finish_scaling[G, B](weights, sums, r, c, out, N, G, FORM=form, **options)
    return r, c, T


def first_passage(
    q: Tensor, T: Tensor, tau: float, max_steps: int, every: int
) -> tuple[Tensor, int, bool]:
    """Walk from each row of `q` until it has reached every token.

    Args:
        q: [B, m, N] float32, >= 0.
        T: [B, N, N] chains, rows summing to one.
        tau: a token is reached once its mass is over `tau` times the largest, in (0, 1).
        max_steps: upper bound on steps, and the time of a token never reached.
        every: steps between two tests of whether all is reached, for each of which the host waits.

    Returns:
        Times [B, m, N], interpolated between the steps around the crossing; steps taken; whether
        every token was reached.
    """
    loops = cast(Any, load_loops(LOOPS, "triton"))
    B, m, N = q.shape
    f = (q / q.amax(dim=2, keepdim=True)).contiguous()
    time = torch.where(f <= tau, -1.0, 0.0)
    walks, tops = (f, torch.empty_like(f)), (f.new_ones(B * m), f.new_empty(B * m))
    # One product and not a batch of one, for which cuBLAS does not split the sum over tokens.
    product, chains = (torch.mm, T[0]) if B == 1 else (torch.bmm, T)
    flat = [f[0] if B == 1 else f for f in walks]
    parts = -(-N // BLOCK)
    left = torch.empty(B * m, parts, dtype=torch.int32, device=q.device)
    step, done = 0, False
    with current(q.device):
        while step < max_steps and not done:
            i, o = step % 2, 1 - step % 2
            product(flat[i], chains, out=flat[o])
            loops.arrive[B * m, parts](
                walks[i], walks[o], tops[i], tops[o], time, left, N, float(step), tau, BLOCK=BLOCK
            )
            step += 1
            if step % every == 0 or step == max_steps:
                done = not bool(left.any())
    return time.masked_fill_(time < 0, max_steps), step, done
