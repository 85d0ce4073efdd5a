"""The region vote: a class without which the image is explained as well is dropped.

The map of a class says which region the attention gives it. The evidence for the class is what the
log confidence of the image would lose if that region went to the best of the others. Where there is
none, the seeds of the class lie on another's object; where there is little, the class is noise, or
another name for something that is there already. There is no bar on areas and confidences as such:
a small class stays where it is sure, an unsure one where it is large.

Source: ours. The bar is a description length: naming a class must pay off.

Axes: B images, M classes, m classes kept, N patches.
"""

import torch
from torch import Tensor

from ovss_refine.method.distribution import ROUNDING, calibrate, sum_prompts
from ovss_refine.tensors.tracing import State, repeat

# At most; in each at least the class with the least evidence goes.
ROUNDS = 64
# How sure of their best prompt an image's patches vote on average: a nat is one for any segmenter.
VOTING_CONFIDENCE = 0.75
# As low as a confidence counts: a few patches certain of a class do not overrule all the others.
LEAST = 1e-4


def log_confidence(
    logits: Tensor, prompt_index: Tensor | None, P: Tensor, assigned: Tensor
) -> Tensor:
    """Log confidence at the scale of the vote, which no factor on the logits changes.

    Args:
        logits: [B, K, N] scores on the attention's grid.
        prompt_index: [K] class of each prompt, or None where every prompt is its own class.
        P: [B, M, N] confidence.
        assigned: [B, N] bool, the patches where that is by decree: it holds here too.

    Returns:
        [B, M, N] in nats, at least log `LEAST`.
    """
    logits = logits - logits.amax(dim=1, keepdim=True)
    own = (calibrate(logits, VOTING_CONFIDENCE) * logits).softmax(dim=1)
    own = torch.where(assigned[:, None], P, sum_prompts(own, prompt_index))
    return own.clamp_min(LEAST).log()


def region_vote(
    logarithms: Tensor, D: Tensor, taking_part: Tensor, bar: float, test_every: int = 1
) -> Tensor:
    """Drop the classes for which there is too little evidence on their region, the least first.

    The region of a class are the patches at which its score is the largest of those that are
    left; a patch where several tie is in the region of each. The evidence for a class is the sum
    over its region of its log confidence, minus that of its rival: the class that is left, other
    than itself, with the largest such sum there. A class goes if its evidence is less than `bar`
    for each of the N patches of the image, unless the same holds for its rival with less evidence
    yet; of equal ones, the later goes. The last class stays.

    Args:
        logarithms: [B, m, N] log confidence in nats, finite.
        D: [B, m, N] scores.
        taking_part: [B, m] bool, at least one in each image.
        bar: in nats per patch, >= 0.
        test_every: rounds between two checks of whether one dropped nobody.

    Returns:
        [B, m] bool, the classes that are left, at least one in each image.
    """
    m, N = D.shape[1:]
    index = torch.arange(m, device=D.device)
    itself = index[:, None] == index

    def drop(_: int, left: Tensor) -> State:
        scores = D.masked_fill(~left[:, :, None], -torch.inf)
        region = (scores == scores.amax(dim=1, keepdim=True)).to(D.dtype)
        votes = logarithms @ region.mT  # [B, m, m], of each class over each region
        others = votes.masked_fill(itself | ~left[:, :, None], -torch.inf)
        best, rival = others.max(dim=1)  # [B, m]
        evidence = votes.diagonal(dim1=1, dim2=2) - best  # infinite for the last class
        fails = left & (evidence < (bar - ROUNDING) * N)
        first = torch.where(rival < index, ROUNDING * N, -ROUNDING * N)
        stay = left & ~(fails & (evidence.gather(1, rival) + first > evidence))
        return (stay | (left & ~stay.any(dim=1, keepdim=True)),)

    (left,), _, _ = repeat(drop, _unchanged, (taking_part,), range(1, ROUNDS + 1), test_every)
    return left


def _unchanged(before: State, after: State) -> Tensor:
    return (before[0] == after[0]).all()
