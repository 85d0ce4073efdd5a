"""The baselines' decision rule, against loops over pixels and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ovss_refine import Logits
from ovss_refine.baseline.decision import decide


def written_out(values, scale, index, threshold, area):
    """One image [K, h, w] in float64, pixel by pixel."""
    _, h, w = values.shape
    M = max(index) + 1
    scores = np.zeros((M, h, w))
    for y in range(h):
        for x in range(w):
            e = np.exp(scale * (values[:, y, x] - values[:, y, x].max()))
            for k, p in enumerate(e / e.sum()):
                scores[index[k], y, x] = max(scores[index[k], y, x], p)
    winner = scores.argmax(axis=0)
    if area is not None:
        foreground = (winner > 0).sum()
        for c in range(1, M):
            if (winner == c).sum() <= area * foreground:
                scores[c] = 0
    labels = scores.argmax(axis=0)
    labels[scores.max(axis=0) < threshold] = 0
    return labels, scores


@given(
    seed=st.integers(0, 2**31),
    index=st.lists(st.integers(0, 4), min_size=1, max_size=7),
    threshold=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    area=st.sampled_from([None, 0.0, 0.2, 0.5]),
)
def test_equals_loops(seed, index, threshold, area):
    values = np.random.default_rng(seed).normal(size=(2, len(index), 4, 5))
    got = decide(
        Logits(torch.from_numpy(values), 3.0, index),
        probability_threshold=threshold,
        area_threshold=area,
    )
    assert got.labels.dtype == torch.int64
    for b in range(2):
        labels, scores = written_out(values[b], 3.0, index, threshold, area)
        assert_close(got.scores[b].double(), torch.from_numpy(scores), atol=1e-6, rtol=1e-5)
        assert_close(got.labels[b], torch.from_numpy(labels))


def test_best_synonym_counts_not_their_sum():
    """Two synonyms of 0.3 each lose against one prompt of 0.4."""
    values = torch.tensor([0.3, 0.3, 0.4]).log().view(3, 1, 1)
    assert decide(Logits(values, 1.0, [0, 0, 1])).labels.item() == 1


def test_area_is_a_share_of_the_foreground():
    """Ten pixels: six background, three of class 1, one of class 2, a quarter of the foreground."""
    winners = torch.tensor([0] * 6 + [1] * 3 + [2])
    values = torch.nn.functional.one_hot(winners, 3).T.reshape(3, 2, 5).float()
    logits = Logits(values, 10.0)
    kept = decide(logits, area_threshold=0.249)
    assert kept.labels.flatten().tolist() == winners.tolist()
    dropped = decide(logits, area_threshold=0.25)
    assert dropped.labels.flatten().tolist()[:9] == winners.tolist()[:9]
    assert dropped.labels.flatten().tolist()[9] == 0
    assert float(dropped.scores[2].max()) == 0


def test_area_is_each_images_own():
    values = torch.randn(3, 4, 6, 7)
    together = decide(Logits(values, 2.0), area_threshold=0.3).labels
    alone = [decide(Logits(one, 2.0), area_threshold=0.3).labels for one in values]
    assert_close(together, torch.stack(alone))


def test_class_without_prompt():
    """A background without a prompt of its own scores nothing, and takes unsure pixels."""
    values = torch.tensor([[5.0, 0.1], [0.0, 0.0]]).view(2, 1, 2)
    decision = decide(Logits(values, 1.0, [1, 2]), probability_threshold=0.6)
    assert decision.labels.tolist() == [[1, 0]]
    assert decision.scores[0].tolist() == [[0, 0]]


def test_at_the_threshold_a_pixel_is_kept():
    logits = Logits(torch.zeros(2, 1, 1), 1.0, [1, 1])  # one half each, exactly
    assert decide(logits, probability_threshold=0.5).labels.item() == 1
    assert decide(logits, probability_threshold=0.5001).labels.item() == 0


def test_size_is_bilinear_and_through_is_another_path():
    values = torch.randn(2, 3, 4, 5)
    resize = lambda x, size: torch.nn.functional.interpolate(x, size, mode="bilinear")  # noqa: E731
    once = decide(Logits(values, 4.0), (11, 13))
    assert_close(once.scores, (4 * resize(values, (11, 13))).softmax(dim=1))
    twice = decide(Logits(values, 4.0), (11, 13), through=(32, 40))
    assert_close(twice.scores, (4 * resize(resize(values, (32, 40)), (11, 13))).softmax(dim=1))
    assert float((once.scores - twice.scores).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_works_in_float32(dtype):
    values = torch.randn(3, 4, 5).to(dtype)
    wanted = decide(Logits(values.float(), 40.0))
    assert_close(decide(Logits(values, 40.0)).scores, wanted.scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability_threshold": 1.1}, r"`probability_threshold` must be in \[0, 1\]; got 1.1"),
        ({"area_threshold": -0.1}, r"`area_threshold` must be in \[0, 1\]; got -0.1"),
        ({"size": (0, 3)}, r"`size\[0\]` must be at least 1; got 0"),
        ({"through": (2, 0)}, r"`through\[1\]` must be at least 1; got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        decide(Logits(torch.zeros(2, 3, 3)), **options)
