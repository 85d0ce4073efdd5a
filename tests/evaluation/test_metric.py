"""The metric against the published rule, written out with histograms, on random maps."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovss_refine.evaluation.metric import add_packed, confusion, pack, scores


def by_histograms(pairs, M, ignore=255):
    """Intersection, prediction and truth areas per class, then ratios: the rule step by step."""
    areas = np.zeros((3, M))
    for truth, labels in pairs:
        for c in range(M):
            known = truth != ignore
            areas[0, c] += np.sum((labels == c) & (truth == c) & known)
            areas[1, c] += np.sum((labels == c) & known)
            areas[2, c] += np.sum((truth == c) & known)
    both, predicted, true = areas
    union = predicted + true - both
    with np.errstate(invalid="ignore"):
        return both / union, both / true, both.sum() / true.sum()


def total(pairs, M):
    return sum(confusion(truth, labels, M, 255) for truth, labels in pairs)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 4))
def test_scores_equal_the_published_rule(seed, M, images):
    rng = np.random.default_rng(seed)
    known = rng.permutation(M)[: rng.integers(1, M + 1)]  # some classes are absent
    pairs = []
    for _ in range(images):
        truth = rng.choice(known, (6, 7)).astype(np.uint8)
        truth[rng.random((6, 7)) < 0.3] = 255
        truth[0, 0] = known[0]
        pairs.append((truth, rng.integers(0, M, (6, 7))))
    found = scores(total(pairs, M))
    iou, found_share, accuracy = by_histograms(pairs, M)
    np.testing.assert_allclose(found.iou, iou, rtol=1e-12)
    np.testing.assert_allclose(found.class_accuracy, found_share, rtol=1e-12)
    assert found.accuracy == pytest.approx(accuracy, rel=1e-12)
    assert found.miou == pytest.approx(np.nanmean(iou), rel=1e-12)
    assert found.mean_accuracy == pytest.approx(np.nanmean(found_share), rel=1e-12)


def test_a_small_case_by_hand():
    """Class 0: 1 of 3; class 1: 2 of 4; class 2: predicted but absent; class 3: never occurs."""
    truth = np.array([[0, 0, 1, 1], [1, 255, 255, 255]], dtype=np.uint8)
    labels = np.array([[0, 1, 1, 1], [2, 3, 3, 0]])
    counts = confusion(truth, labels, 4, 255)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    found = scores(counts)
    np.testing.assert_allclose(found.iou, [1 / 2, 2 / 4, 0, np.nan])
    assert found.miou == pytest.approx((1 / 2 + 2 / 4 + 0) / 3)
    assert found.accuracy == pytest.approx(3 / 5)
    np.testing.assert_allclose(found.class_accuracy, [1 / 2, 2 / 3, np.nan, np.nan])


def test_counts_are_summed_over_images_before_dividing():
    small = (np.zeros((1, 1), np.uint8), np.ones((1, 1), np.int64))
    large = (np.zeros((3, 3), np.uint8), np.zeros((3, 3), np.int64))
    assert scores(total([small, large], 2)).iou[0] == pytest.approx(9 / 10)


def test_counts_are_integers_that_do_not_round():
    counts = np.full((2, 2), 2**53 + 1, dtype=np.int64)
    assert (
        confusion(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.int64), 2, 255).dtype == np.int64
    )
    assert int((counts + np.eye(2, dtype=np.int64)).sum()) == 4 * (2**53 + 1) + 2


def test_without_labels_the_metrics_are_nan():
    found = scores(np.zeros((3, 3), dtype=np.int64))
    assert np.isnan([found.miou, found.accuracy, found.mean_accuracy]).all()
    assert np.isnan(found.iou).all()


def test_invalid_maps_are_refused():
    truth, labels = np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.int64)
    with pytest.raises(ValueError, match=r"`labels` must have shape \[2, 2\]; got \[4, 1\]"):
        confusion(truth, labels.reshape(4, 1), 3, 255)
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=r"`labels` must be in \[0, M=3\)"):
            confusion(truth, labels + wrong, 3, 255)
    with pytest.raises(ValueError, match=r"`truth` must be in \[0, M=3\) or 255; got 7"):
        confusion(truth + 7, labels, 3, 255)


def steps_of(count, H, W):
    """Count the lines of Python that an image of a size takes."""
    steps = []

    def trace(*_):
        steps.append(1)
        return trace

    truth, labels = np.ones((H, W), np.uint8), np.ones((H, W), np.int64)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        count(truth, labels, 21, 255)
    finally:
        sys.settrace(before)
    return len(steps)


def by_loops(truth, labels, *_):
    for _ in zip(truth.flat, labels.flat, strict=True):
        pass


def test_a_large_image_takes_no_more_steps_than_a_small_one():
    assert steps_of(confusion, 1, 2) == steps_of(confusion, 375, 500)
    assert steps_of(by_loops, 1, 2) < steps_of(by_loops, 10, 10)  # it can fail


def test_packed_counts_are_restored(rng):
    counts = rng.integers(0, 2, (5, 5)) * rng.integers(0, 2**40, (5, 5))
    total = np.ones((5, 5), dtype=np.int64)
    add_packed(total, pack(counts))
    np.testing.assert_array_equal(total, counts + 1)
