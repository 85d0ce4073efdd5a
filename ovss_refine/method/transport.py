"""Optimal path: the cost that entropic transport carries into each patch.

Sources: J. Li et al., CVPR 2026, section 3.4 (attention as cost, uniform target);
M. Cuturi, "Sinkhorn Distances", NeurIPS 2013 (the iteration).

Axes: B images, M classes, N patches.
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from ovss_refine.attention import Attention
from ovss_refine.method.modes import Solution
from ovss_refine.tensors import compiled
from ovss_refine.tensors.tracing import State, repeat

# The scaling u is settled to this relative change. On affinities of real features two updates are
# within 1e-6 of the map's range of fifty, so the test stops at the third or so.
TOLERANCE = 1e-6
LOOP = "ovss_refine.method.transport_loop"


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
        the attention is held as factors or memory is short; none of it in the compiled loop, for
        float32 maps on a CPU where numba is installed.
    """
    weights = attention.batched().weights
    if weights is not None and compiled.fits(weights):
        return _compiled(q, weights, epsilon, iterations)
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
            u[..., rows] = q[..., rows] / (v @ K.mT)
            mass.baddbmm_(u[..., rows], K)
        return u, 1 / (q.shape[-1] * mass)

    def settled(before: State, after: State) -> Tensor:
        return ((after[0] - before[0]).abs() <= TOLERANCE * after[0]).all()

    start = (torch.zeros_like(q), torch.ones_like(q[:, :1]))  # one v for all classes at first
    steps = range(1, iterations + 1)
    (u, v), taken, converged = repeat(update, settled, start, steps, attention.test_every)
    D = torch.zeros_like(q)
    pairs = zip(kernel() if held is None else held, attention.blocks(), strict=True)
    for (rows, K), (_, block) in pairs:
        D.baddbmm_(u[..., rows], K.mul_(block))  # K is no longer needed
    return Solution(D * v / peak, taken, converged)


def _compiled(q: Tensor, weights: Tensor, epsilon: float, iterations: int) -> Solution:
    """Do the same by the compiled loop, which stops for each class when that is settled."""
    loop = cast(Any, compiled.load_loops(LOOP)).transport
    q, weights = q.contiguous(), weights.contiguous()
    D = torch.empty_like(q)
    peak = weights.amax(dim=(1, 2))  # [B]
    rates = (-math.log2(math.e) / (epsilon * peak)).tolist()

    def solve(place: tuple[int, int]) -> tuple[int, bool]:
        b, c = place
        found: tuple[int, bool] = loop(
            q[b, c].numpy(), weights[b].numpy(), rates[b], iterations, TOLERANCE, D[b, c].numpy()
        )
        return found

    places = list(product(range(q.shape[0]), range(q.shape[1])))
    threads = compiled.threads_for(len(places), weights.numel())
    steps, settled = zip(*compiled.in_threads(solve, places, threads), strict=True)
    return Solution(D / peak[:, None, None], max(steps), all(settled))
