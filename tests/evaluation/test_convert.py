"""Conversions: every value against tables from other sources."""

import numpy as np
import pytest
from PIL import Image

from evaluation.trees import write_tree
from ovss_refine.cli import main
from ovss_refine.evaluation import CONVERSIONS, convert
from ovss_refine.evaluation.convert import apply, conversion
from ovss_refine.evaluation.dataset import load_dataset

# COCO's ids of the things that were never annotated; the maps' values are one less.
NEVER = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
# The evaluated classes in cityscapesscripts' table: name, id, train id.
CITY = {
    "road": (7, 0),
    "sidewalk": (8, 1),
    "building": (11, 2),
    "wall": (12, 3),
    "fence": (13, 4),
    "pole": (17, 5),
    "traffic light": (19, 6),
    "traffic sign": (20, 7),
    "vegetation": (21, 8),
    "terrain": (22, 9),
    "sky": (23, 10),
    "person": (24, 11),
    "rider": (25, 12),
    "car": (26, 13),
    "truck": (27, 14),
    "bus": (28, 15),
    "train": (31, 16),
    "motorcycle": (32, 17),
    "bicycle": (33, 18),
}


def converted(name, values):
    return apply(conversion(name).table, np.array([values]), "m")[0].tolist()


def test_coco_stuff_numbers_the_classes_consecutively():
    wanted, label = {}, 0
    for number in range(1, 183):
        if number not in NEVER:
            wanted[number - 1], label = label, label + 1
    assert label == 171
    assert converted("coco-stuff", list(wanted)) == list(wanted.values())
    assert converted("coco-stuff", [255, 0, 10, 12, 89, 91, 181]) == [255, 0, 10, 11, 79, 80, 170]


def test_coco_object_keeps_things_and_makes_everything_else_background():
    things = [number - 1 for number in range(1, 91) if number not in NEVER]
    assert converted("coco-object", things) == list(range(1, 81))
    stuff = [number - 1 for number in range(92, 183)]
    assert converted("coco-object", [*stuff, 255]) == [0] * 92


@pytest.mark.parametrize("name", ["coco-object", "coco-stuff"])
@pytest.mark.parametrize("value", [NEVER[0] - 1, 182, 254])
def test_values_that_coco_lacks_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"must be a map as it was published; got.*\[{value}\]"):
        converted(name, [0, value, 255])


def test_cityscapes_by_name():
    names = load_dataset("cityscapes").names
    assert names == tuple(CITY)
    ids = [number for number, _ in CITY.values()]
    assert converted("cityscapes", ids) == [label for _, label in CITY.values()]
    assert converted("cityscapes", [n for n in range(34) if n not in ids]) == [255] * 15
    with pytest.raises(ValueError, match=r"\[34\]"):
        converted("cityscapes", [34])


def context_names(path, start=7, step=3):
    """Write a list with the classes, not in alphabetical order, and others."""
    classes = list(load_dataset("context59").names)[::-1]
    numbers = {name: start + step * i for i, name in enumerate(classes)}
    others = {f"other {i}": i for i in range(1, start)}
    lines = [f"{number}: {name}" for name, number in (others | numbers).items()]
    path.write_text("\n".join([*lines, ""]))
    return numbers


def test_context_by_name(tmp_path):
    names = tmp_path / "labels.txt"
    numbers = context_names(names)
    table = conversion("context", names).table
    classes = load_dataset("context60").names
    for name, number in numbers.items():
        assert classes[table[number]] == name
    assert table[:7].tolist() == [0] * 7  # other classes, and unlabelled
    assert (table > 0).sum() == 59


def test_invalid_lists_of_context_names_are_refused(tmp_path):
    names = tmp_path / "labels.txt"
    names.write_text("1: aeroplane\n2 bag\n")
    with pytest.raises(ValueError, match="lines 'number: name'; got '2 bag' in line 2"):
        conversion("context", names)
    names.write_text("1: aeroplane\n")
    with pytest.raises(ValueError, match="name all 59 classes; 58 are missing, 'bag' the first"):
        conversion("context", names)
    with pytest.raises(ValueError, match="`names` must be the list of labels for 'context'"):
        conversion("context")
    with pytest.raises(ValueError, match="`names` must be the list of labels"):
        conversion("coco-stuff", names)
    with pytest.raises(ValueError, match="`conversion` must be one of"):
        conversion("voc21")


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, dtype=np.uint8)).save(path)


def load(path):
    with Image.open(path) as image:
        return np.asarray(image).tolist()


def test_one_folder_serves_both_coco_sets(tmp_path, capsys):
    masks = tmp_path / "annotations/val2017"
    save(masks / "1.png", [[0, 12, 255, 181]])
    for name in ("coco-object", "coco-stuff"):
        assert main(["dataset", "convert", name, str(masks), str(masks)]) == 0
        assert "1 maps converted" in capsys.readouterr().out
    assert load(masks / "1_instanceTrainIds.png") == [[1, 12, 0, 0]]
    assert load(masks / "1_labelTrainIds.png") == [[0, 11, 255, 170]]
    assert main(["dataset", "convert", "coco-stuff", str(masks), str(masks)]) == 2
    assert "(1 of 1 results do); pass --overwrite" in capsys.readouterr().err
    assert main(["dataset", "convert", "coco-stuff", str(masks), str(masks), "--overwrite"]) == 0


def test_converted_data_is_sound(tmp_path):
    write_tree(tmp_path, "cityscapes", count=2)
    for path in sorted(tmp_path.rglob("*_gtFine_labelTrainIds.png")):
        ids = np.array([[7, 8, 0, 33] * 8] * 24)
        save(path.with_name(path.name.replace("TrainIds", "Ids")), ids)
        path.unlink()
    assert main(["dataset", "check", "cityscapes", str(tmp_path)]) == 2
    masks = str(tmp_path / "gtFine")
    assert main(["dataset", "convert", "cityscapes", masks, masks]) == 0
    assert main(["dataset", "check", "cityscapes", str(tmp_path)]) == 0
    found = sorted(tmp_path.rglob("*TrainIds.png"))
    assert load(found[0])[0][:4] == [0, 1, 255, 18]
    assert len(found) == 2


def test_context_from_matlab_files_and_images(tmp_path):
    scipy = pytest.importorskip("scipy.io", reason="the maps of 459 labels are MATLAB files")
    names = tmp_path / "labels.txt"
    numbers = context_names(names)
    values = np.array([[numbers["sky"], 1, numbers["wood"], 0]])
    (tmp_path / "maps").mkdir()
    scipy.savemat(tmp_path / "maps/a.mat", {"LabelMap": values.astype(np.uint16)})
    save(tmp_path / "maps/b.png", values)
    line = ["dataset", "convert", "context", str(tmp_path / "maps"), str(tmp_path / "out")]
    assert main([*line, "--names", str(names)]) == 0
    classes = load_dataset("context60").names
    wanted = [[classes.index("sky"), 0, 59, 0]]
    assert load(tmp_path / "out/a.png") == load(tmp_path / "out/b.png") == wanted
    scipy.savemat(tmp_path / "maps/a.mat", {"Other": values})
    assert main([*line, "--names", str(names), "--overwrite"]) == 2


def test_nothing_to_convert(tmp_path, capsys):
    for name in set(CONVERSIONS) - {"context"}:
        assert main(["dataset", "convert", name, str(tmp_path), str(tmp_path)]) == 2
        assert "must have files that end in" in capsys.readouterr().err
        assert main(["dataset", "convert", name, str(tmp_path / "x"), str(tmp_path)]) == 2
        assert "must be an existing folder of label maps" in capsys.readouterr().err


TORN = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM\x0e\0\0\0"


@pytest.mark.parametrize("content", [b"", b"text", TORN])
def test_a_damaged_matlab_file_is_named(tmp_path, content):
    pytest.importorskip("scipy", reason="reading MATLAB files needs scipy")
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(ValueError, match=r"`.*x\.mat` must be a readable MATLAB file; got "):
        convert._read(tmp_path / "x.mat")
