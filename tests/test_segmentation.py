"""What a segmentation tells, draws and saves."""

import io
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from images.test_rle import decode
from ovss_refine import Attention
from ovss_refine.images import draw
from ovss_refine.segmentation import Segmentation

NAMES = ("sky", "cat", "dog", "sea")
IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
LABELS = torch.zeros(6, 8, dtype=torch.int64)
LABELS[1:4, 2:7] = 2
LABELS[5, 0] = 3
WEIGHTS = torch.rand(12, 12, generator=torch.Generator().manual_seed(0))
WEIGHTS /= WEIGHTS.sum(-1, keepdim=True)
FOUND = Segmentation(
    image=IMAGE,
    names=NAMES,
    labels=LABELS,
    discrepancy=torch.tensor([1.0, -torch.inf, 0.5, 2.0])[:, None, None].expand(4, 3, 4) + 0,
    kept=torch.tensor([True, False, True, True]),
    attention=Attention(WEIGHTS, (3, 4)),
)


def test_areas_count_pixels_largest_first():
    assert FOUND.areas() == [("sky", 32, 32 / 48), ("dog", 15, 15 / 48), ("sea", 1, 1 / 48)]
    assert FOUND.names_present() == ("sky", "dog", "sea")


def test_mask_marks_a_class():
    assert torch.equal(FOUND.mask("dog"), LABELS == 2)
    assert not FOUND.mask("cat").any()
    with pytest.raises(ValueError, match=r"`name` must be one of \['sky', .*; got 'cow'"):
        FOUND.mask("cow")


def test_supervision_has_every_class_that_occurs():
    sv = pytest.importorskip("supervision", reason="the extra `bridges` is not installed")
    found = FOUND.to_supervision()
    assert isinstance(found, sv.Detections)
    assert found.class_id.tolist() == [0, 2, 3]
    assert found["class_name"].tolist() == ["sky", "dog", "sea"]
    for mask, index in zip(found.mask, (0, 2, 3), strict=True):
        assert_array_equal(mask, LABELS.numpy() == index)
    assert found.xyxy.tolist() == [[0, 0, 7, 5], [2, 1, 6, 3], [0, 5, 0, 5]]
    assert found.area.tolist() == [32, 15, 1]
    drawn = sv.MaskAnnotator().annotate(FOUND.image.copy(), found)
    assert drawn.shape == FOUND.image.shape


def test_supervision_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match=r"`supervision` .*'ovss-refine\[bridges\]'"):
        FOUND.to_supervision()


def test_rle_has_every_class_that_occurs():
    entries = FOUND.rle()
    assert [(e["category"], e["category_id"]) for e in entries] == [
        ("sky", 0),
        ("dog", 2),
        ("sea", 3),
    ]
    for entry in entries:
        mask = decode(entry["segmentation"])
        assert_array_equal(mask, LABELS.numpy() == entry["category_id"])
        assert entry["area"] == mask.sum()
    assert entries[1]["bbox"] == [2, 1, 5, 3]
    assert type(entries[0]["area"]) is int  # json takes no numpy


def test_drawings():
    colours = draw.palette(NAMES)
    assert_array_equal(FOUND.overlay()[:6, :8], draw.overlay(IMAGE, LABELS.numpy(), colours))
    sheet = draw.heat_maps(FOUND.discrepancy[[0, 2, 3]].numpy(), ["sky", "dog", "sea"], (6, 8))
    assert_array_equal(FOUND.maps(), sheet)


def test_plot_has_the_baseline_if_there_is_one():
    labels, baseline = LABELS.numpy(), np.ones((6, 8), int)
    alone = draw.labelled(IMAGE, {"refined": labels}, NAMES, "image")
    assert_array_equal(FOUND.plot(), alone)
    both = draw.labelled(IMAGE, {"baseline": baseline, "refined": labels}, NAMES, "image")
    found = replace(FOUND, baseline=torch.from_numpy(baseline))
    assert_array_equal(found.plot(), both)
    assert both.shape[1] > alone.shape[1]


@pytest.mark.parametrize("drawn", ["overlay", "plot", "maps", "attention_overlay"])
def test_every_drawing_is_an_array(drawn):
    page = getattr(FOUND, drawn)(*((1, 2) if drawn == "attention_overlay" else ()))
    assert isinstance(page, np.ndarray)
    assert (page.dtype, page.ndim, page.shape[-1]) == (np.uint8, 3, 3)


def test_notebooks_show_the_plot():
    with Image.open(io.BytesIO(FOUND._repr_png_())) as shown:
        assert shown.format == "PNG"
        assert_array_equal(np.asarray(shown), FOUND.plot())


def test_save_writes_the_overlay(tmp_path):
    FOUND.save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as saved:
        assert_array_equal(np.asarray(saved), FOUND.overlay())
    with pytest.raises(ValueError, match="must end in"):
        FOUND.save(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("x", "y", "patch"), [(0, 0, 0), (1, 1, 0), (2, 1, 1), (7, 0, 3), (1, 2, 4), (7, 5, 11)]
)
def test_attention_is_that_of_the_patch_under_the_pixel(x, y, patch):
    found = FOUND.attention_map(x, y)
    assert found.shape == (3, 4)
    assert torch.equal(found.flatten(), WEIGHTS[patch])
    page = draw.heat_overlay(IMAGE, found.sqrt().numpy(), x, y)
    assert_array_equal(FOUND.attention_overlay(x, y), page)


def test_attention_held_as_factors_is_the_same():
    q, k = torch.randn(2, 2, 12, 5, generator=torch.Generator().manual_seed(1))
    dense = (q @ k.mT * 0.4).softmax(-1).mean(0)
    found = replace(FOUND, attention=Attention.from_factors(q, k, 0.4, (3, 4)))
    torch.testing.assert_close(found.attention_map(3, 5).flatten(), dense[9])


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ((8, 0), ValueError, "`x` must be below 8; got 8"),
        ((0, 6), ValueError, "`y` must be below 6; got 6"),
        ((-1, 0), ValueError, "`x` must be at least 0; got -1"),
        ((0, 1.5), TypeError, "`y` must be a whole number; got 1.5"),
    ],
)
def test_a_pixel_outside_the_image(place, error, message):
    with pytest.raises(error, match=message):
        FOUND.attention_map(*place)


def test_attention_that_was_not_kept():
    with pytest.raises(ValueError, match="pass `keep_attention=True`"):
        replace(FOUND, attention=None).attention_overlay(0, 0)
