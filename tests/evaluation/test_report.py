"""Tables, files and drawings made from totals."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from ovss_refine.evaluation.batches import Sample
from ovss_refine.evaluation.dataset import DataSet, load_dataset
from ovss_refine.evaluation.report import (
    colours_of,
    draw_rows,
    results,
    summary,
    write_results,
)
from ovss_refine.evaluation.totals import Totals

SET = DataSet(
    name="mine",
    title="My set",
    names=("sky", "car", "sea"),
    images="i",
    masks="m",
    image_suffix=(".png",),
    mask_suffix=".png",
)


@pytest.fixture
def totals():
    counts = {
        "baseline": np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]),
        "refined": np.array([[4, 0, 0], [0, 4, 0], [0, 0, 0]]),
    }
    seconds = {"baseline": 0.5, "refined": 1.0, "sources": 2.0}
    return Totals(counts, seconds, {"x", "y"}, {"z": "no mask"})


def test_results(totals):
    found = results(SET, totals)
    assert (found["images"], found["skipped"]) == (2, {"z": "no mask"})
    row = found["rows"]["baseline"]
    assert row["iou"] == {"sky": 75.0, "car": 80.0, "sea": None}
    assert row["class_accuracy"] == {"sky": 75.0, "car": 100.0, "sea": None}
    assert (row["miou"], row["accuracy"], row["mean_accuracy"]) == (77.5, 87.5, 87.5)
    assert (row["seconds_per_image"], found["sources_seconds_per_image"]) == (0.25, 1.0)


def test_the_summary_is_an_aligned_table(totals):
    found = results(SET, totals)
    assert summary(found).splitlines() == [
        "| mine, 2 images, 1 skipped |   mIoU | accuracy | mean accuracy | s/image |",
        "| ------------------------- | -----: | -------: | ------------: | ------: |",
        "| baseline                  |  77.50 |    87.50 |         87.50 |   0.250 |",
        "| refined                   | 100.00 |   100.00 |        100.00 |   0.500 |",
        "",
        "Note: 1 class does not occur in the masks: sea.",
        "",
        "Note: 1 image was skipped. z: no mask",
    ]


def test_files(tmp_path, totals):
    found = write_results(tmp_path, SET, totals)
    assert json.loads((tmp_path / "results.json").read_text()) == found
    text = (tmp_path / "results.md").read_text()
    assert "# My set" in text
    assert text.partition("## IoU by class\n\n")[2].splitlines()[:5] == [
        "| class | baseline | refined |",
        "| ----- | -------: | ------: |",
        "| sky   |    75.00 |  100.00 |",
        "| car   |    80.00 |  100.00 |",
        "| sea   |        - |       - |",
    ]
    assert "- z: no mask" in text
    rows = list(csv.reader((tmp_path / "per_class.csv").read_text().splitlines()))
    assert rows == [
        ["class", "baseline", "refined"],
        ["sky", "75.0", "100.0"],
        ["car", "80.0", "100.0"],
        ["sea", "", ""],
    ]
    with np.load(tmp_path / "confusion.npz") as counts:
        assert counts["baseline"].tolist() == totals.counts["baseline"].tolist()


def test_without_results_the_metrics_are_none():
    empty = Totals({"a": np.zeros((3, 3), dtype=np.int64)})
    row = results(SET, empty)["rows"]["a"]
    assert (row["miou"], row["accuracy"], row["seconds_per_image"]) == (None, None, None)


def test_official_colours():
    voc = colours_of(load_dataset("voc21"))
    assert voc[:3].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert voc[20].tolist() == [0, 64, 128]
    assert colours_of(load_dataset("voc20")).tolist() == voc[1:].tolist()
    city = colours_of(load_dataset("cityscapes"))
    assert (city.shape, city[0].tolist()) == ((19, 3), [128, 64, 128])
    for name in ("ade20k", "coco-stuff", "coco-object", "context59"):
        dataset = load_dataset(name)
        assert colours_of(dataset).shape == (dataset.M, 3)


def test_a_drawing_shows_truth_and_rows(tmp_path):
    image = np.full((40, 60, 3), 100, np.uint8)
    truth = np.zeros((40, 60), np.uint8)
    truth[:, 30:] = 255
    labels = {"baseline": np.ones((40, 60), np.int64), "refined": np.zeros((40, 60), np.int64)}
    draw_rows(tmp_path, SET, Sample("a/b", image, truth, None, None), labels)
    with Image.open(tmp_path / "pictures/a_b.png") as drawn:
        page = np.asarray(drawn)
    assert page.shape[1] >= 3 * 60
    colours = colours_of(SET)
    for x, colour in ((15, colours[0]), (45, (255, 255, 255)), (119, colours[1])):
        wanted = np.round(0.45 * 100 + 0.55 * np.array(colour, float))
        np.testing.assert_allclose(page[48, x], wanted, atol=1)
