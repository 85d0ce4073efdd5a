"""Kullback-Leibler discrepancy, the ablation of rows II to IV in the paper's Table 2.

Axes: B images, M classes, N patches.
"""

import torch
from torch import Tensor


def kl(q: Tensor) -> Tensor:
    """Each patch's term of KL(q || uniform).

    Args:
        q: [B, M, N] distributions over patches.

    Returns:
        [B, M, N]: q log(q N), 0 where q = 0; the sum over patches is the divergence in nats.
    """
    return torch.xlogy(q, q * q.shape[-1])
