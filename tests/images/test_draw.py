"""Overlay, legend and sheets of maps. The command's files are in test_cli.py."""

import io

import numpy as np
import pytest
from PIL import Image

from ovss_refine.images import draw
from ovss_refine.images.draw import (
    CAPTION_PX,
    FONT_PX,
    LEGEND_PX,
    MARGIN_PX,
    heat_maps,
    heat_overlay,
    labelled,
    palette,
    side_by_side,
    with_legend,
)

NOISE = np.random.default_rng(0).integers(0, 256, (20, 300, 3), dtype=np.uint8)
MAP = np.array([[0, 0, 1, 1]] * 3)


def test_overlay_tints_inside_and_is_white_where_classes_meet():
    image, labels = np.full((6, 8, 3), 100, np.uint8), np.zeros((6, 8), np.int64)
    labels[3:, 4:] = 1
    out = draw.overlay(image, labels, np.array([[0, 0, 0], [200, 0, 60]], np.uint8), 0.55)
    assert (out.shape, out.dtype) == (image.shape, np.uint8)
    assert out[0, 0].tolist() == [45, 45, 45]  # 0.45 * 100
    assert out[5, 7].tolist() == [155, 45, 78]  # and 0.55 of (200, 0, 60)
    edge = np.zeros((6, 8), bool)
    edge[3, 4:] = edge[3:, 4] = True
    np.testing.assert_array_equal((out == 255).all(axis=-1), edge)
    assert (image == 100).all()


def test_areas_are_sorted_by_size_and_sum_to_one():
    found = draw.areas(np.array([[3, 3, 1, 0], [3, 3, 1, 0]]), ["sky", "cat", "dog", "sea"])
    assert found == [(3, "sea", 0.5), (0, "sky", 0.25), (1, "cat", 0.25)]
    many = np.random.default_rng(0).integers(0, 26, (37, 41))
    assert sum(share for *_, share in draw.areas(many, ["x"] * 26)) == pytest.approx(1)


def test_legend_adds_rows_below_and_leaves_the_image_alone():
    names, before = [f"name {index}" for index in range(21)], NOISE.copy()
    colours = palette(names)
    one = with_legend(NOISE, [7], names, colours)
    many = with_legend(NOISE, range(21), names, colours)
    assert len(NOISE) < len(one) < len(many)
    for page, shown in ((one, [7]), (many, list(range(21)))):
        np.testing.assert_array_equal(page[:20], before)
        boxes = [(page[20:] == colour).all(axis=-1).sum() > 100 for colour in colours]
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
def test_heat_maps_of_constants_are_one_colour_in_rows_of_four(value):
    sheet = heat_maps(np.full((5, 3, 4), value, np.float32), ["c"] * 5, (48, 64))
    assert sheet.shape == (2 * (180 + 2 * FONT_PX), 4 * 240 + 3 * MARGIN_PX, 3)
    assert len(np.unique(sheet[-180:, :240].reshape(-1, 3), axis=0)) == 1
    assert (sheet[-180:, 240:] == 255).all()


def test_the_legend_of_a_narrow_image_is_below_it_and_truncates_long_names():
    image, names = np.zeros((5, 1, 3), np.uint8), ["cat", "w" * 200]
    page = with_legend(image, [0, 1], names, palette(names))
    assert page.shape[1] == LEGEND_PX
    np.testing.assert_array_equal(page[:5, :1], image)
    assert (page[:5, 1:] == 255).all()
    assert (page[:, -MARGIN_PX:] == 255).all()  # nothing runs off the page
    assert page[5:, -40:].min() < 80  # but the long name comes near


def test_letters_grow_with_the_image():
    wide = np.zeros((4, 4000, 3), np.uint8)
    page = with_legend(wide, [0], ["cat"], palette(["cat"]))
    box = (page[4:] == palette(["cat"])[0]).all(axis=-1)
    assert box.any(axis=0).sum() == box.any(axis=1).sum() == 51


def test_captions_of_narrow_images_do_not_overlap():
    row = side_by_side([np.zeros((5, 2, 3), np.uint8)] * 2, ["a very long caption indeed"] * 2)
    assert row.shape[1] == 2 * CAPTION_PX + MARGIN_PX
    assert (row[:, CAPTION_PX : CAPTION_PX + MARGIN_PX] == 255).all()
    for x in (0, CAPTION_PX + MARGIN_PX):
        assert (row[-5:, x : x + 2] == 0).all()


def test_labelled_is_overlay_and_legend_of_what_occurs():
    image, names = np.full((3, 4, 3), 90, np.uint8), ["sky", "cat", "dog"]
    colours = palette(names)
    page = labelled(image, {"": MAP}, names)
    np.testing.assert_array_equal(page[:3, :4], draw.overlay(image, MAP, colours))
    shown = [(page[3:] == colour).all(axis=-1).any() for colour in colours]
    assert shown == [True, True, False]


def test_labelled_puts_panels_side_by_side_with_one_legend():
    image, names = np.full((3, 300, 3), 90, np.uint8), ["sky", "cat", "dog"]
    before, after = np.zeros((3, 300), int), np.full((3, 300), 2)
    page, colours = (
        labelled(image, {"a": before, "b": after}, names, original="image"),
        palette(names),
    )
    assert page.shape[1] == 3 * 300 + 2 * MARGIN_PX
    rows = page[2 * FONT_PX :][:3]
    for x, panel in enumerate((image, *(draw.overlay(image, m, colours) for m in (before, after)))):
        np.testing.assert_array_equal(rows[:, x * (300 + MARGIN_PX) :][:, :300], panel)
    shown = [(page[2 * FONT_PX + 3 :] == colour).all(axis=-1).any() for colour in colours]
    assert shown == [True, False, True]


def test_heat_overlay_shows_the_map_and_marks_the_pixel():
    image, heat = np.zeros((90, 120, 3), np.uint8), np.zeros((3, 4), np.float32)
    heat[2, 3] = 1
    page = heat_overlay(image, heat, 10, 20).astype(int)
    assert page.shape == image.shape
    assert page[80, 110].sum() > 300 > 10 > page[80, 10].sum()
    ring = (page == 255).all(axis=-1)
    rows, columns = np.nonzero(ring)
    assert (rows.mean(), columns.mean()) == (20, 10)
    assert not ring[20, 10]  # the pixel itself can be seen


@pytest.mark.parametrize(
    ("name", "kind"), [("x.PNG", "PNG"), ("x.jpeg", "JPEG"), ("x.webp", "WEBP")]
)
def test_save_writes_the_format_of_the_suffix(tmp_path, name, kind):
    draw.save(tmp_path / name, NOISE)
    with Image.open(tmp_path / name) as saved:
        assert (saved.format, saved.size) == (kind, (300, 20))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_save_refuses_other_suffixes_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"must end in one of \['.png', .*; got `.*x.gif`"):
        draw.save(tmp_path / "x.gif", NOISE)
    with pytest.raises(OSError, match="no"):
        draw.save(tmp_path / "no" / "x.png", NOISE)
    assert list(tmp_path.iterdir()) == []


def test_labels_that_do_not_fit_into_a_png_are_refused():
    labels, colours = np.array([[0, 65_535]]), np.zeros((70_000, 3), np.uint8)
    file = io.BytesIO()
    draw.write_labels(file, labels, colours)
    assert np.asarray(Image.open(file)).tolist() == [[0, 65_535]]
    with pytest.raises(ValueError, match="must have labels below 65536; got 70000"):
        draw.write_labels(io.BytesIO(), labels + 4465, colours)
