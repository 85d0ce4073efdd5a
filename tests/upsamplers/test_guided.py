"""The fast guided filter: the reference, laws, closed forms, OpenCV's, errors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import reference
from conftest import RANGE_TOLERANCE
from ovss_refine.upsamplers.bilinear import bilinear_upsample
from ovss_refine.upsamplers.guided import guided_upsample


@st.composite
def problems(draw):
    """Low maps [B, K, gh, gw] and images [B, 3, H, W] of at least as many pixels, float32."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    B, K = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    gh, gw = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    H, W = gh + draw(st.integers(0, 13)), gw + draw(st.integers(0, 13))
    low = draw(st.sampled_from([1.0, 1e-3, 1e3])) * rng.normal(size=(B, K, gh, gw))
    image = rng.random((B, 3, H, W))
    if draw(st.booleans()):
        image = image.round()  # eight colours: windows of one colour, singular without the ridge
    return tuple(torch.from_numpy(x.astype(np.float32)) for x in (low, image))


options = st.fixed_dictionaries(
    {"radius": st.integers(0, 3), "eps": st.sampled_from([1e-4, 1e-3, 0.01, 1.0])}
)


@given(problems(), options)
def test_equals_the_reference(problem, options):
    low, image = problem
    result = guided_upsample(low, image, **options)
    for b in range(len(low)):
        expected = reference.guided_upsample(
            low[b].double().numpy(), image[b].double().numpy(), **options
        )
        scale = max(float(low[b].abs().max()), float(np.abs(expected).max()))
        np.testing.assert_allclose(
            result[b].numpy(), expected, atol=RANGE_TOLERANCE * scale, rtol=0
        )


@given(problems(), st.floats(-5, 5, width=32), options)
def test_constants_are_preserved(problem, value, options):
    low, image = problem
    result = guided_upsample(torch.full_like(low, value), image, **options)
    assert_close(result, torch.full_like(result, value), rtol=1e-5, atol=1e-6)


@given(problems(), options)
def test_is_linear_in_the_map(problem, options):
    low, image = problem
    total = guided_upsample(2 * low + low.flip(1), image, **options)
    parts = 2 * guided_upsample(low, image, **options) + guided_upsample(
        low.flip(1), image, **options
    )
    assert_close(total, parts, rtol=1e-4, atol=1e-4 * float(parts.abs().max()))


@given(problems(), options)
def test_an_image_and_a_map_alone_give_the_same(problem, options):
    low, image = problem
    whole = guided_upsample(low, image, **options)
    scale = 1e-5 * float(whole.abs().max())
    for b in range(len(low)):
        for k in range(low.shape[1]):
            alone = guided_upsample(low[b : b + 1, k : k + 1], image[b : b + 1], **options)
            assert_close(alone[0, 0], whole[b, k], rtol=1e-5, atol=scale)


def test_a_flat_image_gives_averages():
    """No colour to follow: the mean of means of windows, bilinear."""
    low = torch.rand(1, 2, 6, 5, generator=torch.Generator().manual_seed(0))

    def mean(x):  # of 3 x 3 windows, cut at the border
        ones = torch.ones_like(x)
        pooled = [torch.nn.functional.avg_pool2d(t, 3, 1, 1) for t in (x, ones)]
        return pooled[0] / pooled[1]

    flat = torch.full((1, 3, 24, 20), 0.4)
    expected = bilinear_upsample(mean(mean(low)), flat)
    assert_close(guided_upsample(low, flat, radius=1), expected, rtol=1e-5, atol=1e-6)


def test_a_map_that_is_linear_in_colour_becomes_that_colour():
    """The model is exact there: its pixels, edges and all, come out of a coarse map."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((1, 3, 24, 32)).astype(np.float32))
    weights = torch.tensor([0.2, -0.5, 0.7])
    colour = (image * weights[:, None, None]).sum(dim=1, keepdim=True) + 0.3
    low = torch.nn.functional.avg_pool2d(colour, 4)
    result = guided_upsample(low, image, radius=2, eps=1e-8)
    assert_close(result, colour, rtol=0, atol=1e-4)
    assert float((bilinear_upsample(low, image) - colour).abs().max()) > 0.1


def test_an_edge_of_the_image_is_kept():
    """Black left of an edge that lies off the grid, white right of it: the map follows it."""
    image = torch.zeros(1, 3, 32, 32)
    image[..., 18:] = 1  # cells are 4 pixels wide, so the edge is inside the fifth
    low = torch.zeros(1, 1, 8, 8)
    low[..., 4:] = torch.tensor([0.5, 1, 1, 1])
    result = guided_upsample(low, image)
    assert (result[..., :18] < 0.1).all()
    assert (result[..., 18:] > 0.9).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype):
    low = torch.rand(1, 2, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    image = torch.rand(1, 3, 16, 15, generator=torch.Generator().manual_seed(1)).to(dtype)
    for upsample in (guided_upsample, bilinear_upsample):
        result = upsample(low, image)
        assert result.dtype == dtype
        assert_close(result.float(), upsample(low.float(), image.float()), rtol=1e-2, atol=1e-2)


def test_uint8_image_is_scaled():
    low = torch.rand(1, 2, 4, 5)
    image = torch.randint(0, 256, (1, 3, 16, 15), dtype=torch.uint8)
    assert_close(guided_upsample(low, image), guided_upsample(low, image.float() / 255))


def test_opencv_agrees_inside():
    """A second opinion, on a grid as fine as the image, away from the border.

    For an `eps` of 1e-3 it takes all windows of this image for flat, whatever is in them.
    """
    cv2 = pytest.importorskip("cv2", reason="opencv-contrib-python is not installed")
    if not hasattr(cv2, "ximgproc"):
        pytest.skip("this OpenCV has no ximgproc; opencv-contrib-python does")
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.random((40, 50, 3)).astype(np.float32), (0, 0), 2)
    low = cv2.GaussianBlur(rng.random((40, 50)).astype(np.float32), (0, 0), 1)
    expected = cv2.ximgproc.guidedFilter(image, low, 2, 0.02)
    image = torch.from_numpy(image).permute(2, 0, 1)[None]
    found = guided_upsample(torch.from_numpy(low)[None, None], image, 2, 0.02)
    inside = (slice(4, -4), slice(4, -4))  # two windows reach this far
    np.testing.assert_allclose(found[0, 0].numpy()[inside], expected[inside], atol=1e-5, rtol=0)


LOW, IMAGE = torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize("upsample", [guided_upsample, bilinear_upsample])
@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"low": LOW[0]}, r"`low` must have shape \[B, K, gh, gw\]; got \[1, 4, 4\]"),
        ({"image": IMAGE[:1]}, r"`image` must have shape \[B=2, C=3, H, W\]; got \[1, 3"),
        ({"low": LOW + torch.inf}, "`low` must be finite; got 32 NaN or infinite of 32"),
        ({"image": IMAGE + 2}, r"`image` must be finite and in \[0, 1\]"),
    ],
)
def test_bad_input(upsample, changed, match):
    with pytest.raises(ValueError, match=match):
        upsample(**({"low": LOW, "image": IMAGE} | changed))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"radius": -1}, ValueError, r"`radius` must be in \[0, 32\]; got -1"),
        ({"radius": 1.5}, TypeError, "`radius` must be a whole number; got 1.5"),
        ({"eps": 0.0}, ValueError, r"`eps` must be in \[1e-08, 1e\+06\]; got 0.0"),
    ],
)
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        guided_upsample(LOW, IMAGE, **options)
