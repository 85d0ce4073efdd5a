"""Joint bilateral upsampling: the reference, laws, closed forms, errors; by torch and compiled."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import reference
from conftest import RANGE_TOLERANCE
from ovss_refine import joint_bilateral_upsample
from ovss_refine.method import upsample as module
from ovss_refine.method import upsample_compiled

NO_NUMBA = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed ([fast])")


@pytest.fixture(scope="module", params=["torch", pytest.param("compiled", marks=NO_NUMBA)])
def way(request):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(module, "can_compile", lambda *_: False)
        yield


pytestmark = pytest.mark.usefixtures("way")


@st.composite
def problems(draw):
    """Low maps [B, K, gh, gw] and images [B, 3, H, W], float32."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    B, K = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    gh, gw, H, W = (draw(st.integers(1, top)) for top in (5, 6, 24, 20))
    low = rng.normal(size=(B, K, gh, gw)).astype(np.float32)
    image = rng.random((B, 3, H, W)).astype(np.float32)
    return torch.from_numpy(low), torch.from_numpy(image)


options = st.fixed_dictionaries(
    {
        "sigma_spatial": st.sampled_from([0.3, 1.0, 3.0]),
        "sigma_range": st.sampled_from([0.02, 0.1, 1.0]),
        "radius": st.integers(0, 3),
    }
)


@given(problems(), options)
def test_equals_the_reference(problem, options):
    low, image = problem
    result = joint_bilateral_upsample(low, image, **options)
    for b in range(len(low)):
        expected = reference.joint_bilateral_upsample(
            low[b].double().numpy(), image[b].double().numpy(), **options
        )
        span = max(float(low[b].max() - low[b].min()), 0.1 * float(low[b].abs().max()))
        np.testing.assert_allclose(result[b].numpy(), expected, atol=RANGE_TOLERANCE * span, rtol=0)


@given(problems(), st.sampled_from([1, 300, 2000, 20_000]))
def test_bands_do_not_show(problem, size):
    low, image = problem
    whole = joint_bilateral_upsample(low, image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CPU_BAND", size)
        patch.setattr(upsample_compiled, "BAND", 1)
        assert_close(joint_bilateral_upsample(low, image), whole)


@given(problems(), st.floats(-5, 5, width=32), options)
def test_constants_are_preserved(problem, value, options):
    low, image = problem
    result = joint_bilateral_upsample(torch.full_like(low, value), image, **options)
    assert_close(result, torch.full_like(result, value), rtol=1e-5, atol=1e-6)


@given(problems(), options)
def test_stays_within_the_range(problem, options):
    low, image = problem
    result = joint_bilateral_upsample(low, image, **options)
    slack = 1e-5 * float(low.abs().max())
    lowest, highest = low.amin(dim=(2, 3)), low.amax(dim=(2, 3))
    assert (result.amin(dim=(2, 3)) >= lowest - slack).all()
    assert (result.amax(dim=(2, 3)) <= highest + slack).all()


@given(problems())
def test_is_linear_in_the_map(problem):
    low, image = problem
    total = joint_bilateral_upsample(2 * low + low.flip(1), image)
    parts = 2 * joint_bilateral_upsample(low, image) + joint_bilateral_upsample(low.flip(1), image)
    assert_close(total, parts, rtol=1e-4, atol=1e-5)


def test_flat_guide_gives_a_plain_gaussian():
    low = torch.rand(1, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    flat = torch.full((1, 3, 24, 20), 0.4)

    def gaussian(size, g):  # [size, g + 4] weights over the grid padded by two
        p = (torch.arange(size) + 0.5) * g / size - 0.5
        cells = torch.arange(-2, g + 2)
        weights = torch.exp(-((p[:, None] - cells) ** 2) / 2)
        weights[(torch.floor(p + 0.5)[:, None] - cells).abs() > 2] = 0
        return weights / weights.sum(1, keepdim=True)

    padded = torch.nn.functional.pad(low, (2, 2, 2, 2), mode="replicate")
    expected = gaussian(24, 6) @ padded @ gaussian(20, 5).T
    assert_close(joint_bilateral_upsample(low, flat), expected, rtol=1e-5, atol=1e-6)


def test_an_edge_of_the_image_is_kept():
    """Black left of an edge that lies off the grid, white right of it: the map follows it."""
    image = torch.zeros(1, 3, 32, 32)
    image[..., 18:] = 1  # cells are 4 pixels wide, so the edge is inside the fifth
    low = torch.zeros(1, 1, 8, 8)
    low[..., 4:] = torch.tensor([0.5, 1, 1, 1])
    result = joint_bilateral_upsample(low, image)
    assert (result[..., :17] < 0.1).all()
    assert (result[..., 19:] > 0.9).all()


def test_spatial_weights_decide_where_no_colour_is_like():
    """A pixel unlike every cell still gets the mean of its neighbours, not NaN."""
    image = torch.zeros(1, 3, 64, 64)
    image[..., 32, 32] = 1  # a white speck that no cell mean resembles
    low = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    result = joint_bilateral_upsample(low, image, sigma_range=0.01)
    expected = joint_bilateral_upsample(low, torch.zeros_like(image))
    assert_close(result[..., 32, 32], expected[..., 32, 32])


def test_tiny_sigmas_give_the_nearest_cell():
    low = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    result = joint_bilateral_upsample(low, torch.rand(1, 3, 8, 8), sigma_spatial=0.01)
    assert_close(result, torch.nn.functional.interpolate(low, scale_factor=2, mode="nearest"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype):
    low = torch.rand(1, 2, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    image = torch.rand(1, 3, 16, 15, generator=torch.Generator().manual_seed(1))
    result = joint_bilateral_upsample(low, image.to(dtype))
    assert result.dtype == dtype
    expected = joint_bilateral_upsample(low.float(), image.to(dtype).float())
    assert_close(result.float(), expected, rtol=1e-2, atol=1e-2)


def test_uint8_image_is_scaled():
    low = torch.rand(1, 2, 4, 5)
    image = torch.randint(0, 256, (1, 3, 16, 15), dtype=torch.uint8)
    expected = joint_bilateral_upsample(low, image.float() / 255)
    assert_close(joint_bilateral_upsample(low, image), expected)


LOW, IMAGE = torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"low": LOW[0]}, r"`low` must have shape \[B, K, gh, gw\]; got \[1, 4, 4\]"),
        ({"image": IMAGE[:1]}, r"`image` must have shape \[B=2, C=3, H, W\]; got \[1, 3"),
        ({"image": IMAGE[:, :1]}, r"`image` must have shape \[B=2, C=3, H, W\]; got \[2, 1"),
        ({"low": LOW + torch.inf}, "`low` must be finite; got 32 NaN or infinite of 32"),
        ({"image": IMAGE + 2}, r"`image` must be finite and in \[0, 1\]"),
        ({"sigma_spatial": 0.0}, r"`sigma_spatial` must be in \[1e-06, 1e\+06\]; got 0.0"),
        ({"sigma_range": float("nan")}, r"`sigma_range` must be in \[1e-06, 1e\+06\]; got nan"),
        ({"radius": -1}, r"`radius` must be in \[0, 32\]; got -1"),
    ],
)
def test_bad_input(changed, match):
    with pytest.raises(ValueError, match=match):
        joint_bilateral_upsample(**({"low": LOW, "image": IMAGE} | changed))


def test_bad_kinds():
    with pytest.raises(TypeError, match=r"`low` must be a floating-point tensor; got torch.int64"):
        joint_bilateral_upsample(LOW.long(), IMAGE)
    with pytest.raises(TypeError, match=r"`radius` must be a whole number; got 1.5"):
        joint_bilateral_upsample(LOW, IMAGE, radius=1.5)
