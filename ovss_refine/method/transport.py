"""Optimal path: the cost that entropic transport carries into each patch.

Sources: J. Li et al., CVPR 2026, section 3.4 (attention as cost, uniform target);
M. Cuturi, "Sinkhorn Distances", NeurIPS 2013 (the iteration).

Axes: B images, M classes, N patches.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ovss_refine.attention import Attention
from ovss_refine.method.modes import Solution
from ovss_refine.tensors.blocks import add_matmul, matmul_t
from ovss_refine.tensors.tracing import State, repeat

# The scaling u is settled to this relative change. On affinities of real features two updates are
# within 1e-6 of the map's range of fifty, so the test stops at the third or so.
TOLERANCE = 1e-6


def optimal_path(q: Tensor, attention: Attention, epsilon: float, iterations: int) -> Solution:
    """Transport each `q` onto the uniform map at the cost given by attention.

    The plan diag(u) K diag(v), K = exp(-C / epsilon), C = attention scaled to maximum 1, is
    never formed: the result only needs its products with vectors. Updates stop early once u no
    longer changes, which is when the row marginals are met (the columns always are).

    Args:
        q: [B, M, N] float32 distributions over patches, the sources; may be zero at patches.
        attention: B maps of N tokens.
        epsilon: entropy weight, >= 0.02, in units of the largest cost.
        iterations: upper bound on updates of u, then v.

    Returns:
        D[c, j] = sum_i plan[i, j] C[i, j]. Memory: B * N * N floats for K, or a block of rows where
        the attention is held as factors or memory is short.
    """
    # Into one tensor: small ones kept from every block would fragment the heap, which then grows
    # by a block each, to N * N floats.
    peak = q.new_zeros(q.shape[0], 1, 1)
    for _, block in attention.blocks():
        peak.clamp_min_(block.amax(dim=(1, 2), keepdim=True))
    rate = -1 / (epsilon * peak)

    def kernel() -> Iterator[tuple[slice, Tensor]]:
        return ((rows, (block * rate).exp_()) for rows, block in attention.blocks())

    # Formed once where it fits, else again for every update.
    held = list(kernel()) if attention.fits_twice else None

    def update(t: int, u: Tensor, v: Tensor) -> State:
        u, mass = torch.empty_like(q), torch.zeros_like(q)  # mass: u K, before the scaling by v
        for rows, K in kernel() if held is None else held:
            u[..., rows] = q[..., rows] / matmul_t(v, K)
            add_matmul(mass, u[..., rows], K)
        return u, 1 / (q.shape[-1] * mass)

    def settled(before: State, after: State) -> Tensor:
        return ((after[0] - before[0]).abs() <= TOLERANCE * after[0]).all()

    start = (torch.zeros_like(q), torch.ones_like(q[:, :1]))  # one v for all classes at first
    steps = range(1, iterations + 1)
    (u, v), taken, converged = repeat(update, settled, start, steps, attention.test_every)
    D = torch.zeros_like(q)
    pairs = zip(kernel() if held is None else held, attention.blocks(), strict=True)
    for (rows, K), (_, block) in pairs:
        add_matmul(D, u[..., rows], K.mul_(block))  # K is no longer needed
    return Solution(D * v / peak, taken, converged)
