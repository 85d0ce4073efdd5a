"""Bilinear upsampling: the definition, pixel by pixel, and torch's own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import reference
from ovss_refine.upsamplers.bilinear import bilinear_upsample


@pytest.mark.parametrize("grid", [(1, 1), (3, 4), (5, 2), (1, 6)])
@pytest.mark.parametrize("size", [(5, 6), (17, 31)])
def test_is_bilinear_with_half_pixel_centres(grid, size):
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(2, 3, *grid, generator=generator)
    found = bilinear_upsample(low, torch.rand(2, 3, *size, generator=generator))
    for b in range(2):
        expected = reference.bilinear_upsample(low[b].double().numpy(), size)
        np.testing.assert_allclose(found[b].numpy(), expected, atol=1e-5, rtol=0)
    assert_close(found, F.interpolate(low, size, mode="bilinear"), rtol=1e-5, atol=1e-5)


def test_averages_where_there_are_fewer_pixels_than_cells():
    low = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]])
    found = bilinear_upsample(low, torch.zeros(1, 3, 1, 2))
    assert found.flatten().tolist() == pytest.approx([5 / 7, 16 / 7])
    constant = bilinear_upsample(torch.full((1, 1, 9, 9), 0.3), torch.zeros(1, 3, 2, 3))
    assert_close(constant, torch.full((1, 1, 2, 3), 0.3))
