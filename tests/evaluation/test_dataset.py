"""Descriptions of the data sets: classes, prompts, published settings, files of a split."""

import re

import pytest

from evaluation.trees import CLASSES, LAYOUTS, write_tree
from ovss_refine.evaluation.dataset import (
    DESCRIPTIONS,
    fingerprint,
    list_datasets,
    load_dataset,
)

OFFICIAL = [name for name in CLASSES if name != "folder"]
# Prompts in all for the families of SCLIP, ClearCLIP and ProxyCLIP, as their authors count them.
PROMPTS = {
    "voc21": (56, 21, 46),
    "voc20": (30, 20, 20),
    "context60": (60, 60, 60),
    "context59": (59, 59, 59),
    "coco-object": (113, 81, 97),
    "coco-stuff": (171, 171, 171),
    "cityscapes": (19, 19, 19),
    "ade20k": (150, 150, 150),
}
# (short side, window, stride, scale, probability, area) where a publication departs from its usual.
USUAL = {
    "sclip": (336, 224, 112, 40, 0, None),
    "clearclip": (448, 448, 224, 50, 0, None),
    "naclip": (336, 224, 112, 40, 0, None),
    "proxyclip": (336, 336, 112, 40, 0, None),
    "sc-clip": (336, 224, 112, 40, 0, None),
    "cass": (336, 224, 112, 40, 0, None),
    "rf-clip": (336, 224, 112, 40, 0, None),
}
DEPARTURES = {
    ("sclip", "voc21"): (336, 224, 112, 65, 0.1, 0.1),
    ("sclip", "context60"): (336, 224, 112, 50, 0.1, None),
    ("sclip", "coco-object"): (336, 224, 112, 50, 0.1, None),
    ("sclip", "coco-stuff"): (448, 224, 112, 40, 0, None),
    ("sclip", "cityscapes"): (560, 224, 112, 40, 0, None),
    ("clearclip", "voc21"): (448, 448, 224, 50, 0.5, None),
    ("clearclip", "context60"): (448, 448, 224, 50, 0.15, None),
    ("clearclip", "coco-object"): (448, 448, 224, 50, 0.4, None),
    ("clearclip", "cityscapes"): (448, 224, 224, 50, 0, None),
    ("naclip", "voc21"): (336, "whole", 112, 40, 0.1, None),
    ("naclip", "voc20"): (336, "whole", 112, 40, 0, None),
    ("naclip", "context60"): (336, 224, 112, 40, 0.1, None),
    ("naclip", "coco-object"): (336, 224, 112, 40, 0.1, None),
    ("naclip", "cityscapes"): (560, 224, 112, 40, 0, None),
    ("proxyclip", "voc21"): (336, 336, 112, 40, 0.2, None),
    ("proxyclip", "context60"): (336, 336, 112, 40, 0.15, None),
    ("proxyclip", "coco-object"): (336, 336, 112, 40, 0.25, None),
    ("proxyclip", "cityscapes"): (448, 224, 112, 40, 0, None),
    ("proxyclip", "ade20k"): (448, 336, 112, 40, 0, None),
    ("sc-clip", "voc21"): (336, 224, 112, 50, 0.15, 0.1),
    ("sc-clip", "context60"): (336, 224, 112, 40, 0.15, None),
    ("sc-clip", "coco-object"): (336, 224, 112, 55, 0.35, None),
    ("sc-clip", "cityscapes"): (560, 224, 112, 40, 0, None),
    **{
        (method, data): row
        for method in ("cass", "rf-clip")
        for data, row in {
            "voc21": (336, "whole", 112, 40, 0.1, None),
            "context60": (336, 224, 112, 40, 0.1, None),
            "coco-object": (336, 224, 112, 40, 0.1, None),
            "cityscapes": (560, 224, 112, 40, 0, None),
        }.items()
    },
}
KEYS = (
    "short_side",
    "window",
    "stride",
    "logit_scale",
    "probability_threshold",
    "area_threshold",
)


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
    # What is told of the stuff classes: 29 names have a hyphen.
    assert sum("-" in name for name in names["coco-stuff"][80:]) == 29
    assert names["voc20"][0::19] == ("aeroplane", "tvmonitor")
    assert (names["ade20k"][0], names["ade20k"][149]) == ("wall", "flag")
    assert (names["coco-stuff"][80], names["coco-stuff"][170]) == ("banner", "wood")


@pytest.mark.parametrize("name", OFFICIAL)
def test_number_of_prompts(name):
    dataset = load_dataset(name)
    families = ("sclip", "clearclip", "proxyclip")
    counts = [sum(len(c.split("/")) for c in dataset.prompts_of(f)) for f in families]
    assert tuple(counts) == PROMPTS[name]
    assert dataset.prompts_of("names") == list(dataset.names)
    for family, rows in dataset.prompts.items():  # no prompts for a class that does not exist
        assert set(rows) <= {*dataset.names, "joined"}, family


def test_prompts_of_single_classes():
    voc = load_dataset("voc21")
    prompts = dict(zip(voc.names, voc.prompts_of("sclip"), strict=True))
    assert (prompts["boat"], prompts["diningtable"]) == ("ship", "table")
    assert prompts["person"].startswith("person/person in shirt/")
    assert prompts["background"].split("/")[25] == "fence"
    city = load_dataset("cityscapes").prompts_of("clearclip")
    assert "trafficlight" in city
    coco = load_dataset("coco-object")
    assert len(coco.prompts_of("proxyclip")[0].split("/")) == 17
    assert coco.prompts_of("sclip")[1].endswith("/body")
    with pytest.raises(ValueError, match=r"`prompts` must be one of \[.*\]; got 'gem'"):
        voc.prompts_of("gem")


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("method", USUAL)
def test_published_settings(method, name):
    """What the description says, over the method's usual settings, is the published table."""
    usual = dict(zip(KEYS, USUAL[method], strict=True))
    said = load_dataset(name).method(method)
    wanted = DEPARTURES.get((method, name), USUAL[method])
    assert tuple((usual | said)[key] for key in KEYS) == wanted
    assert said.get("enlarged_twice", False) == (wanted[1] == "whole")
    assert said.get("pamr_iterations", 0) == (10 if method == "naclip" else 0)
    family = method if method in ("clearclip", "proxyclip") else "sclip"
    assert said["prompts"] == family


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("method", USUAL)
def test_settings_are_those_of_the_adapters(method, name):
    """The adapters keep the same publications' settings for use without an evaluation."""
    adapters = pytest.importorskip("ovss_refine_adapters.published")
    theirs = adapters.published(method, name)
    ours = dict(zip(KEYS, USUAL[method], strict=True)) | load_dataset(name).method(method)
    ours["window"] = None if ours["window"] == "whole" else ours["window"]
    assert {key: ours[key] for key in theirs.source} == theirs.source
    assert {key: ours[key] for key in theirs.decision} == theirs.decision
    assert ours.get("pamr_iterations", 0) == theirs.pamr_iterations
    not_of_the_source = {"prompts", "enlarged_twice", "pamr_iterations", *theirs.decision}
    assert set(ours) - not_of_the_source == set(theirs.source)


def test_an_unknown_method_has_the_usual_prompts():
    assert load_dataset("voc21").method("my-own") == {"prompts": "sclip"}


@pytest.mark.parametrize("name", CLASSES)
def test_items_of_every_layout(tmp_path, name):
    ids = write_tree(tmp_path, name, count=5)
    dataset = load_dataset(name, names=tmp_path / "names.txt" if name == "folder" else None)
    items = dataset.items(tmp_path)
    # The order of the list where there is one, else of the paths.
    assert [item.id for item in items] == (ids if LAYOUTS[name][2] else sorted(ids))
    assert all(item.image.is_file() and item.mask.is_file() for item in items)
    inner = dataset.locate(tmp_path)
    assert dataset.items(inner) == items  # the root may be the folder itself


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_missing_folder_is_named_with_what_belongs_there(tmp_path, name):
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


def test_without_a_list_a_lonely_mask_is_an_item(tmp_path):
    ids = write_tree(tmp_path, "coco-object")
    (tmp_path / LAYOUTS["coco-object"][0].format(ids[0])).unlink()
    items = load_dataset("coco-object").items(tmp_path)
    assert [item.id for item in items] == sorted(ids)
    # The masks of COCO-Stuff, in the same folder, are none of COCO-Object's.
    write_tree(tmp_path, "coco-stuff", count=4)
    assert {i.mask.name[-21:] for i in load_dataset("coco-object").items(tmp_path)} == {
        "_instanceTrainIds.png"
    }


def test_own_folder_takes_any_picture_but_one_of_a_name(tmp_path):
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


def test_own_names(tmp_path):
    path = tmp_path / "names.txt"
    for text, message in (
        ("a\n\nb\n", "line 2 is blank"),
        ("a\nb\na\n", "no name twice; got 'a' twice"),
        ("\n".join(map(str, range(256))), "at most 255 classes.*got 256"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_dataset("folder", names=path)
    path.write_text("a\nb c\n")
    assert load_dataset("folder", names=path).names == ("a", "b c")
    with pytest.raises(ValueError, match="`names` must be a file"):
        load_dataset("folder")
    with pytest.raises(ValueError, match="`names` must be left out with voc21"):
        load_dataset("voc21", names=path)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match=re.escape("got 'voc12'. Did you mean 'voc21'?")):
        load_dataset("voc12")


def test_fingerprint_changes_with_a_file(tmp_path):
    write_tree(tmp_path, "ade20k")
    dataset = load_dataset("ade20k")
    before = fingerprint(dataset.items(tmp_path))
    assert fingerprint(dataset.items(tmp_path)) == before
    assert fingerprint(dataset.items(tmp_path)[:2]) != before
    mask = dataset.items(tmp_path)[1].mask
    mask.write_bytes(mask.read_bytes() + b"x")
    changed = fingerprint(dataset.items(tmp_path))
    assert changed != before
    mask.unlink()
    assert fingerprint(dataset.items(tmp_path)) not in (before, changed)
