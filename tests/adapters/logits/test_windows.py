"""Sliding windows: sizes, spans, averages."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ovss_refine_adapters.logits.windows import slide, spans


@given(
    size=st.integers(1, 400),
    window=st.integers(1, 250),
    overlap=st.floats(0, 1),
)
def test_spans_cover_everything_with_whole_windows(size, window, overlap):
    stride = max(1, round(window * overlap))
    cut = spans(size, window, stride)
    assert {stop - start for start, stop in cut} == {min(window, size)}
    assert cut[0][0] == 0
    assert cut[-1][1] == size
    assert all(after[0] <= before[1] for before, after in pairwise(cut))
    assert all(after[0] > before[0] for before, after in pairwise(cut))


def test_published_numbers_of_windows():
    count = lambda size, window, stride: [len(spans(n, window, stride)) for n in size]  # noqa: E731
    assert count((336, 448), 224, 112) == [2, 3]
    assert count((560, 1120), 224, 112) == [4, 9]
    assert count((336, 448), 336, 112) == [1, 2]
    assert count((448, 597), 448, 224) == [1, 2]
    assert spans(300, 224, 112) == [(0, 224), (76, 300)]


def test_average_by_hand():
    """One row of six pixels, windows of four with step two: the middle two are in both."""
    pixels = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    seen = []

    def score(part):
        seen.append(part[0, 0, 0].tolist())
        return torch.full((1, 2, 1, 1), float(len(seen)))

    out = slide(pixels, score, window=4, stride=2)
    assert seen == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert out[0, 1, 0].tolist() == [1, 1, 1.5, 1.5, 2, 2]


def test_padding_is_zero_symmetric_and_cropped():
    shapes = []

    def score(part):
        shapes.append(part)
        return part[:, :1]

    pixels = torch.rand(1, 3, 5, 9) + 1
    out = slide(pixels, score, window=9, stride=9, multiple=4)
    padded = shapes[0]
    assert padded.shape == (1, 3, 8, 12)
    assert_close(padded[..., 1:6, 1:10], pixels)
    assert float(padded.sum()) == pytest.approx(float(pixels.sum()), rel=1e-5)
    assert_close(out, pixels[:, :1])


def test_batch_equals_singles():
    pixels = torch.rand(3, 3, 40, 50)
    score = lambda part: torch.nn.functional.avg_pool2d(part, 8)  # noqa: E731
    together = slide(pixels, score, window=24, stride=16)
    alone = [slide(one[None], score, window=24, stride=16) for one in pixels]
    assert_close(together, torch.cat(alone))
