"""Resizing to another grid, against the literal reference."""

import numpy as np
import pytest
import torch

import reference
from ovss_refine.tensors.cells import resize


@pytest.mark.parametrize("size", [(7, 7), (3, 1), (1, 5), (16, 9)])
@pytest.mark.parametrize("grid", [(12, 1), (1, 12), (1, 1), (4, 6), (20, 20), (7, 7)])
def test_resizing_equals_the_reference(size, grid, rng):
    """Also to a single column, where torch's own antialiasing is wrong."""
    maps = rng.normal(size=(2, 3, *size))
    found = resize(torch.from_numpy(maps).float(), *grid).numpy()
    wanted = np.stack([reference.resample(one, grid) for one in maps])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
