"""The compiled exponential, against NumPy's in float64."""

import numpy as np
import pytest

numba = pytest.importorskip("numba", reason="numba is not installed ([fast])")
exp2 = pytest.importorskip("ovss_refine.tensors.exp2").exp2


def test_it_is_accurate():
    @numba.njit
    def of_each(x):
        return np.array([exp2(y) for y in x])

    x = -np.linspace(0, 125.5, 200_001).astype(np.float32)
    exact = np.exp2(x.astype(np.float64))
    assert np.abs(of_each(x) / exact - 1).max() < 3e-7
    far = of_each(np.array([-126, -1e3, -1e30, -np.inf], np.float32))
    np.testing.assert_allclose(far, 2.0**-126, rtol=1e-6)
    assert np.isnan(of_each(np.array([np.nan], np.float32))).all()
