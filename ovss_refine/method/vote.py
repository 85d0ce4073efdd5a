"""The region vote: a class that lives inside another class's object is dropped.

The map of a class says which region the attention gives it. Where another class explains that
region better, by its likelihood, the seeds of the first lie on the other's object. There is no bar
on areas and confidences as such: small and unsure classes stay where they are right.

Source: ours.

Axes: B images, M classes, m classes kept, N patches.
"""

import math
import sys

import torch
from torch import Tensor

from ovss_refine.method.distribution import ROUNDING
from ovss_refine.tensors.tracing import State, repeat

# At most; three suffice on real images.
ROUNDS = 16
# As low as a confidence counts: a few patches certain of a class do not overrule all the others.
LEAST = 1e-3


def region_vote(
    P: Tensor, D: Tensor, taking_part: Tensor, ratio: float, test_every: int = 1
) -> Tensor:
    """Drop the classes that others outvote on their own region, until there are none.

    The region of a class are the patches at which its score is the largest of those that are
    left; a patch where several tie is in the region of each. A class is outvoted if its geometric
    mean confidence there is below `ratio` times the largest such mean there of the classes that are
    left. Where all are outvoted, they stay.

    Args:
        P: [B, m, N] confidence; at least `LEAST` is counted.
        D: [B, m, N] scores.
        taking_part: [B, m] bool, at least one in each image.
        ratio: in [0, 1]; 0 drops nobody.
        test_every: rounds between two checks of whether one dropped nobody.

    Returns:
        [B, m] bool, the classes that are left, at least one in each image.
    """
    logarithms = P.clamp_min(LEAST).log()
    slack = ROUNDING - math.log(max(ratio, sys.float_info.min))

    def drop(_: int, left: Tensor) -> State:
        scores = D.masked_fill(~left[:, :, None], -torch.inf)
        region = (scores == scores.amax(dim=1, keepdim=True)).to(P.dtype)
        # Sums in place of means: whoever is compared has the same region. It may be empty.
        votes = logarithms @ region.mT  # [B, m, m], of each class over each region
        best = votes.masked_fill(~left[:, :, None], -torch.inf).amax(dim=1)  # [B, m]
        own = votes.diagonal(dim1=1, dim2=2)
        stay = left & (own >= best - slack * region.sum(dim=2))
        return (stay | (left & ~stay.any(dim=1, keepdim=True)),)

    (left,), _, _ = repeat(drop, _unchanged, (taking_part,), range(1, ROUNDS + 1), test_every)
    return left


def _unchanged(before: State, after: State) -> Tensor:
    return (before[0] == after[0]).all()
