"""Palette, overlay, legend and sheets of maps. The files are in test_cli.py."""

import numpy as np
import pytest

from ovss_refine import pictures
from ovss_refine.pictures import FONT_PX, MARGIN_PX, heat_maps, palette, with_legend

NOISE = np.random.default_rng(0).integers(0, 256, (20, 300, 3), dtype=np.uint8)


def test_palette_tells_21_classes_apart():
    gaps = np.linalg.norm(palette(21)[:, None].astype(float) - palette(21), axis=-1)
    assert gaps[~np.eye(21, dtype=bool)].min() > 25
    np.testing.assert_array_equal(palette(300)[:21], palette(21))


def test_overlay_tints_inside_and_is_white_where_classes_meet():
    image, labels = np.full((6, 8, 3), 100, np.uint8), np.zeros((6, 8), np.int64)
    labels[3:, 4:] = 1
    out = pictures.overlay(image, labels, np.array([[0, 0, 0], [200, 0, 60]], np.uint8), 0.55)
    assert (out.shape, out.dtype) == (image.shape, np.uint8)
    assert out[0, 0].tolist() == [45, 45, 45]  # 0.45 * 100
    assert out[5, 7].tolist() == [155, 45, 78]  # and 0.55 of (200, 0, 60)
    edge = np.zeros((6, 8), bool)
    edge[3, 4:] = edge[3:, 4] = True
    np.testing.assert_array_equal((out == 255).all(axis=-1), edge)
    assert (image == 100).all()


def test_areas_lists_what_occurs_largest_first_and_sums_to_one():
    found = pictures.areas(np.array([[3, 3, 1, 0], [3, 3, 1, 0]]), ["sky", "cat", "dog", "sea"])
    assert found == [(3, "sea", 0.5), (0, "sky", 0.25), (1, "cat", 0.25)]
    many = np.random.default_rng(0).integers(0, 26, (37, 41))
    assert sum(share for *_, share in pictures.areas(many, ["x"] * 26)) == pytest.approx(1)


def test_legend_adds_rows_below_and_leaves_the_picture_alone():
    names, before = [f"name {index}" for index in range(21)], NOISE.copy()
    one = with_legend(NOISE, [7], names, palette(21))
    many = with_legend(NOISE, range(21), names, palette(21))
    assert len(NOISE) < len(one) < len(many)
    for page, shown in ((one, [7]), (many, list(range(21)))):
        np.testing.assert_array_equal(page[:20], before)
        boxes = [(page[20:] == colour).all(axis=-1).sum() > 100 for colour in palette(21)]
        assert np.flatnonzero(boxes).tolist() == shown
    assert one[20:, MARGIN_PX + FONT_PX + 1 :].min() < 80  # the name itself


def test_heat_maps_share_one_scale_from_black_to_bright():
    maps = np.array([[[-3, -3], [-3, 5]], [[1, 1], [1, 1]]], np.float32)
    sheet = heat_maps(maps, ["one", "two"], (300, 150))
    panels = sheet[-240:].astype(int)
    assert panels.shape == (240, 2 * 120 + MARGIN_PX, 3)
    assert panels[0, 0].sum() <= 4 < 150 < panels[-1, 119].min()
    assert panels[0, -1].tolist() == panels[-1, -120].tolist() == [188, 55, 84]  # half-way
    assert max(sheet[:-240, :120].min(), sheet[:-240, -120:].min()) < 80  # the captions


@pytest.mark.parametrize("value", [0.0, -7.5, 1e30])
def test_heat_maps_of_constants_are_one_colour_and_stand_four_in_a_row(value):
    sheet = heat_maps(np.full((5, 3, 4), value, np.float32), ["c"] * 5, (48, 64))
    assert sheet.shape == (2 * (180 + 2 * FONT_PX), 4 * 240 + 3 * MARGIN_PX, 3)
    assert len(np.unique(sheet[-180:, :240].reshape(-1, 3), axis=0)) == 1
    assert (sheet[-180:, 240:] == 255).all()
