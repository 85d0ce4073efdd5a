"""Descriptions of the data sets: classes, files of a split, your own folder."""

import re

import pytest

from evaluation.trees import CLASSES, LAYOUTS, write_tree
from ovss_refine.evaluation.dataset import (
    DESCRIPTIONS,
    list_datasets,
    load_dataset,
)
from ovss_refine.labels import read_labels

OFFICIAL = [name for name in CLASSES if name != "folder"]


def test_all_data_sets_are_there():
    assert set(list_datasets()) == set(CLASSES)
    assert {path.stem for path in DESCRIPTIONS.iterdir()} == set(OFFICIAL)


@pytest.mark.parametrize("name", OFFICIAL)
def test_classes(name):
    dataset = load_dataset(name)
    assert dataset.M == CLASSES[name] == len(set(dataset.names))
    assert all(name == name.strip() for name in dataset.names)
    assert dataset.highest == LAYOUTS[name][3]


def test_related_data_sets_share_their_names():
    names = {name: load_dataset(name).names for name in OFFICIAL}
    assert names["voc21"] == ("background", *names["voc20"])
    assert names["context60"] == ("background", *names["context59"])
    assert list(names["context59"]) == sorted(names["context59"])
    assert names["coco-object"] == ("background", *names["coco-stuff"][:80])
    # As documented: 29 names of stuff classes have a hyphen.
    assert sum("-" in name for name in names["coco-stuff"][80:]) == 29
    assert names["voc20"][0::19] == ("aeroplane", "tvmonitor")
    assert (names["ade20k"][0], names["ade20k"][149]) == ("wall", "flag")
    assert (names["coco-stuff"][80], names["coco-stuff"][170]) == ("banner", "wood")


@pytest.mark.parametrize("name", CLASSES)
def test_items_of_every_layout(tmp_path, name):
    ids = write_tree(tmp_path, name, count=5)
    dataset = load_dataset(name, names=tmp_path / "names.txt" if name == "folder" else None)
    items = dataset.items(tmp_path)
    # In the order of the split file if there is one, otherwise of the paths.
    assert [item.id for item in items] == (ids if LAYOUTS[name][2] else sorted(ids))
    assert all(item.image.is_file() and item.mask.is_file() for item in items)
    inner = dataset.locate(tmp_path)
    assert dataset.items(inner) == items  # the root may be the folder itself


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_missing_folder_is_named_with_its_expected_contents(tmp_path, name):
    dataset = load_dataset(name)
    with pytest.raises(FileNotFoundError) as err:
        dataset.items(tmp_path)
    assert f"`root` must hold {name} ({dataset.images}/ and {dataset.masks}/)" in str(err.value)
    assert str(tmp_path) in str(err.value)


def test_missing_split_and_masks(tmp_path):
    write_tree(tmp_path, "voc21")
    split = tmp_path / LAYOUTS["voc21"][2]
    split.write_text("a\nb\na\n")
    with pytest.raises(ValueError, match="must list every image once; got 'a' twice"):
        load_dataset("voc21").items(tmp_path)
    split.write_text("\n")
    with pytest.raises(ValueError, match="must hold images of voc21; got none"):
        load_dataset("voc21").items(tmp_path)
    split.unlink()
    with pytest.raises(FileNotFoundError, match=r"the list of images `.*val\.txt`"):
        load_dataset("voc21").items(tmp_path)
    (tmp_path / "VOC2012/SegmentationClass").rename(tmp_path / "elsewhere")
    with pytest.raises(
        FileNotFoundError, match=r"masks of voc21; `.*SegmentationClass` is missing"
    ):
        load_dataset("voc21").items(tmp_path)


def test_without_a_split_file_a_mask_without_image_is_an_item(tmp_path):
    ids = write_tree(tmp_path, "coco-object")
    (tmp_path / LAYOUTS["coco-object"][0].format(ids[0])).unlink()
    items = load_dataset("coco-object").items(tmp_path)
    assert [item.id for item in items] == sorted(ids)
    # COCO-Object ignores the masks of COCO-Stuff in the same folder.
    write_tree(tmp_path, "coco-stuff", count=4)
    assert {i.mask.name[-21:] for i in load_dataset("coco-object").items(tmp_path)} == {
        "_instanceTrainIds.png"
    }


def test_your_own_folder_has_any_image_format_and_one_image_of_a_name(tmp_path):
    write_tree(tmp_path, "folder", count=2)
    names = tmp_path / "names.txt"
    images = tmp_path / "images"
    first = sorted(images.iterdir())[0]
    first.rename(first.with_suffix(".PNG"))
    (images / "._hidden.jpg").write_bytes(b"")
    items = load_dataset("folder", names=names).items(tmp_path)
    assert items[0].image.is_file()
    assert len(items) == 2
    first.write_bytes(b"")
    with pytest.raises(ValueError, match="must have one file for each image"):
        load_dataset("folder", names=names).items(tmp_path)


def test_names_of_your_own_folder(tmp_path):
    path = tmp_path / "names.txt"
    for text, message in (
        ("a\n\nb\n", "line 2 is blank"),
        ("a\nb\nA\n", "names.txt`: classes must have no name twice; got 'A' twice"),
        ("\n".join(map(str, range(256))), "at most 255 classes.*got 256"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_dataset("folder", names=path)
    path.write_text("a\nb c\n")
    assert load_dataset("folder", names=path).names == ("a", "b c")
    path.write_text("joined: b c/d\ne f; g\n")  # a class may have the name of the TOML files' flag
    dataset = load_dataset("folder", names=str(path))
    assert dataset.names == ("joined", "e f")
    assert dataset.prompts_of("names") == ["b c/d", "e f/g"]
    assert dataset.labels() == read_labels(path)
    with pytest.raises(ValueError, match="`names` must be a file"):
        load_dataset("folder")
    with pytest.raises(ValueError, match="`names` must be left out with voc21"):
        load_dataset("voc21", names=path)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=re.escape("got 'voc12'. Did you mean 'voc21'?")):
        load_dataset("voc12")


def test_fingerprint_changes_with_a_file(tmp_path):
    write_tree(tmp_path, "ade20k")
    dataset = load_dataset("ade20k")
    before = dataset.fingerprint(dataset.items(tmp_path))
    assert dataset.fingerprint(dataset.items(tmp_path)) == before
    assert dataset.fingerprint(dataset.items(tmp_path)[:2]) != before
    mask = dataset.items(tmp_path)[1].mask
    mask.write_bytes(mask.read_bytes() + b"x")
    changed = dataset.fingerprint(dataset.items(tmp_path))
    assert changed != before
    mask.unlink()
    assert dataset.fingerprint(dataset.items(tmp_path)) not in (before, changed)
