"""`Attention`: what it accepts, what it refuses, and its products."""

import pytest
import torch
from torch.testing import assert_close

from ovss_refine import Attention
from ovss_refine import attention as module
from ovss_refine.attention import affinity
from strategies import random_attention


@pytest.fixture
def weights(rng):
    return torch.from_numpy(random_attention(rng, 12, heads=3)).float()


def test_heads_are_averaged_once(weights):
    attention = Attention(weights[None].expand(2, -1, -1, -1), (3, 4))
    assert_close(attention.weights, weights.mean(0).expand(2, -1, -1))


def test_half_precision_heads_are_averaged_in_float32(weights):
    assert Attention(weights[None].half(), (3, 4)).weights.dtype == torch.float32


def test_a_negative_entry_cannot_hide_behind_another_head(weights):
    weights[0, 0, 0] -= 1
    weights[0, 0, 1] += 1
    with pytest.raises(ValueError, match="must be >= 0; got -"):
        Attention(weights[None], (3, 4))


def test_float32_weights_are_not_copied(weights):
    assert Attention(weights, (3, 4)).weights.data_ptr() == weights.data_ptr()


def test_grid_may_be_a_list_and_is_kept_as_a_tuple(weights):
    assert Attention(weights[0], [4, 3]).grid == (4, 3)


@pytest.mark.parametrize("grid", [(3, 5), (12,), (-3, -4), (3, 2, 2), (0, 12)])
def test_bad_grid(weights, grid):
    with pytest.raises(ValueError, match=r"`grid` must be \(gh, gw\) with gh \* gw = N=12"):
        Attention(weights, grid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_left_product_in_blocks(weights, dtype, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 3 * 12 * 5)  # blocks of five rows
    attention = Attention(weights.to(dtype), (3, 4))
    x = torch.rand(3, 2, 12)
    assert_close(attention.left(x), x @ weights.to(dtype).float())
    blocks = list(attention.blocks())
    assert len(blocks) == (1 if dtype == torch.float32 else 3)
    assert_close(torch.cat([block for _, block in blocks], dim=1), weights.to(dtype).float())


def test_affinity_is_the_softmax_of_cosines():
    features = torch.rand(2, 5, 3, 4) - 0.5
    attention = affinity(features, 0.1)
    f = features.flatten(2).mT.double()  # [B, N, C]
    cosine = torch.cosine_similarity(f[:, :, None], f[:, None], dim=-1)
    assert attention.grid == (3, 4)
    assert_close(attention.weights.double(), (cosine / 0.1).softmax(-1), rtol=1e-4, atol=1e-6)
    assert_close(affinity(features[0], 0.1).weights, attention.weights[0])


def test_affinity_refuses():
    with pytest.raises(ValueError, match="`temperature` must be a finite number > 0; got 0"):
        affinity(torch.rand(5, 3, 4), 0)
    with pytest.raises(ValueError, match=r"`features` must have shape \[B, C, gh, gw\]; got \[4\]"):
        affinity(torch.rand(4), 0.1)
    with pytest.raises(ValueError, match="`features` must be finite"):
        affinity(torch.full((5, 3, 4), torch.nan), 0.1)
