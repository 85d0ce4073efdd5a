"""The method's steps: from logits on the attention's grid to labels of pixels.

Source: J. Li et al., CVPR 2026, section 3.

Axes: B images, M classes, m classes kept, N = gh * gw patches, (H, W) pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ovss_refine.attention import Attention
from ovss_refine.checks import check_all_finite
from ovss_refine.config import RefineConfig
from ovss_refine.method.distribution import Seeds, confidence, find_seeds, kept_index, normalise
from ovss_refine.method.markov import Chain, doubly_stochastic, propagate
from ovss_refine.method.modes import MODES, Problem, Solution
from ovss_refine.method.vote import log_confidence, region_vote
from ovss_refine.result import RefineResult, gather
from ovss_refine.tensors.tracing import exporting
from ovss_refine.upsamplers.bands import bands


class Confidence(NamedTuple):
    """What the logits say of the classes of B images.

    Attributes:
        P: [B, M, N] class confidence.
        assigned: [B, N] bool, the patches that the background rule decided.
        votes: [B, M, N] log confidence for the region vote, or None where there is none.
    """

    P: Tensor
    assigned: Tensor
    votes: Tensor | None

    def alone(self, b: int) -> "Confidence":
        """Return that of image `b`, as a batch of one."""
        P, assigned, votes = (None if x is None else x[b : b + 1] for x in self)
        return Confidence(cast(Tensor, P), cast(Tensor, assigned), votes)


def weigh_logits(logits: Tensor, prompt_index: Tensor | None, config: RefineConfig) -> Confidence:
    """Do the method's steps 1 and 2 on logits [B, K, N], with the class of each prompt [K]."""
    P, assigned = confidence(logits, prompt_index, config.logit_scale, config.background)
    if not (config.vote and MODES[config.mode].has_seeds):
        return Confidence(P, assigned, None)
    return Confidence(P, assigned, log_confidence(logits, prompt_index, P, assigned))


def refine_confidence(
    given: Confidence, attention: Attention, guide: Tensor, config: RefineConfig
) -> RefineResult:
    """Do the method's steps 3 to 8, on a CPU for one image after the other.

    There the maps of a batch would only push each other out of the cache, and images with few
    classes would wait for those with many.

    Args:
        given: what `weigh_logits` returns.
        attention: B maps over N patches.
        guide: [B, 3, H, W] float32 image in [0, 1].
        config: the options.
    """
    B = attention.batch
    if B == 1 or attention.device.type != "cpu" or exporting():
        return _refine(given, attention, guide, config)
    one_by_one = (
        _refine(given.alone(b), attention[b].batched(), guide[b : b + 1], config) for b in range(B)
    )
    return gather(one_by_one, B)


def _refine(
    given: Confidence, attention: Attention, guide: Tensor, config: RefineConfig
) -> RefineResult:
    mode = MODES[config.mode]
    pre_propagation = config.pre_propagation if "pre_propagation" in mode.options else 0
    if mode.reads_map or pre_propagation:
        attention = attention.formed()
    chain = None
    if mode.needs_chain or pre_propagation:
        chain = doubly_stochastic(attention, config.ipf_rounds, many_steps=mode.takes_many_steps)
        given = given._replace(P=propagate(given.P, chain, pre_propagation))
    found = score_classes(given, attention, chain, config)
    P = given.P
    labels, scores = _upsample(found, P.shape[1], attention, guide, config)
    full = torch.full_like(P, -torch.inf)
    full.scatter_(1, found.classes[:, :, None].expand_as(found.D), found.D)
    return RefineResult(
        labels=labels,
        discrepancy=full.reshape(*P.shape[:2], *attention.grid),
        kept=found.seeds.kept,
        seeds=found.seeds.mask.reshape(*P.shape[:2], *attention.grid),
        scores=scores,
        steps={name: solution.steps for name, solution in found.solutions.items()},
        converged=all(solution.converged for solution in found.solutions.values()),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What the classes of images got.

    Attributes:
        seeds: which classes are kept, and their seeds.
        classes: [B, m] indices of the kept classes, see `kept_index`.
        D: [B, m, N] their scores.
        solutions: what the mode's solvers found, by name.
    """

    seeds: Seeds
    classes: Tensor
    D: Tensor
    solutions: dict[str, Solution]


def score_classes(
    given: Confidence, attention: Attention, chain: Chain | None, config: RefineConfig
) -> Scored:
    """Find seeds and score the classes, and again without those that the region vote drops.

    Args:
        given: what `weigh_logits` returns, propagated or not.
        attention: B maps over N patches.
        chain: the attention's chain; None for a mode that needs none.
        config: the options.
    """
    P, assigned, votes = given
    found = _score(P, assigned, attention, chain, config)
    if votes is None:
        return found
    kept, classes = found.seeds.kept, found.classes
    first = torch.arange(classes.shape[1], device=P.device) < kept.sum(dim=1, keepdim=True)
    votes = _take(votes, classes)
    left = region_vote(votes, found.D, first, config.vote, attention.test_every)  # [B, m]
    left = torch.zeros_like(kept, dtype=torch.int64).scatter_add_(1, classes, left.long()) > 0
    dropped = (left != kept).any(dim=1)  # [B]
    if not (exporting() or bool(dropped.any())):
        return found
    # Classes that are out have a confidence that wins nowhere. Images that lost none are as before.
    alone = P * left[:, :, None]
    alone = alone / alone.sum(dim=1, keepdim=True).clamp_min(torch.finfo(P.dtype).tiny)
    alone = alone.masked_fill(~left[:, :, None], -1)
    P = torch.where(dropped[:, None, None], alone, P)
    return _score(P, assigned, attention, chain, config)


def _score(
    P: Tensor, assigned: Tensor, attention: Attention, chain: Chain | None, config: RefineConfig
) -> Scored:
    mode = MODES[config.mode]
    seeds = find_seeds(P, assigned, config, suppress=mode.has_seeds)
    classes = kept_index(seeds.kept)  # [B, m]
    own = _take(P, classes)
    q = normalise(own, _take(seeds.mask, classes))
    problem = Problem(P, own, q, attention, config, cast(Chain, chain))
    solutions = {score.__name__: score(problem) for score in mode.scores}
    D = _mean([solution.D for solution in solutions.values()])
    if not exporting():  # the one guard before labels: no index is made of a NaN
        scaling = {} if chain is None else {"doubly stochastic attention": chain.r}
        name = f"discrepancy of {config.mode}"
        check_all_finite({**scaling, "class confidence": P, name: D})
    return Scored(seeds, classes, D, solutions)


def _take(x: Tensor, classes: Tensor) -> Tensor:
    """Pick [B, m] `classes` from [B, M, N] `x`: [B, m, N]."""
    return x.gather(1, classes[:, :, None].expand(-1, -1, x.shape[2]))


def _mean(maps: Sequence[Tensor]) -> Tensor:
    """Return the one map [B, m, N], or the mean of several, each scaled to [0, 1]."""
    if len(maps) == 1:
        return maps[0]
    return sum(map(_min_max, maps[1:]), _min_max(maps[0])) / len(maps)


def _min_max(D: Tensor) -> Tensor:
    """Scale [B, m, N] to [0, 1] per image; a map that is constant up to rounding becomes 0."""
    low, high = D.amin(dim=(1, 2), keepdim=True), D.amax(dim=(1, 2), keepdim=True)
    span = high - low
    flat = span <= 16 * torch.finfo(D.dtype).eps * high.abs()
    return torch.where(flat, 0.0, (D - low) / span)


def _upsample(
    found: Scored, M: int, attention: Attention, guide: Tensor, config: RefineConfig
) -> tuple[Tensor, Tensor | None]:
    """Upsample what M classes got and label every pixel: [B, H, W], and [B, M, H, W] or None."""
    D, classes, counts = found.D, found.classes, found.seeds.kept.sum(dim=1)
    B, H, W = D.shape[0], *guide.shape[2:]
    labels = classes.new_empty(B, H, W)
    scores = D.new_full((B, M, H, W), -torch.inf) if config.keep_scores else None
    low = D.reshape(*D.shape[:2], *attention.grid)
    for band in bands(low, guide, config, attention.block_divisor, counts):
        winner = band.labels()  # [B, rows, W], indices into the kept classes
        labels[:, band.rows] = classes.gather(1, winner.flatten(1)).view_as(winner)
        if scores is not None:
            means = band.means()
            scores[:, :, band.rows].scatter_(1, classes[:, :, None, None].expand_as(means), means)
    return labels, scores
