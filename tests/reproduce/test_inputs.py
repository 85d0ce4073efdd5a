"""Finding data sets by their folders and weights by their files."""

import pytest
import torch

from evaluation.trees import write_tree
from ovss_refine.reproduce.inputs import NoAttention, WeightsFolder, find_data
from ovss_refine.reproduce.tables import load_tables

SOME = {"dino-b8": ["config.json", "model.safetensors"]}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty hub cache."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="the hub's cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def fill(folder, names, content="weights"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content} {name}")
    return folder


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("voc21", "voc21"),
        ("voc20", "voc"),
        ("context59", "context"),
        ("coco-stuff", "coco"),
        ("ade20k", "ade"),
        ("voc21", "VOCdevkit"),
        ("cityscapes", "cityscapes"),
        ("coco-object", "coco_object"),
    ],
)
def test_data_sets_are_found_by_their_folders(name, folder, tmp_path):
    write_tree(tmp_path / folder, name, count=2)
    found = find_data(name, tmp_path, {})
    assert (found.images, found.lack) == (2, "")
    assert found.dataset.items(found.root) == found.dataset.items(tmp_path / folder)


def test_a_named_root_replaces_the_data_folder(tmp_path):
    write_tree(tmp_path / "data/voc21", "voc21", count=2)
    write_tree(tmp_path / "mine", "voc21", count=3)
    assert find_data("voc21", tmp_path / "data", {"voc21": tmp_path / "mine"}).images == 3
    empty = tmp_path / "empty"
    empty.mkdir()
    found = find_data("voc21", tmp_path / "data", {"voc21": empty})
    assert found.root is None  # no other folder is tried
    assert f"looked in `{empty}`; pass" in found.lack


def test_missing_data_is_described(tmp_path):
    (tmp_path / "voc21").mkdir()
    lack = find_data("voc21", tmp_path, {}).lack
    assert lack == (
        "data set `voc21` (PASCAL VOC 2012 val, 20 classes and background; `JPEGImages`, "
        "`SegmentationClass`, `ImageSets/Segmentation/val.txt`): looked in "
        f"`{tmp_path}/voc21`, `{tmp_path}`; pass --data DIR or --root voc21=PATH"
    )
    assert "no folder given; pass" in find_data("voc21", None, {}).lack


def test_an_incomplete_data_set_is_described(tmp_path):
    write_tree(tmp_path / "cityscapes", "cityscapes", count=2)
    masks = tmp_path / "cityscapes/gtFine"
    masks.rename(tmp_path / "elsewhere")
    lack = find_data("cityscapes", tmp_path, {}).lack
    reason = f"`root` must hold masks of cityscapes; `{masks}/val` is missing; pass --data DIR or"
    assert reason in lack
    write_tree(tmp_path, "voc21", count=2)
    split = tmp_path / "VOC2012/ImageSets/Segmentation/val.txt"
    split.unlink()
    lack = find_data("voc21", None, {"voc21": tmp_path}).lack
    assert f"`root` must hold the list of images `{split}`; it is missing; pass" in lack


def test_data_without_matching_masks_is_described(tmp_path):
    write_tree(tmp_path, "coco-object", count=2)
    for mask in sorted(tmp_path.rglob("*_instanceTrainIds.png")):
        mask.rename(str(mask).replace("_instanceTrainIds", "_labelTrainIds"))
    found = find_data("coco-object", tmp_path, {})
    assert found.root is None
    assert "must have masks that end in _instanceTrainIds.png; got 2 that end in" in found.lack
    assert "`ovss-refine dataset convert` makes the missing masks; pass --data DIR" in found.lack
    write_tree(tmp_path / "more", "voc21", count=2)
    for mask in (tmp_path / "more/VOC2012/SegmentationClass").iterdir():
        mask.rename(mask.with_name(f"other_{mask.name}"))  # sound, but of other images
    found = find_data("voc21", None, {"voc21": tmp_path / "more"})
    assert found.root is None
    assert "SegmentationClass` must have a mask for some image; got none; pass" in found.lack


def test_an_incomplete_data_set_does_not_hide_a_complete_one(tmp_path):
    write_tree(tmp_path / "voc", "voc21", count=2)
    write_tree(tmp_path / "voc21", "voc21", count=3)
    (tmp_path / "voc21/VOC2012/ImageSets/Segmentation/val.txt").unlink()
    found = find_data("voc21", tmp_path, {})
    assert (found.images, found.lack) == (2, "")


def test_faulty_data_is_named(tmp_path):
    write_tree(tmp_path, "voc21", count=2)
    split = tmp_path / "VOC2012/ImageSets/Segmentation/val.txt"
    split.write_text(split.read_text() * 2)
    found = find_data("voc21", tmp_path, {})
    assert found.root is None
    assert "data set `voc21`: " in found.lack
    assert "must list every image once" in found.lack


def test_cached_weights_are_those_that_would_be_loaded(cache):
    repository = cache / "models--timm--vit_base_patch8_224.dino"
    weights = WeightsFolder()
    assert "weights `dino-b8` (timm/vit_base_patch8_224.dino, 0.3 GB" in weights.lack("dino-b8")
    fill(repository / "snapshots/old", ["model.safetensors"])
    assert weights.place("dino-b8") is None  # no reference to the snapshot
    fill(repository / "snapshots/new", ["README.md"])
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("new")
    assert weights.place("dino-b8") is None  # no weights in it
    fill(repository / "snapshots/new", ["pytorch_model.bin"])
    assert weights.place("dino-b8") == repository / "snapshots/new"
    assert weights.lack("dino-b8") == ""
    assert weights.own("dino-b8") is None  # it is loaded by name


def test_a_complete_folder_comes_before_the_cache(cache, tmp_path):
    repository = cache / "models--timm--vit_base_patch8_224.dino"
    fill(repository / "snapshots/new", ["model.safetensors"])
    fill(repository / "refs", ["main"])
    (repository / "refs/main").write_text("new")
    folder = fill(tmp_path / "models/dino-b8", ["config.json"])
    weights = WeightsFolder(tmp_path / "models")
    assert weights.own("dino-b8") is None
    assert weights.place("dino-b8") == repository / "snapshots/new"
    fill(folder, ["model.safetensors"])
    assert weights.own("dino-b8") == weights.place("dino-b8") == folder
    assert f"not in the folder `{tmp_path}/models/sd2` nor in the hub's cache" in weights.lack(
        "sd2"
    )


def test_weights_of_a_single_file(cache, tmp_path):
    weights = WeightsFolder(tmp_path)
    wanted = "put `checkpoints/last.pt` of https://github.com/wysoczanska/clip_dinoiser into the"
    assert wanted in weights.lack("clip-dinoiser")
    folder = fill(tmp_path / "clip-dinoiser", ["last.pt"])
    assert weights.lack("clip-dinoiser") == ""
    assert weights.given("clip-dinoiser") == str(folder / "last.pt")
    assert weights.given("clip-b16") == "B/16"
    wanted = "put `tcl.pth` of https://github.com/kakaobrain/tcl/releases/tag/v1.0.0 into the"
    assert wanted in weights.lack("tcl")
    folder = fill(tmp_path / "tcl", ["tcl.pth"])
    assert weights.given("tcl") == str(folder / "tcl.pth")
    assert weights.given("groupvit") is None  # loaded by its own name
    folder = fill(tmp_path / "groupvit", ["config.json", "pytorch_model.bin"])
    assert weights.given("groupvit") == f"local-dir:{folder}"


@pytest.mark.parametrize(
    "name",
    ["groupvit", "clip-b16-laion2b", "clip-b16", "clip-l14", "dinov2-b14", "dinov2-b14-reg", "sd2"],
)
def test_every_file_is_required(name, cache, tmp_path):
    wanted = [one.split("|")[0] for one in load_tables().weights[name].in_folder]
    names = [pattern.replace("*", "some") for pattern in wanted]
    weights = WeightsFolder(tmp_path)
    fill(tmp_path / name, names)
    assert weights.lack(name) == ""
    for lost in names:
        (tmp_path / name / lost).unlink()
        assert f"weights `{name}`" in weights.lack(name)
        fill(tmp_path / name, [lost])


def test_a_digest_depends_on_the_contents_and_not_on_the_folder(cache, tmp_path):
    names = SOME["dino-b8"]
    digests = []
    for place, content in (("a", "one"), ("b", "one"), ("c", "two")):
        fill(tmp_path / place / "dino-b8", names, content)
        digests.append(WeightsFolder(tmp_path / place).digest("dino-b8"))
    assert digests[0] == digests[1] != digests[2]
    long = tmp_path / "c/dino-b8/model.safetensors"
    content = bytearray(5 << 20)
    for at in (0, -1):
        content[at] ^= 255
        long.write_bytes(content)
        digests.append(WeightsFolder(tmp_path / "c").digest("dino-b8"))
    assert len(set(digests)) == 4


def test_only_the_source_made_last_is_kept():
    weights, made = WeightsFolder(), []

    def make(name):
        return lambda: made.append(name) or name

    for name in ("a", "a", "b", "a"):
        assert weights.keep("attention", name, make(name)) == name
    assert weights.keep("logits", "a", make("another kind")) == "another kind"
    assert made == ["a", "b", "a", "another kind"]


def test_no_attention_is_a_map_of_one_patch():
    found = NoAttention().attention(torch.rand(2, 3, 8, 9))
    assert found.weights.tolist() == [[[1.0]], [[1.0]]]
    assert found.grid == (1, 1)
