"""The files of a segmentation: which there are, and what is in them."""

import dataclasses
import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from fake_segmenter import FakeSegmenter
from ovss_refine.images import draw
from ovss_refine.segment.outputs import mask_name, output_names, write_outputs
from ovss_refine.segment.request import Outputs

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
IMAGE[:2, ..., 0] = 255  # class 2 has a block, class 1 no pixel
IMAGE[..., 0][(IMAGE[..., 0] > 85) & (IMAGE[..., 0] < 171)] = 0
NAMES = ("sky", "dog/puppy, brown", "back ground")
ALL = Outputs(baseline=True, masks=True, maps=True)


def segmented(names=NAMES, image=IMAGE):
    return FakeSegmenter().segment(image, names, baseline=True)


def read(path):
    with Image.open(path) as image:
        return image.mode, np.asarray(image)


def listing(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        (Outputs(), ["labels.png", "overlay.png", "rle.json"]),
        (Outputs(rle=False), ["labels.png", "overlay.png"]),
        (Outputs(baseline=True, rle=False), [*["labels", "overlay", "baseline", "comparison"]]),
        (Outputs(maps=True, masks=True, rle=False), ["labels", "overlay", "maps", "masks/000_sky"]),
    ],
)
def test_only_requested_files_are_written(tmp_path, kinds, names):
    wanted = {f"x_{name if '.' in name else name + '.png'}" for name in names}
    if kinds.masks:
        wanted.add("x_masks/002_back_ground.png")
    paths = write_outputs(tmp_path, "x", segmented(), kinds)
    assert set(listing(tmp_path)) == wanted == {p.relative_to(tmp_path).as_posix() for p in paths}
    assert set(output_names("x", kinds, [(0, "sky"), (2, "back ground")])) == wanted


def test_contents_of_the_files(tmp_path):
    found = segmented()
    write_outputs(tmp_path, "sub/x", found, ALL)
    labels, baseline = found.labels.numpy(), found.baseline.numpy()
    assert set(np.unique(labels)) == {0, 2}
    palette = draw.palette(NAMES)
    for name, expected in (("labels", labels), ("baseline", baseline)):
        mode, values = read(tmp_path / f"sub/x_{name}.png")
        assert mode == "P"
        assert_array_equal(values, expected)
        with Image.open(tmp_path / f"sub/x_{name}.png") as image:
            assert_array_equal(np.asarray(image.convert("RGB")), palette[expected])
    assert_array_equal(read(tmp_path / "sub/x_overlay.png")[1], found.overlay())
    assert_array_equal(read(tmp_path / "sub/x_comparison.png")[1], np.asarray(found.plot()))
    assert_array_equal(read(tmp_path / "sub/x_maps.png")[1], found.maps())
    for index, name in ((0, "000_sky"), (2, "002_back_ground")):
        mode, mask = read(tmp_path / f"sub/x_masks/{name}.png")
        assert mode == "L"
        assert_array_equal(mask, (labels == index) * 255)


def test_run_lengths_are_results_of_coco(tmp_path):
    found = segmented()
    write_outputs(tmp_path, "sub/x", found, Outputs())
    entries = json.loads((tmp_path / "sub/x_rle.json").read_text())
    assert entries == [{"image_id": "sub/x", **entry} for entry in found.rle()]
    assert [(e["category"], e["category_id"]) for e in entries] == [("sky", 0), ("back ground", 2)]
    assert [e["area"] for e in entries] == np.bincount(found.labels.flatten())[[0, 2]].tolist()
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    for entry in entries:
        mask = (found.labels == entry["category_id"]).numpy()
        assert_array_equal(coco.decode(entry["segmentation"]), mask)


def test_past_256_classes_label_maps_have_16_bits(tmp_path):
    found = segmented([f"class {i}" for i in range(257)])
    found = dataclasses.replace(found, labels=found.labels + 1)
    write_outputs(tmp_path, "x", found, ALL)
    mode, values = read(tmp_path / "x_labels.png")
    assert mode == "I;16"
    assert_array_equal(values, found.labels.numpy())
    assert values.max() == 256


def test_masks_of_an_earlier_run_are_deleted(tmp_path):
    write_outputs(tmp_path, "x", segmented(), ALL)
    (tmp_path / "x_masks" / "notes.txt").touch()
    write_outputs(tmp_path, "x", segmented(image=np.zeros_like(IMAGE)), ALL)
    masks = [name for name in listing(tmp_path) if "masks" in name]
    assert masks == ["x_masks/000_sky.png", "x_masks/notes.txt"]


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("cat", "x_masks/007_cat.png"),
        ("../etc/passwd", "x_masks/007_etc_passwd.png"),
        ("traffic-light (red)", "x_masks/007_traffic-light_red.png"),
        ("猫", "x_masks/007_猫.png"),
        ("?", "x_masks/007_.png"),
        ("\U00020000" * 60, "x_masks/007_" + "\U00020000" * 45 + ".png"),  # four bytes each
        ("long " * 99, f"x_masks/007_{'long_' * 12}.png"),
    ],
)
def test_names_of_masks(label, name):
    assert mask_name("x", 7, label) == name


def test_a_failed_write_leaves_no_partial_file(tmp_path, monkeypatch):
    def half(file, image):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(draw, "write_png", half)
    with pytest.raises(KeyboardInterrupt):
        write_outputs(tmp_path, "x", segmented(), ALL)
    assert listing(tmp_path) == ["x_labels.png"]
