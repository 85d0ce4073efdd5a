"""What a folder of results remembers: settings, finished pictures, areas."""

import csv
import json
import zlib

import numpy as np
import pytest

from fake_segmenter import FakeSegmenter
from ovss_refine.segment.inputs import ImageFile
from ovss_refine.segment.journal import Journal, fingerprint
from ovss_refine.segment.outputs import write_outputs
from ovss_refine.segment.request import Outputs

NAMES = ("sky", "sea, deep")
SETTINGS = {"mode": "kl", "labels": NAMES, "background": (0, 0.5)}
LABELS_ONLY = Outputs(rle=False)


def note(journal, path, name, red=0, kinds=LABELS_ONLY):
    """Write and note a picture of 3 x 2 pixels, of which `red` are of the second class."""
    image = np.zeros((2, 3, 3), np.uint8)
    image.reshape(-1, 3)[:red, 0] = 255
    path.write_bytes(name.encode())
    found = FakeSegmenter().segment(image, NAMES, kinds.baseline)
    write_outputs(journal.out, name, found, kinds)
    picture = ImageFile(name, path)
    journal.add(picture, fingerprint(path), found, kinds)
    return picture


def reopen(journal, settings=SETTINGS, overwrite=False):
    journal.close()
    return Journal(journal.out, NAMES, settings, overwrite=overwrite)


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "new" / "out", NAMES, SETTINGS, overwrite=False)


def table(journal):
    with (journal.out / "areas.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("missing", [None, "labels", "overlay", "masks/000_sky"])
def test_finished_is_what_has_all_its_files(tmp_path, journal, missing):
    picture = note(journal, tmp_path / "x.jpg", "x", 2, Outputs(rle=False, masks=True))
    if missing:
        (journal.out / f"x_{missing}.png").unlink()
    masks = Outputs(rle=False, masks=True)
    for again in (lambda: journal, lambda: reopen(journal)):
        again = again()
        assert again.is_finished(picture, masks) == (missing is None)
        assert again.is_finished(picture, LABELS_ONLY) == (missing in (None, "masks/000_sky"))
        assert not again.is_finished(picture, Outputs())  # its run lengths were not asked for then
        assert not again.is_finished(ImageFile("y", picture.path), masks)


def test_another_picture_of_the_same_name_is_no_finished_one(tmp_path, journal):
    picture = note(journal, tmp_path / "x.jpg", "x")
    moved = ImageFile("x", picture.path.rename(tmp_path / "moved.jpg"))
    assert journal.is_finished(moved, LABELS_ONLY)
    assert journal.is_finished(picture, LABELS_ONLY)  # its reader says that it is missing
    moved.path.write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"those of 'x' in `.*out` are not of `.*moved\.jpg` as"):
        journal.is_finished(moved, LABELS_ONLY)


def test_other_settings_are_refused_by_name_unless_nothing_is_finished(tmp_path, journal):
    other = SETTINGS | {"mode": "fusion", "tau": 0.3}
    journal = reopen(journal, other)  # nothing is finished
    picture = note(journal, tmp_path / "x.jpg", "x")
    says = r"`out` must be .*; in `.*` mode was 'fusion', is 'kl'; tau was 0\.3, is absent\. Take"
    with pytest.raises(ValueError, match=says + r" another folder, or pass --overwrite\."):
        reopen(journal)
    journal = Journal(journal.out, NAMES, other, overwrite=False)
    assert journal.is_finished(picture, LABELS_ONLY)
    with pytest.raises(BlockingIOError, match="must be written by one run at a time"):
        Journal(journal.out, NAMES, other, overwrite=False)


def test_overwriting_forgets_what_had_other_settings(tmp_path, journal):
    picture = note(journal, tmp_path / "x.jpg", "x")
    journal = reopen(journal, overwrite=True)
    assert journal.is_finished(picture, LABELS_ONLY)  # the settings are the same
    journal = reopen(journal, SETTINGS | {"mode": "fusion"}, overwrite=True)
    assert not journal.is_finished(picture, LABELS_ONLY)
    journal.close()
    text = json.loads((journal.out / "segment.json").read_text())
    assert text["settings"]["mode"] == "fusion"
    assert text["starts"][-1]["versions"]["torch"]


@pytest.mark.parametrize("content", [None, "{", '{"setting": 1}'])
def test_lost_settings_are_said(tmp_path, journal, content):
    note(journal, tmp_path / "x.jpg", "x")
    journal.close()
    (journal.out / "segment.json").unlink()
    if content:
        (journal.out / "segment.json").write_text(content)
    if content:
        says = r"`.*segment\.json` must be the manifest of a results folder; it is damaged\. Take"
        with pytest.raises(ValueError, match=says):
            Journal(journal.out, NAMES, SETTINGS, overwrite=False)
    else:
        with pytest.raises(FileExistsError, match="must be a new or empty folder"):
            Journal(journal.out, NAMES, SETTINGS, overwrite=False)
    Journal(journal.out, NAMES, SETTINGS, overwrite=True).close()


def test_a_folder_as_the_first_version_left_it_is_resumed(tmp_path):
    """Its settings stood beside the last start alone."""
    photo, out = tmp_path / "x.jpg", tmp_path / "out"
    photo.write_bytes(b"x")
    out.mkdir()
    settings = '{"mode": "kl", "labels": ["sky", "sea, deep"], "background": [0, 0.5]}'
    text = f'{{\n "settings": {settings},\n "started": {{"command": ["ovss-refine"]}}\n}}\n'
    (out / "segment.json").write_text(text)
    size, time = fingerprint(photo)
    body = (
        f'{{"name":"x","file":[{size},{time}],"size":[2,3],'
        '"areas":{"refined":[[0,4],[1,2]]},"kinds":[]}'
    ).encode()
    (out / "records.0.jsonl").write_bytes(b"%08x %s\n" % (zlib.crc32(body), body))
    for kind in ("labels", "overlay"):
        (out / f"x_{kind}.png").touch()
    with pytest.raises(ValueError, match="mode was 'kl', is 'fusion'"):
        Journal(out, NAMES, SETTINGS | {"mode": "fusion"}, overwrite=False)
    journal = Journal(out, NAMES, SETTINGS, overwrite=False)
    assert journal.is_finished(ImageFile("x", photo), LABELS_ONLY)
    note(journal, tmp_path / "y.jpg", "y", 6)
    journal.close()
    assert [row[:5] for row in table(journal)[1:]] == [
        ["x", "refined", "0", "sky", "4"],
        ["x", "refined", "1", "sea, deep", "2"],
        ["y", "refined", "1", "sea, deep", "6"],
    ]


def test_folders_of_other_files_are_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").touch()
    Journal(tmp_path / "out", NAMES, SETTINGS, overwrite=False).close()  # hidden ones are nothing
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(
        FileExistsError, match=r"`.*other` has 'mine\.txt'\. Take another folder, or pass"
    ):
        Journal(tmp_path / "other", NAMES, SETTINGS, overwrite=False)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["mine.txt"]
    Journal(tmp_path / "other", NAMES, SETTINGS, overwrite=True).close()
    with pytest.raises(FileExistsError, match=r"`out` must be a folder; `.*mine\.txt` is a file"):
        Journal(tmp_path / "other" / "mine.txt", NAMES, SETTINGS, overwrite=True)


def test_the_table_has_the_last_of_every_picture(tmp_path, journal):
    note(journal, tmp_path / "x.jpg", "sub/x", 2)
    note(journal, tmp_path / "y.jpg", "y", 6, Outputs(baseline=True))
    journal = reopen(journal)
    note(journal, tmp_path / "x.jpg", "sub/x", 3)
    journal.close()
    assert table(journal) == [
        ["name", "labels", "index", "class", "pixels", "share"],
        ["y", "refined", "1", "sea, deep", "6", "1.000000"],
        ["y", "baseline", "0", "sky", "6", "1.000000"],
        ["sub/x", "refined", "0", "sky", "3", "0.500000"],
        ["sub/x", "refined", "1", "sea, deep", "3", "0.500000"],
    ]


@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_left_where_nothing_was_finished(tmp_path, there):
    out = tmp_path / "out"
    if there:
        out.mkdir()
    Journal(out, NAMES, SETTINGS, overwrite=False).close()
    assert out.exists() == there
    assert not there or not list(out.iterdir())


def test_after_a_kill_with_nothing_finished_other_settings_are_welcome(tmp_path, journal):
    assert (journal.out / "segment.json").exists()
    journal._folder.records.close()  # a kill does no more
    Journal(journal.out, NAMES, {"mode": "fusion"}, overwrite=False).close()


def test_files_of_an_earlier_run_are_not_those_that_are_asked_for_now(tmp_path, journal):
    both = Outputs(rle=False, baseline=True)
    picture = note(journal, tmp_path / "x.jpg", "x", kinds=both)
    assert journal.is_finished(picture, both)
    again = reopen(journal, SETTINGS | {"mode": "other"}, overwrite=True)
    note(again, tmp_path / "x.jpg", "x")  # its baseline is the earlier run's
    assert again.is_finished(picture, LABELS_ONLY)
    assert not again.is_finished(picture, both)


def test_another_picture_is_found_out_whatever_is_asked_for(tmp_path, journal):
    picture = note(journal, tmp_path / "x.jpg", "x")
    picture.path.write_bytes(b"another")
    for kinds in (LABELS_ONLY, Outputs(masks=True)):
        with pytest.raises(ValueError, match="those of 'x' in"):
            journal.is_finished(picture, kinds)


def test_the_table_takes_names_that_are_not_utf8(tmp_path, journal):
    name = "W\udcff"  # what Python makes of the byte 255
    picture = ImageFile(name, tmp_path / "x.jpg")
    picture.path.touch()
    found = FakeSegmenter().segment(np.zeros((2, 3, 3), np.uint8), NAMES, False)
    journal.add(picture, fingerprint(picture.path), found, LABELS_ONLY)
    journal.close()
    assert table(journal)[1][0] == r"W\udcff"
    assert Journal(journal.out, NAMES, SETTINGS, overwrite=False).finished.keys() == {name}
