"""Thin products with blocks of an attention map, by oneDNN and without it."""

import pytest
import torch
from torch.testing import assert_close

from ovss_refine.tensors import blocks as module


@pytest.fixture(params=["oneDNN", "plain"])
def products(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(module, "_has_onednn", lambda device: False)
    elif not module._has_onednn(torch.device("cpu")):
        pytest.skip("this torch has no oneDNN")
    return module


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("M", [1, 2, 21])
@pytest.mark.parametrize("n", [1, 7, 50])
def test_products(products, B, M, n, rng):
    block = torch.from_numpy(rng.random((B, n, 50))).float()
    x = torch.from_numpy(rng.random((B, M, 50))).float()
    expected = torch.einsum("bmj,bij->bmi", x.double(), block.double())
    assert_close(products.matmul_t(x, block).double(), expected, rtol=1e-5, atol=0)
    y = torch.from_numpy(rng.random((B, M, 60))).float()[..., 5 : 5 + n]  # not contiguous
    start = torch.from_numpy(rng.random((B, M, 50))).float()
    out = start.clone()
    products.add_matmul(out, y, block)
    expected = start + torch.einsum("bmi,bij->bmj", y.double(), block.double())
    assert_close(out.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("N", [1, 31, 33, 70])
def test_transposed(N):
    weights = torch.rand(2, N, N)
    assert_close(module.Dense(weights).transposed(), weights.mT)
    assert module.Dense(weights).transposed().is_contiguous()


def test_a_transposed_copy_is_for_onednn_only(monkeypatch):
    monkeypatch.setattr(module, "_has_onednn", lambda device: False)
    assert module.Dense(torch.rand(2, 3, 3)).transposed() is None


@pytest.mark.parametrize("divisor", [1, 3, 1000])
def test_dense_blocks_cover_every_row_once(divisor, monkeypatch):
    monkeypatch.setattr(module, "CPU_BLOCK", 2 * 20 * 6)
    monkeypatch.setattr(module, "MIN_ROWS", 3)
    weights = torch.rand(2, 20, 20)
    blocks = list(module.Dense(weights).blocks(divisor))
    assert torch.equal(torch.cat([block for _, block in blocks], dim=1), weights)
    assert max(block.shape[1] for _, block in blocks) == max(1, 6 // divisor)
    assert [rows.start for rows, _ in blocks[1:]] == [rows.stop for rows, _ in blocks[:-1]]
