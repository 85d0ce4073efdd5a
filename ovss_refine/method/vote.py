"""The region vote: a class that lives inside another class's object is dropped.

The map of a class says which region the attention gives it. Where another class is more probable
over that region, the seeds of the first lie on the other's object. Areas and confidences as such
have no bar, so that small and unsure classes stay where they are right.

Source: ours.

Axes: B images, M classes, m classes kept, N patches.
"""

import torch
from torch import Tensor

from ovss_refine.method.distribution import ROUNDING
from ovss_refine.tensors.tracing import State, repeat

# At most; three suffice on real images.
ROUNDS = 16


def region_vote(
    P: Tensor, D: Tensor, taking_part: Tensor, ratio: float, test_every: int = 1
) -> Tensor:
    """Drop the classes that others outvote on their own region, until there are none.

    The region of a class are the patches at which its score is the largest of those that are
    left. A class is outvoted if its mean confidence there is below `ratio` times the largest mean
    there of the classes that are left. Where all are outvoted, they stay.

    Args:
        P: [B, m, N] confidence.
        D: [B, m, N] scores.
        taking_part: [B, m] bool, at least one in each image.
        ratio: in [0, 1]; 0 drops nobody.
        test_every: rounds between two checks of whether one dropped nobody.

    Returns:
        [B, m] bool, the classes that are left, at least one in each image.
    """

    def drop(_: int, left: Tensor) -> State:
        winner = D.masked_fill(~left[:, :, None], -torch.inf).argmax(dim=1, keepdim=True)
        region = torch.zeros_like(P).scatter_(1, winner, 1)
        # Sums in place of means: whoever is compared has the same region. It may be empty.
        votes = P @ region.mT  # [B, m, m], of each class over each region
        best = votes.masked_fill(~left[:, :, None], 0).amax(dim=1)  # [B, m]
        stay = left & (votes.diagonal(dim1=1, dim2=2) >= (1 - ROUNDING) * ratio * best)
        return (stay | (left & ~stay.any(dim=1, keepdim=True)),)

    (left,), _, _ = repeat(drop, _unchanged, (taking_part,), range(1, ROUNDS + 1), test_every)
    return left


def _unchanged(before: State, after: State) -> Tensor:
    return (before[0] == after[0]).all()
