"""Blocks of an attention map."""

import pytest
import torch

from ovss_refine.tensors import blocks as module


@pytest.mark.parametrize("divisor", [1, 3, 1000])
def test_dense_blocks_cover_every_row_once(divisor, monkeypatch):
    monkeypatch.setattr(module, "CPU_BLOCK", 2 * 20 * 6)
    monkeypatch.setattr(module, "MIN_ROWS", 3)
    weights = torch.rand(2, 20, 20)
    blocks = list(module.Dense(weights).blocks(divisor))
    assert torch.equal(torch.cat([block for _, block in blocks], dim=1), weights)
    assert max(block.shape[1] for _, block in blocks) == max(1, 6 // divisor)
    assert [rows.start for rows, _ in blocks[1:]] == [rows.stop for rows, _ in blocks[:-1]]
