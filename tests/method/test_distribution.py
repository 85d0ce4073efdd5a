"""Steps 1 to 5: confidence, seeds, normalised maps."""

import pytest
import torch
from torch.testing import assert_close

from ovss_refine import RefineConfig
from ovss_refine.method.distribution import confidence, find_seeds, kept_index, normalise


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
    assert seeds_of(P).mask[0, :2].tolist() == [[True, True, False], [False, False, False]]
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
