"""Numbers at the ends of their ranges: a right result, or the name of what was not finite."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovss_refine import Attention, Logits, RefineConfig, Refiner
from ovss_refine.attention import affinity
from ovss_refine.method import steps
from ovss_refine.method.modes import MODES, Solution

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 6, 6, generator=GENERATOR)
ATTENTION = (torch.rand(36, 36, generator=GENERATOR) * 4).softmax(-1)
IMAGE = torch.rand(3, 20, 20, generator=GENERATOR)
LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e6])
@pytest.mark.parametrize("size", [1e30, 1e38])
def test_large_logits_are_as_sure_as_the_largest(size, scale):
    wanted = Refiner(logit_scale=1e6)(LOGITS, ATTENTION, IMAGE)
    for logits in (LOGITS / 4 * size, (LOGITS / 4 * size).double(), -LOGITS.neg() / 4 * size):
        found = Refiner(logit_scale=scale)(logits, ATTENTION, IMAGE)
        assert torch.equal(found.labels, wanted.labels)
        assert torch.equal(found.seeds, wanted.seeds)


@pytest.mark.parametrize("fill", [-LARGEST, -1e30, -65504.0])
@pytest.mark.parametrize("grid", [(6, 6), (4, 4), (9, 9)])
def test_masked_classes_win_nowhere(fill, grid):
    N = grid[0] * grid[1]
    attention = Attention(torch.full((N, N), 1 / N), grid)
    logits = torch.cat([LOGITS, torch.full((1, 6, 6), fill)])
    result = Refiner(logit_scale=50.0)(logits, attention, IMAGE)
    assert not result.kept[3]
    wanted = Refiner(logit_scale=50.0)(LOGITS, attention, IMAGE)
    assert torch.equal(result.labels, wanted.labels)


def test_what_float32_cannot_hold_is_not_finite():
    message = r"must be finite; got 108 NaN or infinite of 108 values in float32, which ends at 3"
    large = torch.full((3, 6, 6), 1e300, dtype=torch.float64)
    for call in (
        lambda: Refiner()(large, ATTENTION, IMAGE),
        lambda: Logits(large),
        lambda: affinity(large, 0.1),
        lambda: Attention.from_factors(large, torch.rand(3, 6, 6), 1.0, (2, 3)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match=r"`image` must be finite and in \[0, 1\]"):
        Refiner()(LOGITS, ATTENTION, np.full((20, 20, 3), 1e300))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [
        {"sigma_spatial": 1e-6, "sigma_range": 1e-6, "logit_scale": 1e-6, "tau": 5e-324},
        {"sigma_spatial": 1e6, "sigma_range": 1e6, "logit_scale": 1e6, "tau": 1 - 2**-53},
        {"sigma_spatial": 1e-6, "sigma_range": 1e6, "radius": 32, "epsilon": 1e6},
        {"max_steps": 1, "ipf_rounds": 1, "sinkhorn_iterations": 1, "propagation_steps": 0},
        {"epsilon": 0.02, "ipf_rounds": 300, "propagation_steps": 1000, "pre_propagation": 1000},
    ],
)
@pytest.mark.filterwarnings("ignore:.logits. are all in")
def test_the_ends_of_every_range_give_a_result(mode, options):
    attention = torch.zeros(36, 36)
    attention[:, 0] = 1
    for attn in (ATTENTION, attention):
        result = Refiner(mode=mode, keep_scores=True, **options)(LOGITS, attn, IMAGE)
        assert result.kept.gather(0, result.labels.flatten()).all()
        assert result.scores[result.kept].isfinite().all()


class TestTheGuardBeforeTheLabels:
    """Whatever is not finite inside is named; it becomes no index."""

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_it_names_the_confidence(self, bad, monkeypatch):
        def broken(*given):
            P, assigned = confidence(*given)
            P[0, 1, 5] = bad
            return P, assigned

        confidence = steps.confidence
        monkeypatch.setattr(steps, "confidence", broken)
        for mode in MODES:
            with pytest.raises(
                ValueError, match=r"^`class confidence` must be finite; got 1 NaN or infinite of"
            ):
                Refiner(mode=mode)(LOGITS, ATTENTION, IMAGE)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_it_names_what_a_mode_made(self, bad, monkeypatch):
        def broken(problem):
            return Solution(torch.full_like(problem.q, bad), 0, True)

        mode = MODES["kl"]
        monkeypatch.setitem(MODES, "kl", type(mode)(mode.title, "", mode.options, (broken,)))
        with pytest.raises(ValueError, match=r"^`discrepancy of kl` must be finite; got 108 NaN"):
            Refiner(mode="kl")(LOGITS, ATTENTION, IMAGE)

    @pytest.mark.parametrize("form", [False, True])
    @pytest.mark.parametrize("mode", ["optimal_path", "maximum_velocity", "fusion", "propagation"])
    def test_factors_whose_products_overflow(self, mode, form):
        q, k = torch.full((2, 1, 36, 4), 1e38)
        attention = Attention.from_factors(q, -k, 1.0, (6, 6), form=form)
        with pytest.raises(ValueError, match=r"^`.*` must be finite; got .* NaN or infinite"):
            Refiner(mode=mode)(LOGITS, attention, IMAGE)

    def test_logits_at_the_end_of_float32(self):
        """Rounding carries their mean past it."""
        logits = torch.full((2, 16, 16), LARGEST)
        attention = Attention(torch.full((35, 35), 1 / 35), (5, 7))
        with pytest.raises(ValueError, match=r"^`class confidence` must be finite"):
            Refiner()(logits, attention, IMAGE)


@pytest.mark.parametrize("scale", [1e308, 1e200, 1e7, 1e-7, 5e-324])
def test_scales_are_bounded_wherever_they_are_given(scale):
    span = r"must be in \[1e-06, 1e\+06\]; got "
    for name, call in {
        "scale": lambda: Logits(LOGITS, scale),
        "logit_scale": lambda: RefineConfig(logit_scale=scale),
        "temperature": lambda: affinity(LOGITS, scale),
    }.items():
        with pytest.raises(ValueError, match=f"^`{name}` {span}{re.escape(repr(scale))}"):
            call()
    with pytest.raises(ValueError, match=f"^`scale` {span}"):
        Attention.from_factors(*torch.rand(2, 1, 6, 4), scale, (2, 3))
    with pytest.raises(ValueError, match=f"^`logit_scale` {span}"):  # the product of the two
        Refiner(logit_scale=1e4)(Logits(LOGITS, 1e3), ATTENTION, IMAGE)


class TestProbabilities:
    """Probabilities given as logits have a message of their own, and a fix that works."""

    P = (LOGITS * 4).softmax(dim=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("several", [False, True])
    def test_they_are_told_from_cosines(self, dtype, several):
        given = (self.P.to(dtype), ATTENTION, IMAGE)
        given = tuple(x[None] for x in given) if several else given
        with pytest.warns(UserWarning, match=r"look like probabilities.*; pass `logits") as said:
            Refiner()(*given)
        assert len(said) == 1
        assert said[0].filename == __file__
        fix = re.search("pass `(.*?)`, with `logit_scale=1`", str(said[0].message))[1]
        found = Refiner()(eval(fix, {"logits": given[0].float()}), *given[1:])
        wanted = Refiner()(LOGITS * 4, ATTENTION, IMAGE)
        assert (found.labels == wanted.labels).float().mean() > 0.95

    def test_labels_as_probabilities(self):
        """Zeros have no logarithm; the fix does without."""
        P = F.one_hot(LOGITS.argmax(0), 3).movedim(-1, 0).float()
        with pytest.warns(UserWarning, match="look like probabilities") as said:
            Refiner()(P, ATTENTION, IMAGE)
        fix = re.search("pass `(.*?)`", str(said[0].message))[1]
        Refiner()(eval(fix, {"logits": P}), ATTENTION, IMAGE)

    def test_prompts_of_one_class(self):
        with pytest.warns(UserWarning, match="look like probabilities"):
            Refiner()(self.P, ATTENTION, IMAGE, prompt_index=[0, 0, 1])

    def test_cosines_are_still_cosines(self):
        for cosines in (LOGITS.tanh() * 0.3, LOGITS.sigmoid() * 0.3):
            with pytest.warns(UserWarning, match="like cosine similarities .* set `logit_scale`"):
                Refiner()(cosines, ATTENTION, IMAGE)
            Refiner(logit_scale="auto")(cosines, ATTENTION, IMAGE)

    def test_calibrated_probabilities_are_still_no_logits(self):
        with pytest.warns(UserWarning, match="look like probabilities"):
            Refiner(logit_scale="auto")(self.P, ATTENTION, IMAGE)

    def test_with_a_scale_nothing_is_said(self):
        Refiner(logit_scale=20.0)(self.P, ATTENTION, IMAGE)


@pytest.mark.parametrize("noise", [1.0, 2.0, 4.0])
def test_noisy_logits_of_every_pixel_are_averaged(noise):
    """As good as their own means over the patches, which a few samples of each are not."""
    truth = torch.zeros(256, 256, dtype=torch.int64)
    truth[64:192, 64:192] = 1
    image = torch.where(truth == 1, 0.7, 0.3).expand(3, -1, -1)
    attn = (torch.eye(256) * 4).softmax(-1)
    scores = torch.where(truth == 1, 1.0, -1.0)
    scores = scores + noise * torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    full = torch.stack([-scores, scores])
    means = F.adaptive_avg_pool2d(full, (16, 16))
    found, wanted = (
        float((Refiner()(x, attn, image).labels == truth).float().mean()) for x in (full, means)
    )
    assert found >= wanted - 0.01
    few = F.interpolate(full[None], (16, 16), mode="bilinear")[0]
    if noise == 4:  # it can fail
        assert float((Refiner()(few, attn, image).labels == truth).float().mean()) < wanted - 0.01
