"""RankSEG and a dense CRF as decisions on logits: by the real packages, where installed."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from ovss_refine import Logits
from ovss_refine.baseline.crf import FLOOR, DenseCrf
from ovss_refine.baseline.probabilities import class_probabilities
from ovss_refine.baseline.rankseg import rankseg

NEEDS_RANKSEG = pytest.mark.skipif(
    find_spec("rankseg") is None, reason="rankseg is not installed ([rivals])"
)
NEEDS_CRF = pytest.mark.skipif(
    find_spec("pydensecrf") is None, reason="pydensecrf2 is not installed ([rivals])"
)
SIZE = (13, 17)


@pytest.fixture
def given(rng):
    """Logits of 5 prompts of 3 classes, and images, for two images."""
    values = torch.from_numpy(rng.normal(size=(2, 5, 3, 4)).astype(np.float32))
    images = torch.from_numpy(rng.random((2, 3, *SIZE)).astype(np.float32))
    return Logits(values, 2.0, [0, 0, 1, 2, 2]), images


def test_probabilities_are_of_upsampled_logits_and_sum_over_prompts(given):
    logits, _ = given
    P = class_probabilities(logits, SIZE)
    large = torch.nn.functional.interpolate(logits.values, SIZE, mode="bilinear")
    prompts = (2.0 * large).softmax(dim=1)
    wanted = torch.stack([prompts[:, :2].sum(1), prompts[:, 2], prompts[:, 3:].sum(1)], dim=1)
    torch.testing.assert_close(P, wanted)
    plain = class_probabilities(Logits(logits.values, 2.0), SIZE)
    torch.testing.assert_close(plain, prompts)


def expected_dice(P, labels):
    """Average the mean Dice of the classes over maps whose pixels are drawn independently."""
    M, N = P.shape
    draws = np.random.default_rng(1).random((400, 1, N))
    truth = (draws > P.cumsum(axis=0)).sum(axis=1)  # [400, N]
    dice = []
    for c in range(M):
        found, true = labels == c, truth == c
        both = np.maximum(found.sum() + true.sum(axis=1), 1)
        dice.append(2 * (found & true).sum(axis=1) / both)
    return np.mean(dice)


@NEEDS_RANKSEG
def test_rankseg_maximises_dice_and_not_the_chance_of_a_pixel(rng):
    gains = []
    for _ in range(20):
        values = torch.from_numpy(rng.normal(size=(1, 2, 8, 8)).astype(np.float32))
        values[:, 1] -= 1.0  # a class that seldom wins
        labels = rankseg(Logits(values), torch.zeros(1, 3, 8, 8))
        P = values[0].softmax(dim=0).flatten(1).double().numpy()
        best, found = P.argmax(axis=0), labels.flatten().numpy()
        gains.append(expected_dice(P, found) - expected_dice(P, best))
    assert np.mean(gains) > 0.005  # not each: the package approximates


@NEEDS_RANKSEG
def test_rankseg_is_the_package_s_default(given):
    import rankseg as package

    logits, images = given
    labels = rankseg(logits, images)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, package.RankSEG().predict(class_probabilities(logits, SIZE)))
    assert labels.shape == (2, *SIZE)
    for b in range(2):
        alone = rankseg(Logits(logits.values[b : b + 1], 2.0, [0, 0, 1, 2, 2]), images[b : b + 1])
        assert torch.equal(alone[0], labels[b])


@NEEDS_RANKSEG
def test_rankseg_of_sure_pixels_is_the_best_class_and_one_class_is_itself(given):
    logits, images = given
    sure = rankseg(Logits(logits.values, 2000.0), images)
    best = class_probabilities(Logits(logits.values, 2000.0), SIZE).argmax(dim=1)
    assert (sure != best).float().mean() < 0.02
    assert not rankseg(Logits(logits.values[:, :1]), images).any()


def mean_field(P, rgb, crf):
    """Do exact mean field over all pairs of pixels, kernels normalised symmetrically."""
    M, H, W = P.shape
    y, x = (place.ravel().astype(float) for place in np.mgrid[:H, :W])
    near = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    colour = rgb.reshape(-1, 3).astype(float)
    like = ((colour[:, None] - colour) ** 2).sum(axis=-1)
    message = np.zeros((H * W, H * W))
    for weight, exponent in (
        (crf.smooth_weight, near / (2 * crf.smooth_sigma**2)),
        (crf.colour_weight, near / (2 * crf.reach_sigma**2) + like / (2 * crf.colour_sigma**2)),
    ):
        kernel = np.exp(-exponent)
        scale = kernel.sum(axis=1) ** -0.5
        message += weight * scale[:, None] * kernel * scale
    unary = np.log(np.maximum(P.reshape(M, -1), FLOOR))
    Q = np.exp(unary) / np.exp(unary).sum(axis=0)
    for _ in range(crf.iterations):
        Q = unary + Q @ message
        Q = np.exp(Q - Q.max(axis=0))
        Q /= Q.sum(axis=0)
    return Q.reshape(M, H, W)


@NEEDS_CRF
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_crf_is_mean_field(seed):
    """Against all pairs of pixels; the package's lattice approximates the sums."""
    rng = np.random.default_rng(seed)
    logits = Logits(torch.from_numpy(rng.normal(size=(1, 3, 4, 5)).astype(np.float32)))
    image = torch.full((1, 3, 16, 20), 0.2)
    image[..., 9:] = 0.7
    crf = DenseCrf(iterations=3, reach_sigma=20.0, colour_sigma=40.0)
    found = crf(logits, image).scores[0].double().numpy()
    P = class_probabilities(logits, (16, 20))[0].double().numpy()
    rgb = (255 * image[0]).round().byte().permute(1, 2, 0).numpy()
    wanted = mean_field(P, rgb, crf)
    assert np.abs(found - wanted).mean() < 0.02
    assert np.mean(found.argmax(axis=0) != wanted.argmax(axis=0)) < 0.02
    assert np.mean(P.argmax(axis=0) != wanted.argmax(axis=0)) > 0.05  # it does something
    other = mean_field(P, np.zeros_like(rgb), crf)
    assert np.abs(found - other).mean() > 0.06  # and sees the image


@NEEDS_CRF
def test_the_crf_gives_marginals_of_every_image(given):
    logits, images = given
    found = DenseCrf()(logits, images)
    assert found.scores.shape == (2, 3, *SIZE)
    torch.testing.assert_close(found.scores.sum(dim=1), torch.ones(2, *SIZE), rtol=0, atol=1e-4)
    assert torch.equal(found.labels, found.scores.argmax(dim=1))
    assert found.labels.dtype == torch.int64
    eight_bits = (255 * images).round().byte()
    assert torch.equal(DenseCrf()(logits, eight_bits).labels, found.labels)
    for b in range(2):
        one = Logits(logits.values[b : b + 1], 2.0, [0, 0, 1, 2, 2])
        assert torch.equal(DenseCrf()(one, images[b : b + 1]).labels[0], found.labels[b])


@NEEDS_CRF
def test_a_sure_border_moves_to_the_image_s_edge():
    values = torch.zeros(1, 2, 4, 8)
    values[:, 0, :, :4] = values[:, 1, :, 4:] = 3.0
    image = torch.zeros(1, 3, 16, 32)
    image[..., 18:] = 1.0  # the logits' border is at 16
    labels = DenseCrf()(Logits(values), image).labels[0]
    assert (labels[:, :18] == 0).all()
    assert (labels[:, 18:] == 1).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"iterations": -1}, "`iterations` must be at least 0; got -1"),
        ({"colour_weight": -1.0}, "`colour_weight` must be a finite number >= 0; got -1.0"),
        ({"reach_sigma": 0.0}, r"`reach_sigma` must be in \[1e-06, 1e\+06\]; got 0.0"),
    ],
)
def test_options_of_the_crf_are_checked(options, match):
    with pytest.raises(ValueError, match=match):
        DenseCrf(**options)


@NEEDS_RANKSEG
def test_images_must_belong_to_the_logits(given):
    logits, images = given
    with pytest.raises(ValueError, match=r"`images` must have shape \[B=2, C=3, H, W\]; got \[1"):
        rankseg(logits, images[:1])


@pytest.mark.parametrize(("name", "call"), [("rankseg", rankseg), ("pydensecrf", DenseCrf())])
def test_without_the_package(monkeypatch, given, name, call):
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf"`{name}` is not installed; .*\[rivals\]'"):
        call(*given)
