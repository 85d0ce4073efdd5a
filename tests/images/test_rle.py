"""COCO's run lengths, against a decoder written from its C code, and COCO's own where it is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovss_refine.images import rle


def decode(segmentation):
    """Undo `rleFrString` and `rleDecode` of maskApi.c, letter by letter."""
    text, counts, p = segmentation["counts"], [], 0
    while p < len(text):
        x, k, more = 0, 0, True
        while more:
            c = ord(text[p]) - 48
            x |= (c & 0x1F) << 5 * k
            more = bool(c & 0x20)
            p, k = p + 1, k + 1
            if not more and c & 0x10:
                x |= -1 << 5 * k
        if len(counts) > 2:
            x += counts[-2]
        counts.append(x)
    flat = [value for i, n in enumerate(counts) for value in [i % 2] * n]
    H, W = segmentation["size"]
    assert len(flat) == H * W
    return np.array(flat, bool).reshape(W, H).T


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_decoding_gives_the_mask(H, W, share, seed):
    mask = np.random.default_rng(seed).random((H, W)) < share
    found = rle.entry(mask)
    np.testing.assert_array_equal(decode(found["segmentation"]), mask)
    assert found["area"] == mask.sum()
    x, y, w, h = found["bbox"]
    inside = np.zeros_like(mask)
    inside[y : y + h, x : x + w] = True
    assert not (mask & ~inside).any()
    if mask.any():  # and none of its sides is empty
        cut = mask[y : y + h, x : x + w]
        assert cut[0].any() and cut[-1].any() and cut[:, 0].any() and cut[:, -1].any()  # noqa: PT018
    else:
        assert found["bbox"] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("runs", "text"),
    # By hand: one letter holds -16 to 15, two hold -512 to 511; 24 after 40 is -16.
    [
        ([0], "0"),
        ([15], "?"),
        ([16], "`0"),
        ([511], "o?"),
        ([512], "P`0"),
        ([0, 40, 3, 24], "0X13@"),
        ([0, 40, 3, 23], "0X13_O"),
    ],
)
def test_letters(runs, text):
    assert rle.compress(np.array(runs)) == text


def test_runs_of_a_very_large_image_fit():
    runs = np.array([2**31 - 1, 1, 5, 2**31 - 1, 0, 3])
    text, counts = rle.compress(runs), []
    for letter in decode_numbers(text):
        counts.append(letter + (counts[-2] if len(counts) > 2 else 0))
    assert counts == runs.tolist()


def decode_numbers(text):
    groups, number, place = [], 0, 0
    for letter in text:
        bits = ord(letter) - 48
        number |= (bits & 31) << place
        place += 5
        if not bits & 32:
            groups.append(number - (1 << place) * bool(bits & 16))
            number = place = 0
    return groups


def test_columns_come_first():
    mask = np.zeros((3, 2), bool)
    mask[0, 1] = True
    assert rle.run_lengths(mask).tolist() == [3, 1, 2]


def test_it_equals_the_output_of_coco():
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    for share in (0, 0.001, 0.5, 0.999, 1):
        mask = np.random.default_rng(0).random((123, 77)) < share
        theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        ours = rle.entry(mask)
        assert ours["segmentation"]["counts"] == theirs["counts"].decode()
        assert ours["area"] == coco.area(theirs)
        assert ours["bbox"] == coco.toBbox(theirs).tolist()
