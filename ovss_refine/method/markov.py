"""Markov chains on the attention graph: scaling, propagation, first passage.

Sources: J. Li et al., CVPR 2026, section 3.5 (maximum velocity); M. Karmann and O. Urfalioglu,
"M2N2", CVPR 2025 (first passage, tau, 15 rounds of iterative proportional fitting). Anchored
propagation is ours.

Axes: B images, M classes, N patches. Distributions are rows: one step is x @ T.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ovss_refine.attention import Attention
from ovss_refine.method.modes import Solution
from ovss_refine.tensors import compiled, gpu_chain
from ovss_refine.tensors.tracing import State, exporting, repeat

# Bound on the sums of columns before they are scaled. Near the upper end of float32, with room for
# sums over patches, so that those which hardly anyone attends to may be 1e68 times smaller.
LARGE = 2.0**100


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """The doubly stochastic chain T = diag(r) attention diag(c).

    Attributes:
        attention: B maps of N tokens.
        r: [B, 1, N] factor of each row.
        c: [B, 1, N] factor of each column.
        T: None, or [B, N, N or more] the chain as one map; columns past N are 0, see
            `compiled.scaled`.
    """

    attention: Attention
    r: Tensor
    c: Tensor
    T: Tensor | None = None

    def step(self, x: Tensor) -> Tensor:
        """Return x T, [B, M, N] in and out."""
        if self.T is not None:
            return x @ self.T[..., : x.shape[-1]]
        return self.attention.left_matmul(x * self.r).mul_(self.c)

    def spread(self, f: Tensor) -> Tensor:
        """Return f T with every class's largest entry scaled to one, [B, M, N] in and out."""
        f = self.step(f)
        return f.div_(f.amax(dim=2, keepdim=True))


def doubly_stochastic(attention: Attention, rounds: int, *, many_steps: bool = False) -> Chain:
    """Scale columns, then rows, to sum to one, `rounds` times.

    The rows sum to one exactly, the columns as closely as the rounds allow. One pass over the
    attention does a round's rows together with the next round's columns.

    Args:
        attention: B maps of N tokens.
        rounds: number of rounds, >= 1.
        many_steps: whether so many steps will be taken that a copy, B * N * N floats, saves time.
            It changes results by rounding only. The compiled loops form the chain in any case.
    """
    held = attention.batched().weights
    if held is not None and gpu_chain.can_scale(held):
        # Half precision would be widened for every step.
        saves_time = many_steps or held.dtype != torch.float32
        form = saves_time and attention.block_divisor == 1
        return Chain(attention, *gpu_chain.scaled(held, rounds, LARGE, form))
    weights = held if attention.fits_twice else None
    if weights is not None and compiled.available(attention.device):
        return Chain(attention, *compiled.scaled(weights, rounds, LARGE))
    N = attention.shape[-1]
    column_sums = torch.zeros(attention.batch, 1, N, dtype=torch.float32, device=attention.device)
    for _, block in attention.blocks():
        column_sums += block.sum(dim=1, keepdim=True)
    for _ in range(rounds):
        c = _reciprocal(column_sums * _normaliser(column_sums))
        r = torch.empty_like(c)
        column_sums = torch.zeros_like(c)
        for rows, block in attention.blocks():
            r[..., rows] = _reciprocal(c @ block.mT)
            column_sums.baddbmm_(r[..., rows], block)
    # In this order: r and c alone may multiply to more than float32 holds, where a weight is 0.
    T = (weights * r.mT).mul_(c) if many_steps and weights is not None else None
    return Chain(attention, r, c, T)


def propagate(x: Tensor, chain: Chain, steps: int) -> Tensor:
    """Return x T^steps, [B, M, N] in and out."""
    for _ in range(steps):
        x = chain.step(x)
    return x


def anchored(x: Tensor, w: Tensor, chain: Chain, steps: int) -> Tensor:
    """Propagate with a restart at `x` whose probability is the patch's own.

    Args:
        x: [B, M, N] class confidence.
        w: [B, 1, N] restart weight in [0, 1]: 1 keeps a patch's own scores, 0 listens only.
        chain: B chains over N patches.
        steps: how many.

    Returns:
        [B, M, N] X(steps), X(0) = x, X(t+1) = w x + (1 - w) X(t) T.
    """
    moved = x
    for _ in range(steps):
        moved = torch.lerp(chain.step(moved), x, w)
    return moved


def first_passage(q: Tensor, chain: Chain, tau: float, max_steps: int) -> Solution:
    """How soon a walk that starts from `q` reaches each patch.

    Args:
        q: [B, M, N] distributions over patches.
        chain: B chains over N patches.
        tau: a patch is reached once its mass is over `tau` times the largest, in (0, 1).
        max_steps: upper bound on steps, and the time of a patch never reached.

    Returns:
        D = 1 / (1 + l), l = steps, interpolated between the two around the crossing. Converged
        if every patch was reached.
    """
    if chain.T is not None and gpu_chain.can_walk(q, chain.T):
        every = chain.attention.test_every
        times, taken, converged = gpu_chain.first_passage(q, chain.T, tau, max_steps, every)
        return Solution(1 / (1 + times), taken, converged)
    if chain.T is not None and compiled.available(chain.T.device):
        found = [
            compiled.first_passage(one, T, tau, max_steps)
            for one, T in zip(q, chain.T, strict=True)
        ]
        times = torch.stack([one for one, _, _ in found])
        return Solution(
            1 / (1 + times), max(n for _, n, _ in found), all(done for *_, done in found)
        )
    f = q / q.amax(dim=2, keepdim=True)
    pending = f <= tau

    def step(t: int, before: Tensor, pending: Tensor, time: Tensor) -> State:
        f = chain.spread(before)
        crossed = pending & (f > tau)
        time = torch.where(crossed, t - 1 + (tau - before) / (f - before), time)
        return f, pending & ~crossed, time

    start = (f, pending, pending.to(f.dtype) * max_steps)
    steps = range(1, max_steps + 1)
    every = chain.attention.test_every
    (_, _, time), taken, converged = repeat(step, _none_pending, start, steps, every)
    return Solution(1 / (1 + time), taken, converged)


def increment(q: Tensor, chain: Chain, tau: float, max_steps: int) -> Solution:
    """How long a walk that starts from `q` keeps changing each patch (the paper's Eq. 12).

    Args:
        q: [B, M, N] distributions over patches.
        chain: B chains over N patches.
        tau: a patch is at rest once it changes by `tau` times its class's largest first change
            or less, in (0, 1).
        max_steps: upper bound on steps, and the time of a patch never at rest.

    Returns:
        D = l, the first step at which the patch is at rest, >= 1. Converged if every patch is.
    """
    f = q / q.amax(dim=2, keepdim=True)
    before, f = f, chain.spread(f)
    bar = tau * (f - before).abs().amax(dim=2, keepdim=True)

    def at_rest(before: Tensor, f: Tensor) -> Tensor:
        # An entry's own rounding is no change: where all is at rest, it makes up the bar as well.
        return (f - before).abs() <= torch.maximum(bar, 16 * torch.finfo(f.dtype).eps * f)

    def step(t: int, before: Tensor, pending: Tensor, time: Tensor) -> State:
        f = chain.spread(before)
        rested = pending & at_rest(before, f)
        return f, pending & ~rested, torch.where(rested, t, time)

    pending = ~at_rest(before, f)
    start = (f, pending, torch.where(pending, float(max_steps), torch.ones_like(f)))
    steps = range(2, max_steps + 1)
    every = chain.attention.test_every
    (_, _, time), taken, converged = repeat(step, _none_pending, start, steps, every)
    return Solution(time, taken, converged)


def _none_pending(before: State, after: State) -> Tensor:
    return ~after[1].any()


def _normaliser(sums: Tensor) -> Tensor:
    """Return the power of two, one for each image, that brings the largest sum near to `LARGE`.

    Only the product of r and c matters. Without it, a map whose N patches all attend to s of them
    multiplies r by N / s in every round and divides c by as much: past float32 within 15 rounds.
    """
    top = sums.amax(dim=2, keepdim=True)
    if exporting():  # ONNX has no operator that takes an exponent off
        return LARGE / top
    return LARGE * (torch.frexp(top).mantissa / top)  # exact, and so are the products with it


def _reciprocal(sums: Tensor) -> Tensor:
    # The sum is 0 for a patch that no patch attends to. Any finite factor will do there, since it
    # multiplies zeros; an infinite one would make them NaN.
    return 1 / sums.clamp_min(torch.finfo(sums.dtype).tiny)
