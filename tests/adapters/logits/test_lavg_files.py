"""LaVG's masks from files: read by the ids of images, checked, in evaluations."""

import json

import numpy as np
import pytest
import torch

from adapters.model_folders import open_clip_folder
from adapters.tiny_clip import CLASSES, halves, images, make, tiny_clip
from evaluation.trees import write_tree
from ovss_refine import load_logits
from ovss_refine.cli import main
from ovss_refine.evaluation import evaluate
from ovss_refine_adapters.logits.lavg import LavgLogits

TEXT = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))


def write_masks(folder, masks):
    """Write the masks of each image id, at their own sizes."""
    for image_id, one in masks.items():
        path = folder / f"{image_id}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, masks=np.asarray(one))


@pytest.mark.parametrize("windows", [{}, {"short_side": 24, "window": 24, "stride": 16}])
def test_masks_from_files_are_those_of_a_function(tmp_path, windows):
    """Of any number and size: they are resized once, by the nearest pixel, to the working size."""
    batch = images(2)  # of 48 x 80 pixels
    working = torch.zeros(2, *((24, 40) if windows else (48, 80)))
    first = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.5
    second = halves(batch)[1]
    write_masks(tmp_path, {"a/one": first, "two": second})
    source = make(LavgLogits, masks=str(tmp_path), no_object_is_background=True, **windows)
    got = source.logits(batch, image_ids=["a/one", "two"])

    y, x = (torch.arange(n) * m // n for n, m in zip(working.shape[1:], (5, 7), strict=True))
    resized = first[:, y][:, :, x]  # at the working size
    if windows:  # the function's masks have the size of the images, twice the working size
        resized = resized.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    given = [resized, second]
    how = {"no_object_is_background": True} | windows
    wanted = make(LavgLogits, masks=lambda _: given, **how).logits(batch)
    assert torch.equal(got.values, wanted.values)
    assert not torch.equal(got.values, source.logits(batch, image_ids=["two", "a/one"]).values)
    both, attention = source.logits_and_attention(batch, image_ids=["a/one", "two"])
    assert torch.equal(both.values, got.values)
    assert torch.equal(attention.weights, source.attention(batch).weights)  # needs no masks
    other = source.with_classes(source.classes)
    assert torch.equal(other.logits(batch, ["a/one", "two"]).values, got.values)


@pytest.mark.parametrize(
    ("masks", "ids", "error", "message"),
    [
        (np.ones((1, 4, 4), bool), [], ValueError, r"`image_ids` must name the B=1 images, whose"),
        (np.ones((1, 4, 4), bool), ["x", "x"], ValueError, r"must name the B=1 .*; got \['x', 'x'"),
        (np.ones((1, 4, 4), bool), ["y"], FileNotFoundError, r"for each image; `.*y\.npz` is miss"),
        (
            np.ones((1, 4, 4)),
            ["x"],
            ValueError,
            r"`.*x\.npz` must be a bool .*; got float64 \[1, 4",
        ),
        (np.ones((4, 4), bool), ["x"], ValueError, r"array \[S, h, w\]; got bool \[4, 4\]"),
        (np.ones((0, 4, 4), bool), ["x"], ValueError, r"array \[S, h, w\]; got bool \[0, 4, 4\]"),
    ],
)
def test_bad_files_of_masks(tmp_path, masks, ids, error, message):
    write_masks(tmp_path, {"x": masks})
    source = make(LavgLogits, masks=tmp_path)
    with pytest.raises(error, match=message):
        source.logits(images(1), image_ids=ids)


def test_masks_are_checked_before_the_model_is_loaded(tmp_path):
    for masks, error, message in (
        (str(tmp_path / "none"), FileNotFoundError, "`masks` must be an existing folder; got `"),
        ("https://x.org/masks", ValueError, "`masks` must be a local path"),
        (5, TypeError, "`masks` must be a function of images or a folder; got int"),
    ):
        with pytest.raises(error, match=message):
            load_logits("lavg", classes=CLASSES, masks=masks, model="no such model")


def test_evaluation_reads_the_masks_of_each_image(tmp_path):
    """In batches, on a resumed run of other files, and with one that is missing."""
    names = ["cat", "dog", "lamp"]
    rng = np.random.default_rng(0)
    batch = (images(3) * 255).round().to(torch.uint8)
    pairs = [(x.permute(1, 2, 0).numpy(), rng.integers(0, 3, (48, 80))) for x in batch]
    masks = {str(i): torch.from_numpy(rng.random((2, 6, 10)) > 0.5) for i in range(3)}
    write_masks(tmp_path, masks)

    def run(source, **options):
        asked = {"dataset": pairs, "names": names, "rows": ["baseline", "refined"]}
        return evaluate(source, source, **asked, **options)

    how = {"text_features": TEXT, "window": 40, "stride": 24, "short_side": 48}
    source = LavgLogits(names, masks=tmp_path, model=tiny_clip(), **how)
    got = run(source, batch_size=2, out=tmp_path / "out")
    given = [m.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2) for m in masks.values()]
    turn = iter(given)
    wanted = run(LavgLogits(names, masks=lambda x: [next(turn)], model=tiny_clip(), **how))
    for row in ("baseline", "refined"):
        np.testing.assert_array_equal(got.counts[row], wanted.counts[row])
    assert next(turn, None) is None

    write_masks(tmp_path, {"1": torch.ones(3, 9, 9, dtype=torch.bool)})
    with pytest.raises(ValueError, match="logits files was"):
        run(source, batch_size=2, out=tmp_path / "out")
    (tmp_path / "1.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"`masks` must have a file .*1\.npz` is missing"):
        run(source)


@pytest.mark.parametrize("attention", ["own", "arrays"])
def test_the_command_reads_a_folder_of_masks(tmp_path, attention):
    root, model, out = (tmp_path / name for name in ("root", "model", "out"))
    ids = write_tree(root, "folder", 2, size=(32, 48))
    model.mkdir()
    open_clip_folder(model)
    rng = np.random.default_rng(0)
    write_masks(tmp_path / "masks", {one: rng.random((3, 8, 9)) > 0.5 for one in ids})
    if attention == "arrays":
        attention = f"npz:{tmp_path / 'arrays'}"
        write_features(tmp_path / "arrays", ids)
    line = ["evaluate", "--dataset", "folder", "--root", str(root), "--out", str(out)]
    line += ["--logits", "lavg", "--attention", attention, "--device", "cpu"]
    for option in (f"model={model}", f"masks={tmp_path / 'masks'}", "window=32", "stride=16"):
        line += ["--logits-option", option]
    assert main([*line, "--logits-option", "short_side=32", "--batch-size", "2"]) == 0
    assert json.loads((out / "results.json").read_text())["images"] == 2
    settings = json.loads((out / "manifest.json").read_text())["settings"]
    assert settings["logits option masks"] == str(tmp_path / "masks")


def write_features(folder, ids):
    folder.mkdir()
    for one in ids:
        np.savez(folder / f"{one}.npz", features=np.random.default_rng(1).random((4, 2, 3)))
