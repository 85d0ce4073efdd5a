"""The modes: how every kept class is scored at every patch. One row each in `MODES`.

The refinement, the command line, the page, the rows of an evaluation and the benchmarks read this
table; nothing else knows what a mode is. Torch and the solvers are imported by the functions,
because the command line reads the table without them.

Source: J. Li et al., CVPR 2026, section 3 and Table 2; the two controls are not the paper's.

Axes: B images, M classes, m classes kept, N patches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from torch import Tensor

    from ovss_refine.attention import Attention
    from ovss_refine.config import RefineConfig
    from ovss_refine.method.markov import Chain

ModeName = Literal["kl", "optimal_path", "maximum_velocity", "fusion", "propagation", "anchored"]

# As low as a confidence weighs: a patch certain of its class may still be reached by another.
LEAST_CONFIDENCE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What an iterative solver found, and how far to trust it.

    Attributes:
        D: [B, M, N] the result.
        steps: most steps taken for any image and class; 0 in an exported graph, which cannot tell.
        converged: whether the stopping test was met within the upper bound on steps.
    """

    D: Tensor
    steps: int
    converged: bool


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What a mode scores.

    Attributes:
        P: [B, M, N] confidence of all classes.
        own: [B, m, N] confidence of the kept classes.
        q: [B, m, N] their distributions over seeds.
        attention: B maps over N patches.
        config: the options.
        chain: the attention's Markov chain; None for a mode that does not read `ipf_rounds`.
    """

    P: Tensor
    own: Tensor
    q: Tensor
    attention: Attention
    config: RefineConfig
    chain: Chain


@dataclass(frozen=True, slots=True)
class Mode:
    """A row of the table.

    Attributes:
        title: for people.
        summary: what a high score means, in one sentence.
        options: the fields of `RefineConfig` that the mode reads, apart from those that all read.
        scores: what makes its scores [B, m, N]; of several, the mean of their maps, each scaled to
            [0, 1] within an image.
    """

    title: str
    summary: str
    options: tuple[str, ...]
    scores: tuple[Callable[[Problem], Solution], ...]

    @property
    def has_seeds(self) -> bool:
        """Whether classes start from seeds; a mode without is a control."""
        return "nms" in self.options

    @property
    def needs_chain(self) -> bool:
        """Whether the attention is made doubly stochastic."""
        return "ipf_rounds" in self.options

    @property
    def reads_map(self) -> bool:
        """Whether the scores depend on the attention, even without propagation before them."""
        return self.needs_chain or "epsilon" in self.options

    @property
    def takes_many_steps(self) -> bool:
        """Whether the chain takes so many steps that forming it pays off."""
        return "max_steps" in self.options


def kl(problem: Problem) -> Solution:
    """Score by each patch's term of KL(q || uniform), q log(q N), 0 where q = 0.

    The sum over patches is the divergence in nats.
    """
    import torch

    return Solution(torch.xlogy(problem.q, problem.q * problem.q.shape[-1]), 0, True)


def optimal_path(problem: Problem) -> Solution:
    """Score by the cost that entropic transport carries into each patch."""
    from ovss_refine.method import transport

    config = problem.config
    q, attention = problem.q, problem.attention
    return transport.optimal_path(q, attention, config.epsilon, config.sinkhorn_iterations)


def maximum_velocity(problem: Problem) -> Solution:
    """Score by how soon a walk from the seeds reaches each patch, or by how long it changes it."""
    from ovss_refine.method import markov

    config = problem.config
    walk = markov.first_passage if config.criterion == "first_passage" else markov.increment
    solution = walk(problem.q, problem.chain, config.tau, config.max_steps)
    if not config.confidence_power:
        return solution
    weight = problem.own.clamp_min(LEAST_CONFIDENCE) ** config.confidence_power
    return replace(solution, D=solution.D * weight)


def propagation(problem: Problem) -> Solution:
    """Score by the confidence, averaged along the attention."""
    from ovss_refine.method import markov

    steps = problem.config.propagation_steps
    return Solution(markov.propagate(problem.own, problem.chain, steps), steps, True)


def anchored(problem: Problem) -> Solution:
    """Score as `propagation` does, with a restart where the two best classes are far apart."""
    import torch.nn.functional as F

    from ovss_refine.method import markov

    steps = problem.config.propagation_steps
    # [B, 2, N]; beside a single class, the second confidence is 0.
    best = F.pad(problem.P, (0, 0, 0, 1)).topk(2, dim=1).values
    w = best[:, :1] - best[:, 1:]
    return Solution(markov.anchored(problem.own, w, problem.chain, steps), steps, True)


_SEEDS = ("nms", "nms_threshold", "seed_quantile", "vote", "pre_propagation")
_PATH = ("epsilon", "sinkhorn_iterations")
_WALK = ("tau", "criterion", "max_steps", "ipf_rounds", "confidence_power")
_STEPS = ("propagation_steps", "ipf_rounds")

# The default first, the controls last: the order in which people are shown them.
MODES: dict[str, Mode] = {
    "maximum_velocity": Mode(
        "Maximum velocity",
        "A class is likely where walks along the attention that start from its seeds arrive early.",
        (*_SEEDS, *_WALK),
        (maximum_velocity,),
    ),
    "optimal_path": Mode(
        "Optimal path",
        "A class is likely where transporting its confidence to a uniform map along the attention "
        "is expensive.",
        (*_SEEDS, *_PATH),
        (optimal_path,),
    ),
    "fusion": Mode(
        "Fusion",
        "The mean of maximum velocity and optimal path.",
        (*_SEEDS, *_PATH, *_WALK),
        (optimal_path, maximum_velocity),
    ),
    "kl": Mode(
        "KL divergence",
        "How far the confidence of a class is from a uniform map, without attention.",
        _SEEDS,
        (kl,),
    ),
    "propagation": Mode(
        "Propagation (control)",
        "No distance at all: the confidence is averaged along the attention.",
        _STEPS,
        (propagation,),
    ),
    "anchored": Mode(
        "Anchored (control)",
        "As propagation, but patches that are sure of their class keep it.",
        (*_STEPS, "pre_propagation"),
        (anchored,),
    ),
}
CONTROLS = cast(
    tuple[ModeName, ...], tuple(name for name, mode in MODES.items() if not mode.has_seeds)
)
