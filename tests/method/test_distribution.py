"""Steps 1 to 5: confidence, seeds, normalised maps."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ovss_refine import RefineConfig
from ovss_refine.method.distribution import (
    USUAL_CONFIDENCE,
    class_quantile,
    confidence,
    find_seeds,
    kept_index,
    normalise,
)


def seeds_of(P, *, suppress=True, **options):
    P = torch.tensor(P)[None]
    assigned = torch.zeros_like(P[:, 0], dtype=torch.bool)
    return find_seeds(P, assigned, RefineConfig(**options), suppress=suppress)


def test_synonyms_are_summed():
    logits = torch.zeros(1, 4, 2)
    P, assigned = confidence(logits, torch.tensor([0, 2, 2, 0]), 1.0, None)
    assert_close(P, torch.tensor([0.5, 0, 0.5])[None, :, None].expand(1, 3, 2))
    assert not assigned.any()


def test_scale_sharpens():
    logits = torch.tensor([0.2, 0.1])[None, :, None]
    P, _ = confidence(logits, None, 50.0, None)
    assert_close(P[0, 0, 0], torch.tensor(5.0).sigmoid())


def test_background_takes_the_unsure_patches():
    logits = torch.tensor([[4.0, 0.1], [0.0, 0.0], [0.0, 0.0]])[None]
    P, assigned = confidence(logits, None, 1.0, (2, 0.5))
    assert assigned.tolist() == [[False, True]]
    assert P[0, :, 1].tolist() == [0, 0, 1]
    assert P[0, 0, 0] > 0.9


def test_a_patch_at_the_threshold_is_sure_enough():
    P, assigned = confidence(torch.zeros(1, 2, 1), None, 1.0, (1, 0.5))
    assert not assigned.any()
    assert P.flatten().tolist() == [0.5, 0.5]


def test_classes_that_win_nowhere_are_rejected():
    seeds = seeds_of([[0.6, 0.7, 0.5], [0.2, 0.2, 0.1], [0.2, 0.1, 0.4]])
    assert seeds.kept.tolist() == [[True, False, False]]


def test_the_lowest_class_wins_a_tie():
    seeds = seeds_of([[0.1], [0.45], [0.45]])
    assert seeds.kept.tolist() == [[False, True, False]]


def test_relative_and_absolute_bars():
    P = [[0.8, 0.45, 0.3], [0.2, 0.35, 0.35], [0.0, 0.2, 0.35]]
    assert seeds_of(P, nms="relative").mask[0, 0].tolist() == [True, True, False]
    assert not seeds_of(P, nms="relative").mask[0, 1:].any()
    assert seeds_of(P, nms="absolute", nms_threshold=0.45).mask[0, 0].tolist() == [
        True,
        True,
        False,
    ]
    assert seeds_of(P, nms="absolute").mask[0, 0].tolist() == [True, False, False]


def test_an_image_without_a_confident_patch_keeps_all_winners():
    seeds = seeds_of([[0.4, 0.3], [0.3, 0.4]], nms="absolute", nms_threshold=0.5)
    assert seeds.mask[0].tolist() == [[True, False], [False, True]]


def test_area_gate():
    P = [[0.9, 0.8, 0.9, 0.1], [0.1, 0.2, 0.1, 0.9]]
    assert seeds_of(P, min_area=0.25).kept.tolist() == [[True, True]]
    assert seeds_of(P, min_area=0.26).kept.tolist() == [[True, False]]
    # No class is that large: the gate is not applied.
    assert seeds_of(P, min_area=0.8).kept.tolist() == [[True, True]]


def test_area_gate_with_the_confident_patch_in_a_small_class():
    P = [[0.4, 0.4, 0.4, 0.0], [0.3, 0.3, 0.3, 1.0], [0.3, 0.3, 0.3, 0.0]]
    # The bar is 0.5, which no patch of the only large class reaches: all of its patches stay.
    assert seeds_of(P, min_area=0.5).mask[0, 0].tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "options",
    [
        {"nms": "absolute", "nms_threshold": 0.8, "min_area": 0.0},
        {"nms": "relative", "nms_threshold": 0.0, "min_area": 0.6},
    ],
)
def test_images_of_a_batch_are_gated_one_by_one(options):
    # Neither gate leaves anything of the second image, whatever passes in the first.
    P = torch.tensor([[[0.9, 0.9], [0.1, 0.1]], [[0.6, 0.4], [0.4, 0.6]]])
    assigned = torch.zeros(2, 2, dtype=torch.bool)
    seeds = find_seeds(P, assigned, RefineConfig(**options), suppress=True)
    assert seeds.kept.tolist() == [[True, False], [True, True]]


def test_without_suppression_every_patch_is_a_seed_of_its_winner():
    seeds = seeds_of([[0.9, 0.2], [0.1, 0.3]], suppress=False)
    assert seeds.mask[0].tolist() == [[True, False], [False, True]]


def test_normalise_is_a_softmax_over_the_seeds():
    P = torch.tensor([[[0.9, 0.5, 0.1, 0.3]]])
    mask = torch.tensor([[[True, True, False, False]]])
    first = torch.tensor(0.4).sigmoid()
    assert_close(normalise(P, mask)[0, 0], torch.tensor([first, 1 - first, 0, 0]))


def test_kept_index_pads_with_the_first():
    kept = torch.tensor([[False, True, False, True], [False, False, True, False]])
    assert kept_index(kept).tolist() == [[1, 3], [2, 2]]


@pytest.mark.parametrize("q", [0.0, 0.1, 0.25, 0.5, 0.99, 1.0])
def test_quantiles_are_those_of_numpy(q, rng):
    x = torch.from_numpy(rng.random((3, 50))).float()
    x[1, :20] = 0.5  # ties
    group = torch.from_numpy(rng.integers(0, 6, (3, 50)))
    group[2] = 4
    group[0, group[0] == 2] = 1
    group[0, 7] = 2  # a class of one
    found = class_quantile(x, group, 7, q)
    for b in range(3):
        for c in group[b].unique():
            expected = np.quantile(x[b, group[b] == c].double().numpy(), q)
            assert_close(float(found[b, c]), float(expected), rtol=1e-6, atol=1e-7)


class TestClasswise:
    """Every class's own surest patches."""

    def test_the_bar_is_the_class_s_own(self):
        P = [[0.9, 0.8, 0.7, 0.6, 0.3, 0.3], [0.1, 0.2, 0.3, 0.4, 0.35, 0.4]]
        seeds = seeds_of(P, seed_quantile=0.5)
        assert seeds.mask[0, 0].tolist() == [True, True, False, False, False, False]
        assert seeds.mask[0, 1].tolist() == [False, False, False, False, False, True]

    def test_a_class_of_one_patch_keeps_it(self):
        seeds = seeds_of([[0.9, 0.9, 0.1], [0.05, 0.05, 0.11]], seed_quantile=1.0)
        assert seeds.mask[0, 1].tolist() == [False, False, True]

    def test_equal_confidences_are_all_seeds(self):
        P = torch.full((2, 40), 0.2).mul_(1 + 1e-7 * torch.rand(2, 40)).tolist()
        P[0] = [x + 0.3 for x in P[0]]
        assert seeds_of(P, seed_quantile=0.9).mask[0, 0].all()

    def test_patches_of_the_background_rule_set_no_bar_and_are_seeds(self):
        P = torch.tensor([[[1.0, 1, 0.5, 0.4, 0.2], [0, 0, 0.2, 0.3, 0.7]]])
        assigned = torch.tensor([[True, True, False, False, False]])
        seeds = find_seeds(P, assigned, RefineConfig(seed_quantile=1.0), suppress=True)
        assert seeds.mask[0, 0].tolist() == [True, True, True, False, False]

    def test_patches_without_any_confidence_set_no_bar_and_are_no_seeds(self):
        P = [[0.8, 0.4, 0.0, 0.0, 0.0], [0.2, 0.1, 0.0, 0.0, 0.7]]
        mask = seeds_of(P, seed_quantile=0.5).mask[0]
        assert mask.tolist() == [[True, False, False, False, False], [False] * 4 + [True]]
        assert not seeds_of(P, suppress=False).mask[0, :, 2:4].any()

    @pytest.mark.parametrize("q", [0.0, 0.25, 0.7, 1.0])
    def test_every_class_that_wins_keeps_its_share(self, q, rng):
        P = torch.from_numpy(rng.random((1, 9, 300))).float().softmax(dim=1)
        assigned = torch.zeros(1, 300, dtype=torch.bool)
        seeds = find_seeds(P, assigned, RefineConfig(seed_quantile=q), suppress=True)
        won = torch.nn.functional.one_hot(P.argmax(dim=1)[0], 9).sum(0)
        above = ((1 - q) * (won - 1)).floor().long() + 1
        assert torch.equal(seeds.mask[0].sum(1), above)

    def test_a_factor_on_the_confidences_changes_nothing(self, rng):
        P = torch.from_numpy(rng.random((5, 80))).float()
        for factor in (1e-3, 0.3, 7.0):
            assert torch.equal(seeds_of((factor * P).tolist()).mask, seeds_of(P.tolist()).mask)


class TestCalibration:
    """`logit_scale="auto"`."""

    def test_the_best_prompt_has_its_usual_confidence(self, rng):
        logits = torch.from_numpy(rng.normal(size=(3, 7, 50))).float()
        logits[1] *= 0.01
        P, _ = confidence(logits, None, "auto", None)
        assert_close(
            P.amax(dim=1).mean(dim=1), torch.full((3,), USUAL_CONFIDENCE), rtol=0, atol=1e-4
        )

    @pytest.mark.parametrize("factor", [1e-20, 0.3, 3.0, 1e20])
    def test_a_factor_on_the_logits_changes_nothing(self, factor, rng):
        logits = torch.from_numpy(rng.normal(size=(2, 5, 40))).float()
        one, _ = confidence(logits, None, "auto", None)
        other, _ = confidence(factor * logits, None, "auto", None)
        assert_close(one, other, rtol=1e-4, atol=1e-5)

    def test_prompts_are_calibrated_not_their_sums(self, rng):
        logits = torch.from_numpy(rng.normal(size=(1, 30, 40))).float()
        P, _ = confidence(logits, torch.tensor([0] * 29 + [1]), "auto", None)
        alone, _ = confidence(logits, None, "auto", None)
        assert_close(P[:, 1], alone[:, 29])

    def test_equal_logits_and_a_single_prompt_stay_finite(self):
        P, _ = confidence(torch.full((1, 4, 9), 7.0), None, "auto", None)
        assert_close(P, torch.full((1, 4, 9), 0.25))
        assert_close(confidence(torch.zeros(1, 1, 9), None, "auto", None)[0], torch.ones(1, 1, 9))
