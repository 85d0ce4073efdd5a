"""The region vote."""

import numpy as np
import pytest
import torch

import reference
from ovss_refine import Attention, Refiner
from ovss_refine.method.distribution import confidence
from ovss_refine.method.vote import ROUNDS, log_confidence, region_vote
from strategies import block_attention


def vote(P, D, bar=0.05, taking_part=None):
    P, D = torch.tensor(P)[None], torch.tensor(D)[None]
    if taking_part is None:
        taking_part = torch.ones(1, P.shape[1], dtype=torch.bool)
    return region_vote(P.log(), D, taking_part, bar)[0].tolist()


# Class 1 has one sure patch, and its map spreads over the object of class 0.
INSIDE = {
    "P": [[0.9, 0.9, 0.8, 0.4, 0.1], [0.1, 0.1, 0.2, 0.6, 0.9]],
    "D": [[1.0, 0.5, 0.3, 0.3, 0.2], [0.1, 0.6, 0.7, 1.0, 0.1]],
}
# Class 1 has 1 patch of 4, which is log(0.6 / 0.3) / 4 = 0.173 nats per patch of evidence.
SMALL = {
    "P": [[0.9, 0.9, 0.9, 0.3], [0.05, 0.05, 0.05, 0.6], [0.05, 0.05, 0.05, 0.1]],
    "D": [[1.0, 1.0, 1.0, 0.1], [0.1, 0.1, 0.1, 0.2], [0.0] * 4],
}


def test_a_class_inside_another_s_object_goes():
    assert vote(**INSIDE) == [True, False]
    assert vote(**INSIDE, bar=0.0) == [True, False]  # it has less than no evidence


def test_the_bar_decides():
    assert vote(**SMALL, bar=0.173) == [True, True, False]
    assert vote(**SMALL, bar=0.174) == [True, False, False]


def test_a_class_without_a_region_goes_where_anything_is_asked():
    assert vote(**SMALL, bar=0.0) == [True] * 3
    assert vote(**SMALL, bar=1e-3) == [True, True, False]


def test_the_last_class_stays():
    assert vote([[0.1, 0.2]], [[0.0, 0.0]], bar=1.0) == [True]
    assert sum(vote([[0.9, 0.1], [0.1, 0.9]], [[0.0, 1.0], [1.0, 0.0]], bar=1.0)) == 1


def test_of_two_names_for_one_thing_the_better_stays():
    """Neither has evidence beside the other; at once, both would go, and the thing with them."""
    thing = [[0.02, 0.02, 0.5, 0.46, 0.5], [0.02, 0.02, 0.46, 0.5, 0.48]]
    P = [[0.96, 0.96, 0.04, 0.04, 0.02], *thing]
    D = [[1.0, 1.0, 0.1, 0.1, 0.1], [0.1, 0.1, 1.0, 0.2, 1.0], [0.1, 0.1, 0.2, 1.0, 0.2]]
    assert vote(P, D) == [True, True, False]
    assert vote([P[0], P[2], P[1]], [D[0], D[2], D[1]]) == [True, False, True]


def test_of_equal_ones_the_first_stays():
    P = [[0.9, 0.9, 0.2, 0.2], [0.05, 0.05, 0.4, 0.4], [0.05, 0.05, 0.4, 0.4]]
    D = [[1.0, 1.0, 0.1, 0.1], [0.1, 0.1, 1.0, 1.0], [0.1, 0.1, 1.0, 1.0]]
    assert vote(P, D) == [True, True, False]
    P[2][3] *= 1 + 1e-7  # as if it were by rounding
    assert vote(P, D) == [True, True, False]


def test_those_who_take_no_part_neither_vote_nor_win():
    P, D = [[0.4, 0.4], [0.6, 0.6]], [[0.1, 0.1], [1.0, 1.0]]
    assert vote(P, D, taking_part=torch.tensor([[True, False]])) == [True, False]


def test_the_regions_of_those_who_went_are_given_to_others():
    """Class 2 goes at first; with its region class 1 then has less than no evidence."""
    P = [[0.6, 0.5, 0.5, 0.5], [0.2, 0.55, 0.3, 0.3], [0.2, 0.05, 0.2, 0.2]]
    D = [[1.0, 0.1, 0.1, 0.1], [0.1, 0.9, 0.8, 0.8], [0.1, 0.1, 0.9, 0.9]]
    assert vote(P, [*D[:2], [0.0] * 4], bar=0.0) == [True, False, True]
    assert vote(P, D, bar=0.0) == [True, False, False]
    assert vote([P[0], [0.2, 0.55, 0.6, 0.6], P[2]], D, bar=0.0) == [True, True, False]


@pytest.mark.parametrize("bar", [0.0, 0.005, 0.05, 1.0])
def test_equals_the_reference_in_batches_and_permuted(bar, rng):
    logits = torch.from_numpy(rng.normal(size=(6, 9, 40))).float()
    logarithms = logits.log_softmax(dim=1)
    D = torch.from_numpy(rng.random((6, 9, 40))).float() + logits
    everybody = torch.ones(6, 9, dtype=torch.bool)
    left = region_vote(logarithms, D, everybody, bar)
    for b in range(6):
        expected = reference.region_vote(logarithms[b].double().numpy(), D[b].numpy(), bar)
        assert left[b].tolist() == expected.tolist()
    order = torch.from_numpy(rng.permutation(9))
    permuted = region_vote(logarithms[:, order], D[:, order], everybody, bar)
    assert torch.equal(permuted, left[:, order])
    assert torch.equal(region_vote(logarithms, D, everybody, bar, test_every=0), left)
    assert left.any(dim=1).all()
    assert left.all() == (bar == 0)


def test_a_tied_patch_is_in_the_region_of_all_that_tie(rng):
    logarithms = torch.from_numpy(rng.random((8, 5, 30))).float().log_softmax(dim=1)
    D = torch.from_numpy(rng.integers(0, 3, (8, 5, 30))).float()
    everybody = torch.ones(8, 5, dtype=torch.bool)
    left = region_vote(logarithms, D, everybody, 0.0)
    assert not left.all()
    order = torch.tensor([4, 2, 0, 3, 1])
    permuted = region_vote(logarithms[:, order], D[:, order], everybody, 0.0)
    assert torch.equal(permuted, left[:, order])
    for b in range(8):
        expected = reference.region_vote(logarithms[b].double().numpy(), D[b].numpy(), 0.0)
        assert left[b].tolist() == expected.tolist()


def test_it_ends():
    """One class a round, more of them than rounds."""
    M = ROUNDS + 4
    P = torch.eye(M) * 0.1 + torch.linspace(0.1, 0.9, M)[:, None]
    D = torch.eye(M) + torch.linspace(1, 0, M)[:, None] * 0.5
    left = vote(P.tolist(), D.tolist())
    assert 1 <= sum(left) < M


class TestTheScaleOfTheVote:
    def test_equals_the_reference(self, rng):
        logits = torch.from_numpy(3 * rng.normal(size=(3, 7, 50))).float()
        prompts = torch.tensor([0, 2, 1, 2, 2, 0, 3])
        for index in (None, prompts):
            P, assigned = confidence(logits, index, 1.0, (1, 0.5))
            assert assigned.any()
            found = log_confidence(logits, index, P, assigned)
            for b in range(3):
                given = (x[b].double().numpy() for x in (logits, P))
                expected = reference.log_confidence(next(given), index, next(given), assigned[b])
                np.testing.assert_allclose(found[b], expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("factor", [0.03, 3.0, 1e6])
    def test_a_factor_on_the_logits_changes_nothing(self, factor, rng):
        logits = torch.from_numpy(rng.normal(size=(2, 5, 40))).float()
        P, assigned = confidence(logits, None, 1.0, None)
        one = log_confidence(logits, None, P, assigned)
        other = log_confidence(factor * logits, None, P, assigned)
        torch.testing.assert_close(other, one, rtol=0, atol=1e-4)


class TestInTheRefinement:
    """Class 2 wins two patches in an unsure part of class 0's object; class 1 has its own."""

    attention = Attention(0.98 * block_attention([3, 7, 10, 5]) + 0.02 / 25, (5, 5))
    image = torch.full((3, 10, 10), 0.5)

    def logits(self):
        logits = torch.zeros(3, 25)
        logits[0, :20], logits[1, 20:], logits[2, 3:5] = 2.0, 1.0, 2.5
        logits[0, 5:9] = 1.0
        return logits.view(3, 5, 5)

    def test_it_drops_the_intruder_and_scores_the_others_again(self):
        voted = Refiner()(self.logits(), self.attention, self.image)
        alone = Refiner(vote=0)(self.logits(), self.attention, self.image)
        assert voted.kept.tolist() == [True, True, False]
        assert alone.kept.tolist() == [True, True, True]
        assert voted.labels.unique().tolist() == [0, 1]
        without = Refiner(vote=0)(self.logits()[:2].log_softmax(dim=0), self.attention, self.image)
        torch.testing.assert_close(voted.discrepancy[:2], without.discrepancy)
        assert torch.equal(voted.labels, without.labels)

    @pytest.mark.parametrize("mode", ["maximum_velocity", "optimal_path", "fusion"])
    def test_factors_equal_the_map(self, mode):
        blocks = torch.block_diag(*[torch.ones(1, n) for n in (3, 7, 10, 5)]).T  # [N, 4]
        factors = Attention.from_factors(6 * blocks[None], blocks[None], 1.0, (5, 5), form=False)
        held = Attention((6 * blocks @ blocks.T).softmax(dim=1), (5, 5))
        refiner = Refiner(mode)
        found, wanted = (refiner(self.logits(), x, self.image) for x in (factors, held))
        assert wanted.kept[0]
        assert not wanted.kept[2]
        assert torch.equal(found.kept, wanted.kept)
        assert torch.equal(found.seeds, wanted.seeds)
        torch.testing.assert_close(found.discrepancy, wanted.discrepancy, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.labels, wanted.labels)

    def test_an_image_without_intruders_is_as_without_a_vote_also_in_a_batch(self):
        plain = self.logits()
        plain[2] = -5
        batch = Attention.stack([self.attention] * 2)
        images = torch.stack([self.image] * 2)
        inputs = torch.stack([self.logits(), plain]), batch, images
        voted, without = Refiner()(*inputs)[1], Refiner(vote=0)(*inputs)[1]
        assert torch.equal(voted.discrepancy, without.discrepancy)
        assert torch.equal(voted.seeds, without.seeds)

    def test_patches_whose_other_classes_have_no_confidence_at_all(self):
        logits = self.logits()
        logits.flatten(1)[:2, 5:10] = 1.0  # a tie, so that these are no seeds
        refiner = Refiner(logit_scale=1e3, confidence_power=0)
        voted = refiner(logits, self.attention, self.image)
        assert voted.kept.tolist() == [True, True, False]
        assert voted.labels.unique().tolist() == [0, 1]
        assert voted.discrepancy[:2].isfinite().all()

    @pytest.mark.parametrize("rule", ["background", "certain"])
    @pytest.mark.parametrize("nms", ["classwise", "relative", "absolute"])
    def test_where_those_left_have_no_confidence_nobody_has_a_seed(self, rule, nms):
        """Class 1 is alone in one patch of an unsure part of class 2's object, and goes."""
        P = torch.full((3, 45), 0.05)
        P[2, 1:9], P[0, 1:9] = 0.55, 0.4
        P[2, 9:35] = P[0, 35:] = 0.9
        P[:, 0] = torch.tensor([0.33, 0.33, 0.34] if rule == "background" else [0.0, 1.0, 0.0])
        attention = Attention(0.99 * block_attention([9, 26, 10]) + 0.01 / 45, (5, 9))
        options = {"background": (1, 0.5)} if rule == "background" else {}
        refiner = Refiner(nms=nms, nms_threshold=0.65, **options)
        logits = P.log().clamp_min(-1e3).view(3, 5, 9)
        result = refiner(logits, attention, torch.full((3, 10, 18), 0.5))
        assert result.kept.tolist() == [True, False, True]
        assert not result.seeds[:, 0, 0].any()
        assert result.seeds[0].flatten().nonzero().flatten().tolist() == [*range(35, 45)]
        assert set(result.labels[:2, :2].flatten().tolist()) == {2}

    def test_the_paper_s_reading_has_none(self):
        refiner = Refiner.paper("fusion", tau=0.2)
        assert (refiner.config.nms, refiner.config.vote) == ("relative", 0)
        assert (refiner.config.mode, refiner.config.confidence_power) == ("fusion", 0)
        assert Refiner.paper(vote=0.5).config.vote == 0.5
