"""The check passes sound data sets and names the faults of others."""

import numpy as np
import pytest
from PIL import Image

from evaluation.trees import CLASSES, LAYOUTS, write_tree
from ovss_refine.cli import main
from ovss_refine.evaluation.check import check, expected, report
from ovss_refine.evaluation.dataset import load_dataset


def checked(root, name):
    dataset = load_dataset(name, names=root / "names.txt" if name == "folder" else None)
    return check(dataset, root, quiet=True)


@pytest.mark.parametrize("name", CLASSES)
def test_a_sound_data_set_has_no_problems(tmp_path, name):
    write_tree(tmp_path, name)
    found = checked(tmp_path, name)
    assert (found.images, found.good, found.problems) == (3, 3, [])
    assert sum(found.pixels.values()) == 3 * 24 * 32
    assert found.pixels[255] >= 3 * 64


def test_notes_are_not_problems(tmp_path):
    write_tree(tmp_path, "voc21", count=1)
    notes = checked(tmp_path, "voc21").notes
    assert "1 images; the official set has 1449." in notes
    assert any(note.endswith("more.") and "classes do not occur" in note for note in notes)
    write_tree(tmp_path, "folder", count=1)
    assert not any("official" in note for note in checked(tmp_path, "folder").notes)


def test_every_kind_of_problem_is_named(tmp_path):
    ids = sorted(write_tree(tmp_path, "coco-object", count=6))
    image, mask = ([tmp_path / LAYOUTS["coco-object"][i].format(id) for id in ids] for i in (0, 1))
    image[0].unlink()
    mask[1].unlink()
    Image.new("L", (3, 3)).save(mask[2])
    Image.fromarray(np.full((24, 32), 81, np.uint8)).save(mask[3])
    mask[4].write_bytes(mask[4].read_bytes()[:50])
    found = checked(tmp_path, "coco-object")
    assert (found.images, found.good) == (6, 1)
    for path, text in (
        (image[0], "is missing, though it has a mask"),
        (mask[1], "it does not exist"),
        (mask[2], "the size of its image, 32 x 24; got 3 x 3"),
        (mask[3], "values from 0 to 80, or 255; got [81]"),
        (mask[4], "a readable label map"),
    ):
        assert [p for p in found.problems if str(path) in p and text in p], text
    assert len(found.problems) == 5


@pytest.mark.parametrize(
    ("name", "suffix", "other"),
    [
        ("coco-object", "_instanceTrainIds.png", "_labelTrainIds.png"),
        ("coco-object", "_instanceTrainIds.png", ".png"),
        ("coco-stuff", "_labelTrainIds.png", "_instanceTrainIds.png"),
        ("cityscapes", "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"),
    ],
)
def test_masks_with_another_suffix_are_recognised(tmp_path, name, suffix, other):
    write_tree(tmp_path, name)
    for path in sorted(tmp_path.rglob(f"*{suffix}")):
        path.rename(path.with_name(path.name.replace(suffix, other)))
    found = checked(tmp_path, name)
    assert found.good == 0
    assert f"masks that end in {suffix}; got 3 that end in {other}" in found.problems[0]


def test_no_masks_at_all(tmp_path):
    for path in [LAYOUTS["cityscapes"][1].format(i) for i in write_tree(tmp_path, "cityscapes")]:
        (tmp_path / path).unlink()
    assert checked(tmp_path, "cityscapes").problems[0].endswith("_labelTrainIds.png; got none.")


def test_masks_that_have_no_image_and_are_in_no_split(tmp_path):
    write_tree(tmp_path, "voc21")
    lonely = tmp_path / LAYOUTS["voc21"][1].format("lonely")
    Image.new("L", (3, 3)).save(lonely)
    (problem,) = checked(tmp_path, "voc21").problems
    assert problem == "1 masks have no image and are in no split: lonely."


def test_the_command(tmp_path, capsys):
    ids = write_tree(tmp_path, "ade20k")
    assert main(["dataset", "check", "ade20k", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "masks   annotations/validation/*.png" in shown
    assert "values  1 to 150, the classes; 0 and 255 are ignored" in shown
    assert "3 of 3 images are sound" in shown
    (tmp_path / LAYOUTS["ade20k"][1].format(ids[0])).unlink()
    assert main(["dataset", "check", "ade20k", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "problem: `" in captured.out
    assert "must hold ade20k without a problem; got 1." in captured.err
    assert main(["dataset", "check", "ade20k", str(tmp_path / "none")]) == 2
    captured = capsys.readouterr()
    assert "images  images/validation/*.jpg" in captured.out  # the expected layout
    assert "looked in" in captured.err


def test_problems_past_the_tenth_are_counted(tmp_path):
    for id in write_tree(tmp_path, "folder", count=14):
        (tmp_path / LAYOUTS["folder"][1].format(id)).unlink()
    dataset = load_dataset("folder", names=tmp_path / "names.txt")
    found = check(dataset, tmp_path, quiet=True)
    assert "and 5 more problems" in report(found, dataset)  # 14 pairs and "no masks at all"
    assert "split   all images of the folder" in expected(dataset)
