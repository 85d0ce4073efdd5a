"""The Kullback-Leibler discrepancy."""

import torch
from torch.testing import assert_close

from ovss_refine.method.divergence import kl
from strategies import random_sources


def test_sums_to_the_divergence(rng):
    q = random_sources(rng, 2, 3, 30)
    uniform = torch.full_like(q, 1 / 30)
    expected = torch.nn.functional.kl_div(uniform.log(), q, reduction="none").sum(-1)
    assert_close(kl(q).sum(-1), expected)


def test_known_values():
    q = torch.tensor([[[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]]])
    log4 = float(torch.tensor(4.0).log())
    assert_close(kl(q), torch.tensor([[[log4, 0, 0, 0], [0.0, 0, 0, 0]]]))
