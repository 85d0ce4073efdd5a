"""Masks of one's own that mean something else than they seem to: it is refused or noted."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from evaluation.test_run import arguments
from ovss_refine.cli import main
from ovss_refine.evaluation.check import check
from ovss_refine.evaluation.dataset import load_dataset
from ovss_refine.evaluation.reading import read_pair

TRUTH = np.zeros((8, 12), np.uint8)
TRUTH[2:5, 3:10] = 1
TRUTH[6:, 10:] = 2


def write(root, mask, names="sky road tree", *, predicted=TRUTH, image_exif=None, mask_exif=None):
    """Write a data set of one image, and logits and features that give `predicted`."""
    for folder in ("images", "masks", "arrays"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "names.txt").write_text("\n".join(names.split()))
    image = Image.fromarray(np.stack([80 * predicted] * 3, axis=-1))
    save(image, root / "images" / "a.png", image_exif)
    save(Image.fromarray(np.asarray(mask)), root / "masks" / "a.png", mask_exif)
    hot = (predicted == np.arange(len(names.split()))[:, None, None]).astype(np.float32)
    np.savez(root / "arrays" / "a.npz", logits=20 * hot, features=hot + 1e-3)
    return root


def save(image, path, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x112] = orientation
    image.save(path, exif=exif)


def evaluated(root, capsys, *more):
    """Evaluate and check: what the screen shows, the results, and the notes of the check."""
    assert main(arguments(root, "folder", "--rows", "baseline", *more)) == 0
    shown = capsys.readouterr().out
    found = json.loads((root / "out" / "results.json").read_text())
    for note in found["notes"]:
        assert note in shown
        assert note in (root / "out" / "results.md").read_text()
    dataset = load_dataset(
        "folder", names=root / "names.txt", first_is_ignored="--first-is-ignored" in more
    )
    return shown, found, check(dataset, root, quiet=True).notes


def refused(root, capsys, *more):
    """Evaluate and check what both must refuse; return both messages."""
    assert main(arguments(root, "folder", *more)) == 2
    shown = capsys.readouterr().err
    assert main(["dataset", "check", "folder", str(root), *more]) == 2
    problems = [line for line in capsys.readouterr().out.splitlines() if "problem:" in line]
    return shown, "\n".join(problems)


def test_binary_masks_of_0_and_255_have_no_score(tmp_path, capsys):
    binary = (TRUTH == 1).astype(np.uint8)
    root = write(tmp_path, 255 * binary, "background building", predicted=binary)
    shown, found, notes = evaluated(root, capsys)
    assert found["notes"] == notes
    assert "1 class does not occur in the masks: building." in notes
    assert "21.9% of the pixels of the masks are 255, which is ignored." in notes
    assert "np.where(mask == 255, 1, mask)" in notes[2]
    assert "100.00" not in shown
    row = found["rows"]["baseline"]
    assert (row["miou"], row["accuracy"], row["mean_accuracy"]) == (None, None, None)
    assert row["iou"] == {"background": 100, "building": None}


def test_a_class_without_truth_is_noted_beside_the_score_of_the_others(tmp_path, capsys):
    _, found, notes = evaluated(write(tmp_path, TRUTH, "sky road tree sea"), capsys)
    assert found["notes"] == notes == ["1 class does not occur in the masks: sea."]
    assert found["rows"]["baseline"]["miou"] == 100


def test_masks_without_a_doubt_have_no_notes(tmp_path, capsys):
    shown, found, notes = evaluated(write(tmp_path, TRUTH), capsys)
    assert found["notes"] == notes == []
    assert "Note" not in shown


@pytest.mark.parametrize("value", [3, 254, 128, 300])
def test_values_that_are_no_class(tmp_path, capsys, value):
    mask = np.where(TRUTH == 0, np.uint16(value), TRUTH)
    for text in refused(write(tmp_path, mask), capsys):
        assert f"must have values from 0 to 2, or 255; got [{value}]." in text
        assert "Write 255 for pixels that are not labelled." in text
        assert ("pass --first-is-ignored" in text) == (value == 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_masks_of_colours(tmp_path, capsys, mode):
    root = write(tmp_path, TRUTH)
    Image.fromarray(TRUTH).convert(mode).save(root / "masks" / "a.png")
    for text in refused(root, capsys):
        assert f"one label for each pixel; got an image of mode {mode!r}" in text
        assert "number of its class" in text


@pytest.mark.parametrize(
    ("levels", "fits"),
    [
        ([0, 1, 2], True),
        ([2, 0, 1], False),  # reordered by the frequency of the colours
        ([0, 2, 255], False),
        ([0, 128, 7], True),  # no classes: greys to look at
        ([0, 0, 0], True),  # no palette to speak of
        ([(0, 0, 0), (128, 0, 0), (0, 128, 0)], True),
    ],
)
def test_a_palette_of_grey_levels_that_could_be_the_labels(tmp_path, capsys, levels, fits):
    """Programs that make files smaller replace values by the indices of a palette."""
    root = write(tmp_path, TRUTH)
    mask = Image.fromarray(TRUTH)
    mask.putpalette(np.broadcast_to(np.array(levels).reshape(3, -1), (3, 3)).ravel().tolist())
    mask.save(root / "masks" / "a.png")
    if fits:
        assert evaluated(root, capsys)[1]["rows"]["baseline"]["miou"] == 100
        return
    for text in refused(root, capsys):
        assert f"grey levels {levels} at the indices [0, 1, 2], and both could be" in text
        assert "Save it in 8-bit grey" in text


def test_a_palette_of_black_and_white_has_two_classes(tmp_path, capsys):
    root = write(tmp_path, TRUTH % 2, "background building", predicted=TRUTH % 2)
    mask = Image.fromarray(TRUTH % 2)
    mask.putpalette([0, 0, 0, 255, 255, 255])
    mask.save(root / "masks" / "a.png")
    assert evaluated(root, capsys)[1]["rows"]["baseline"]["miou"] == 100


def test_masks_are_never_run_as_programs(tmp_path, capsys):
    root = write(tmp_path, TRUTH)
    Image.new("L", (12, 8)).save(root / "masks" / "x.eps")
    (root / "masks" / "x.eps").rename(root / "masks" / "a.png")
    for text in refused(root, capsys):
        assert "must be a readable label map; got PostScript, a program that draws one" in text


def test_0_is_not_labelled(tmp_path, capsys):
    mask = TRUTH + 1
    mask[:2] = 0
    root = write(tmp_path, mask)
    for text in refused(root, capsys):
        assert "classes count from 1, pass --first-is-ignored." in text
    _, found, notes = evaluated(root, capsys, "--first-is-ignored")
    assert found["rows"]["baseline"]["miou"] == 100
    assert found["notes"] == notes == []
    dataset = load_dataset("folder", names=root / "names.txt", first_is_ignored=True)
    _, truth = read_pair(dataset, dataset.items(root)[0])
    np.testing.assert_array_equal(truth.labels, np.where(mask == 0, 255, mask - 1))


def test_classes_from_1_without_the_last_are_told_by_the_scores(tmp_path, capsys):
    """Such masks look like any others: only the predictions show that they are off by one."""
    truth = TRUTH % 2
    mask = truth + 1
    mask[:1] = 0
    root = write(tmp_path, mask, predicted=truth)
    _, found, _ = evaluated(root, capsys)
    assert found["rows"]["baseline"]["miou"] < 50
    (note,) = found["notes"]
    assert "pass --first-is-ignored: baseline would have mIoU 100.00 instead of" in note
    again = write(tmp_path / "again", mask, predicted=truth)
    _, found, _ = evaluated(again, capsys, "--first-is-ignored")
    assert found["rows"]["baseline"]["miou"] == 100
    assert not any("first" in note for note in found["notes"])


def test_0_that_never_occurs_suggests_the_option(tmp_path, capsys):
    _, found, notes = evaluated(write(tmp_path, TRUTH % 2 + 1, predicted=TRUTH % 2), capsys)
    assert any("pass --first-is-ignored" in note for note in notes)
    assert set(notes) <= set(found["notes"])


def test_the_option_is_for_ones_own_data_set(tmp_path, capsys):
    (tmp_path / "JPEGImages").mkdir()
    assert main(["dataset", "check", "ade20k", str(tmp_path), "--first-is-ignored"]) == 2
    assert "`first_is_ignored` must be left out with ade20k" in capsys.readouterr().err
    with pytest.raises(TypeError, match="`first_is_ignored` must be True or False; got 'yes'"):
        load_dataset("folder", names=tmp_path / "names.txt", first_is_ignored="yes")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"c{i}" for i in range(255)))
    assert load_dataset("folder", names=names).highest == 254
    with pytest.raises(ValueError, match=r"at least 2 and at most 254 classes.*got 255"):
        load_dataset("folder", names=names, first_is_ignored=True)
    names.write_text("building")
    with pytest.raises(ValueError, match=r"got 1\. A background is a class"):
        load_dataset("folder", names=names)


def turned(pixels, orientation):
    """Make pixels upright, as Pillow does, or as they are stored for an upright image."""
    image = Image.fromarray(pixels)
    image.getexif()[0x112] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("shape", [(8, 12), (12, 12)])
@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8])
def test_check_and_evaluation_agree_on_orientation(tmp_path, orientation, shape, suffix):
    """A mask of the stored pixels beside an image that is rotated is refused, or noted."""
    stored = np.zeros(shape, np.uint8)
    stored[:3, :5] = 1
    root = write(tmp_path, stored)
    (root / "images" / "a.png").unlink()
    save(Image.new("RGB", shape[::-1]), root / "images" / f"a.{suffix}", orientation)
    dataset = load_dataset("folder", names=root / "names.txt")
    (item,) = dataset.items(root)
    upright = turned(stored, orientation or 1)
    for mask, own in ((stored, None), (upright, None), (stored, orientation)):
        save(Image.fromarray(mask), item.mask, own)
        found = check(dataset, root, quiet=True)
        noted = any("EXIF orientation" in note for note in found.notes)
        if found.problems:
            with pytest.raises(
                ValueError, match="sides are swapped: rotate the mask, as"
            ) as raised:
                read_pair(dataset, item)
            assert found.problems == [str(raised.value)]
            assert mask.shape != upright.shape
        else:
            _, truth = read_pair(dataset, item)
            assert truth.unclear == noted
        if own is not None or not (noted or found.problems):
            np.testing.assert_array_equal(truth.labels, upright)
    assert not truth.unclear  # the mask says itself how it is stored


def test_a_half_turn_is_noted_on_the_screen(tmp_path, capsys):
    _, found, notes = evaluated(write(tmp_path, TRUTH, image_exif=3), capsys)
    assert notes == found["notes"]
    assert notes[0].startswith("1 image has an EXIF orientation that the size of the mask does")
    assert ": a. Masks are compared with the upright image" in notes[0]


def test_a_mask_with_swapped_sides(tmp_path, capsys):
    for text in refused(write(tmp_path, TRUTH.T.copy()), capsys):
        assert "size of its image, 12 x 8; got 8 x 12. Its sides are swapped: rotate the ma" in text


def test_images_that_are_left_out_are_noted(tmp_path, capsys):
    root = write(tmp_path, TRUTH)
    for name in ("b.HEIC", "c.nef", "d.CR2", "e.txt"):
        (root / "images" / name).touch()
    _, found, notes = evaluated(root, capsys)
    assert notes == found["notes"]
    (note,) = notes
    assert "3 image files are left out" in note
    assert ".cr2 (1), .heic (1), .nef (1)" in note


def test_an_image_that_is_not_read_beside_its_mask(tmp_path, capsys):
    root = write(tmp_path, TRUTH)
    (root / "images" / "a.png").rename(root / "images" / "a.heic")
    assert main(arguments(root, "folder")) == 2
    assert "a.heic` the first: .heic (1)." in capsys.readouterr().err
    assert main(["dataset", "check", "folder", str(root)]) == 2
    assert "note: 1 image file is left out" in capsys.readouterr().out


def test_masks_of_another_format(tmp_path, capsys):
    root = write(tmp_path, TRUTH)
    (root / "masks" / "a.png").rename(root / "masks" / "a.tif")
    assert main(["dataset", "check", "folder", str(root)]) == 2
    shown = capsys.readouterr().out
    assert "end in .png; got none. 1 image file is left out" in shown
    assert ".tif (1)" in shown


def test_suffixes_in_capitals(tmp_path, capsys):
    root = write(tmp_path, TRUTH)
    for folder in ("images", "masks"):
        (root / folder / "a.png").rename(root / folder / "a.PNG")
    _, found, notes = evaluated(root, capsys)
    assert found["rows"]["baseline"]["miou"] == 100
    assert notes == []
