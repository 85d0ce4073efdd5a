"""The last step of a refinement: every upsampler, in bands, batches, and with scores."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from ovss_refine import Attention, RefineConfig, Refiner, joint_bilateral_upsample
from ovss_refine.upsamplers import bands as module
from ovss_refine.upsamplers.bands import bands
from ovss_refine.upsamplers.bilinear import bilinear_upsample
from ovss_refine.upsamplers.guided import guided_upsample

FUNCTIONS = {
    "jbu": joint_bilateral_upsample,
    "bilinear": bilinear_upsample,
    "guided": guided_upsample,
}


def problem(B=2, K=6, grid=(5, 7), size=(33, 50)):
    """Return logits of which some images keep fewer classes than others, attention and images."""
    generator = torch.Generator().manual_seed(0)
    N = grid[0] * grid[1]
    logits = 4 * torch.randn(B, K, *grid, generator=generator)
    logits[0, 1:3] -= 40
    attention = torch.rand(B, N, N, generator=generator) + N * torch.eye(N) / 2
    attention = Attention(attention / attention.sum(dim=-1, keepdim=True), grid)
    return logits, attention, torch.rand(B, 3, *size, generator=generator)


@pytest.fixture(scope="module")
def given():
    return problem()


def upsampled(result, function, b, image):
    """Upsample what an image's kept classes got: their numbers, and [1, m, H, W]."""
    kept = result.kept[b].nonzero()[:, 0]
    return kept, function(result.discrepancy[b : b + 1, kept], image[None])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_refinement_ends_in_its_upsampler(given, name):
    result = Refiner(upsampler=name, keep_scores=True)(*given)
    counts = result.kept.sum(dim=1)
    assert counts[0] < counts[1]
    for b in range(2):
        kept, expected = upsampled(result, FUNCTIONS[name], b, given[2][b])
        assert_close(result.scores[b, kept], expected[0], rtol=1e-5, atol=1e-5)
        assert (result.labels[b] != kept[expected[0].argmax(dim=0)]).float().mean() < 0.005
    others = {other: Refiner(upsampler=other)(*given).labels for other in FUNCTIONS}
    assert all(torch.equal(result.labels, others[other]) == (other == name) for other in others)


@pytest.mark.parametrize("name", ["bilinear", "guided"])
@pytest.mark.parametrize("size", [1, 5000])
def test_bands_do_not_show(given, name, size, monkeypatch):
    whole = Refiner(upsampler=name, keep_scores=True)(*given)
    monkeypatch.setattr(module, "BAND", size)
    low, image = torch.rand(2, 3, 5, 7), given[2]
    rows = [band.rows for band in bands(low, image, RefineConfig(upsampler=name))]
    assert len(rows) == -(-33 // max(1, size // (2 * 3 * 50)))
    assert [0, *(one.stop for one in rows)] == [*(one.start for one in rows), 33]
    divided = list(bands(low, image, RefineConfig(upsampler=name), divisor=4))
    assert len(divided) >= len(rows)
    result = Refiner(upsampler=name, keep_scores=True)(*given)
    assert_close(result.scores, whole.scores, rtol=1e-5, atol=1e-5)
    assert (result.labels != whole.labels).float().mean() < 0.005


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_batch_equals_its_images(given, name):
    result = Refiner(upsampler=name, keep_scores=True)(*given)
    logits, attention, images = given
    for b in range(2):
        alone = Refiner(upsampler=name, keep_scores=True)(logits[b], attention[b], images[b])
        assert_close(alone.scores, result.scores[b], rtol=1e-4, atol=1e-5)
        assert (alone.labels != result.labels[b]).float().mean() < 0.005


def test_spreads_are_read_by_jbu_only(given):
    for name in FUNCTIONS:
        usual = Refiner(upsampler=name)(*given).labels
        other = Refiner(upsampler=name, sigma_range=1.0, radius=1)(*given).labels
        assert torch.equal(usual, other) == (name != "jbu")


class Seen:
    """A function of the user's that mixes the maps, and notes what it is given."""

    def __init__(self):
        self.calls = []

    def __call__(self, low, image):
        self.calls.append((low.shape, image.shape, low.dtype, torch.is_grad_enabled()))
        return bilinear_upsample(low - low.mean(dim=1, keepdim=True), image)


@pytest.mark.parametrize("keep_scores", [False, True])
def test_a_function_is_given_one_image_and_its_own_classes(given, keep_scores):
    seen = Seen()
    result = Refiner(upsampler=seen, keep_scores=keep_scores)(*given)
    m = result.kept.sum(dim=1).tolist()
    assert seen.calls == [((1, n, 5, 7), (1, 3, 33, 50), torch.float32, False) for n in m]
    for b in range(2):
        kept, expected = upsampled(result, seen, b, given[2][b])
        assert torch.equal(result.labels[b], kept[expected[0].argmax(dim=0)])
        if keep_scores:
            assert_close(result.scores[b, kept], expected[0])
            assert (result.scores[b, ~result.kept[b]] == -torch.inf).all()
    assert (result.scores is not None) == keep_scores


def test_a_function_of_the_library_with_other_options(given):
    result = Refiner(upsampler=partial(guided_upsample, radius=3, eps=0.1))(*given)
    named = Refiner(upsampler="ovss_refine.upsamplers.guided:guided_upsample")(*given)
    usual = Refiner(upsampler="guided")(*given)
    assert (named.labels != usual.labels).float().mean() < 0.005
    assert (result.labels != usual.labels).float().mean() > 0.005


@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        (lambda low, image: None, TypeError, r"`.*<lambda>` must be a torch.Tensor; got NoneType"),
        (lambda low, image: image.double(), TypeError, "must return float32; got torch.float64"),
        (lambda low, image: low, ValueError, r"must return shape \[1, .*, 33, 50\] on cpu; got \["),
        (
            lambda low, image: bilinear_upsample(low, image) / 0,
            ValueError,
            "`.*<lambda>` must be finite; got",
        ),
    ],
)
def test_what_a_function_returns_is_checked(given, function, error, match):
    with pytest.raises(error, match=match):
        Refiner(upsampler=function)(*given)
