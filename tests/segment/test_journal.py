"""The record of a results folder: settings, finished images, areas."""

import csv
import json
import zlib

import numpy as np
import pytest
import torch

from fake_segmenter import FakeSegmenter
from ovss_refine.segment.inputs import ImageFile
from ovss_refine.segment.journal import Journal, fingerprint
from ovss_refine.segment.outputs import write_outputs
from ovss_refine.segment.request import Outputs
from ovss_refine.sources.processes import ProcessGroup

ALONE = ProcessGroup(0, 1, torch.device("cpu"))
NAMES = ("sky", "sea, deep")
SETTINGS = {"mode": "kl", "labels": NAMES, "background": (0, 0.5)}
LABELS_ONLY = Outputs(rle=False)


def note(journal, path, name, red=0, outputs=LABELS_ONLY):
    """Write and record an image of 3 x 2 pixels, of which `red` belong to the second class."""
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels.reshape(-1, 3)[:red, 0] = 255
    path.write_bytes(name.encode())
    found = FakeSegmenter().segment(pixels, NAMES, outputs.baseline)
    write_outputs(journal.out, name, found, outputs)
    image = ImageFile(name, path)
    journal.add(image, fingerprint(path), found, outputs)
    return image


def reopen(journal, settings=SETTINGS, overwrite=False):
    journal.close()
    return Journal(journal.out, NAMES, settings, ALONE, overwrite=overwrite)


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "new" / "out", NAMES, SETTINGS, ALONE, overwrite=False)


def table(journal):
    with (journal.out / "areas.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("missing", [None, "labels", "overlay", "masks/000_sky"])
def test_an_image_is_finished_if_all_its_files_exist(tmp_path, journal, missing):
    image = note(journal, tmp_path / "x.jpg", "x", 2, Outputs(rle=False, masks=True))
    if missing:
        (journal.out / f"x_{missing}.png").unlink()
    masks = Outputs(rle=False, masks=True)
    for again in (lambda: journal, lambda: reopen(journal)):
        again = again()
        assert again.is_finished(image, masks) == (missing is None)
        assert again.is_finished(image, LABELS_ONLY) == (missing in (None, "masks/000_sky"))
        assert not again.is_finished(image, Outputs())  # without its run lengths
        assert not again.is_finished(ImageFile("y", image.path), masks)


def test_another_image_of_the_same_name_is_refused(tmp_path, journal):
    image = note(journal, tmp_path / "x.jpg", "x")
    moved = ImageFile("x", image.path.rename(tmp_path / "moved.jpg"))
    assert journal.is_finished(moved, LABELS_ONLY)
    assert journal.is_finished(image, LABELS_ONLY)  # the missing file is reported when it is read
    moved.path.write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"those of 'x' in `.*out` are not of `.*moved\.jpg` as"):
        journal.is_finished(moved, LABELS_ONLY)


def test_other_settings_are_refused_by_name_unless_nothing_is_finished(tmp_path, journal):
    other = SETTINGS | {"mode": "fusion", "tau": 0.3}
    journal = reopen(journal, other)  # nothing is finished
    image = note(journal, tmp_path / "x.jpg", "x")
    says = r"`out` must be .*; in `.*` mode was 'fusion', is 'kl'; tau was 0\.3, is absent\. Take"
    with pytest.raises(ValueError, match=says + r" another folder, or pass --overwrite\."):
        reopen(journal)
    journal = Journal(journal.out, NAMES, other, ALONE, overwrite=False)
    assert journal.is_finished(image, LABELS_ONLY)
    with pytest.raises(BlockingIOError, match="must be written by one run at a time"):
        Journal(journal.out, NAMES, other, ALONE, overwrite=False)


def test_overwriting_discards_results_of_other_settings(tmp_path, journal):
    image = note(journal, tmp_path / "x.jpg", "x")
    journal = reopen(journal, overwrite=True)
    assert journal.is_finished(image, LABELS_ONLY)  # the settings are the same
    journal = reopen(journal, SETTINGS | {"mode": "fusion"}, overwrite=True)
    assert not journal.is_finished(image, LABELS_ONLY)
    journal.close()
    text = json.loads((journal.out / "segment.json").read_text())
    assert text["settings"]["mode"] == "fusion"
    assert text["starts"][-1]["versions"]["torch"]


@pytest.mark.parametrize("content", [None, "{", '{"setting": 1}'])
def test_lost_settings_are_reported(tmp_path, journal, content):
    note(journal, tmp_path / "x.jpg", "x")
    journal.close()
    (journal.out / "segment.json").unlink()
    if content:
        (journal.out / "segment.json").write_text(content)
    if content:
        says = r"`.*segment\.json` must be the manifest of a results folder; it is damaged\. Take"
        with pytest.raises(ValueError, match=says):
            Journal(journal.out, NAMES, SETTINGS, ALONE, overwrite=False)
    else:
        with pytest.raises(FileExistsError, match="must be a new or empty folder"):
            Journal(journal.out, NAMES, SETTINGS, ALONE, overwrite=False)
    Journal(journal.out, NAMES, SETTINGS, ALONE, overwrite=True).close()


def test_a_folder_as_the_first_version_left_it_is_resumed(tmp_path):
    """It had the settings and the last start only."""
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
        Journal(out, NAMES, SETTINGS | {"mode": "fusion"}, ALONE, overwrite=False)
    journal = Journal(out, NAMES, SETTINGS, ALONE, overwrite=False)
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
    Journal(
        tmp_path / "out", NAMES, SETTINGS, ALONE, overwrite=False
    ).close()  # hidden files are ignored
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(
        FileExistsError, match=r"`.*other` has 'mine\.txt'\. Take another folder, or pass"
    ):
        Journal(tmp_path / "other", NAMES, SETTINGS, ALONE, overwrite=False)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["mine.txt"]
    Journal(tmp_path / "other", NAMES, SETTINGS, ALONE, overwrite=True).close()
    with pytest.raises(FileExistsError, match=r"`out` must be a folder; `.*mine\.txt` is a file"):
        Journal(tmp_path / "other" / "mine.txt", NAMES, SETTINGS, ALONE, overwrite=True)


def test_the_table_has_the_last_result_of_every_image(tmp_path, journal):
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
def test_an_empty_run_leaves_nothing_behind(tmp_path, there):
    out = tmp_path / "out"
    if there:
        out.mkdir()
    Journal(out, NAMES, SETTINGS, ALONE, overwrite=False).close()
    assert out.exists() == there
    assert not there or not list(out.iterdir())


def test_other_settings_are_accepted_after_a_kill_without_results(tmp_path, journal):
    assert (journal.out / "segment.json").exists()
    journal._folder.records.close()  # a kill does no more
    Journal(journal.out, NAMES, {"mode": "fusion"}, ALONE, overwrite=False).close()


def test_files_of_an_earlier_run_do_not_count(tmp_path, journal):
    both = Outputs(rle=False, baseline=True)
    image = note(journal, tmp_path / "x.jpg", "x", outputs=both)
    assert journal.is_finished(image, both)
    again = reopen(journal, SETTINGS | {"mode": "other"}, overwrite=True)
    note(again, tmp_path / "x.jpg", "x")  # its baseline is the earlier run's
    assert again.is_finished(image, LABELS_ONLY)
    assert not again.is_finished(image, both)


def test_a_changed_image_is_refused_whatever_the_outputs(tmp_path, journal):
    image = note(journal, tmp_path / "x.jpg", "x")
    image.path.write_bytes(b"another")
    for outputs in (LABELS_ONLY, Outputs(masks=True)):
        with pytest.raises(ValueError, match="those of 'x' in"):
            journal.is_finished(image, outputs)


def test_the_table_takes_names_that_are_not_utf8(tmp_path, journal):
    name = "W\udcff"  # what Python makes of the byte 255
    image = ImageFile(name, tmp_path / "x.jpg")
    image.path.touch()
    found = FakeSegmenter().segment(np.zeros((2, 3, 3), np.uint8), NAMES, False)
    journal.add(image, fingerprint(image.path), found, LABELS_ONLY)
    journal.close()
    assert table(journal)[1][0] == r"W\udcff"
    assert Journal(journal.out, NAMES, SETTINGS, ALONE, overwrite=False).finished.keys() == {name}


def of_two(rank):
    """One of two processes that are no processes: tests open their journals in order."""
    return ProcessGroup(rank, 2, torch.device("cpu"))


def test_records_of_all_processes_are_one_journal(tmp_path):
    """The last start that finished an image counts, whichever process did."""
    out = tmp_path / "out"
    first, second = (Journal(out, NAMES, SETTINGS, of_two(r), overwrite=False) for r in (0, 1))
    note(second, tmp_path / "x.jpg", "x", 2)
    image = note(second, tmp_path / "y.jpg", "y", 5, Outputs(rle=False, baseline=True))
    note(first, tmp_path / "z.jpg", "z", 1)
    second.close()
    first.close()
    assert [row[0] for row in table(first)[1:]] == ["z", "z", "x", "x", "y", "y", "y"]
    again = Journal(out, NAMES, SETTINGS, ALONE, overwrite=False)
    assert set(again.finished) == {"x", "y", "z"}
    assert again.is_finished(image, Outputs(rle=False, baseline=True))
    note(again, tmp_path / "y.jpg", "y", 6)  # in a file that is read before the other
    again.close()
    assert [row[2:5] for row in table(again) if row[0] == "y"] == [["1", "sea, deep", "6"]]
    last = Journal(out, NAMES, SETTINGS, ALONE, overwrite=False)
    assert not last.is_finished(image, Outputs(rle=False, baseline=True))
    last.close()


def test_other_settings_discard_the_records_of_all_processes(tmp_path):
    out = tmp_path / "out"
    first, second = (Journal(out, NAMES, SETTINGS, of_two(r), overwrite=False) for r in (0, 1))
    note(second, tmp_path / "x.jpg", "x")
    second.close()
    first.close()
    other = SETTINGS | {"mode": "fusion"}
    with pytest.raises(ValueError, match="mode was 'kl', is 'fusion'"):
        Journal(out, NAMES, other, ALONE, overwrite=False)
    journal = Journal(out, NAMES, other, ALONE, overwrite=True)
    assert journal.finished == {}
    journal.close()
    assert all(not path.read_bytes() for path in out.glob("records.*.jsonl"))


def test_a_process_of_an_earlier_run_that_still_writes_keeps_its_records(tmp_path):
    out = tmp_path / "out"
    first, second = (Journal(out, NAMES, SETTINGS, of_two(r), overwrite=False) for r in (0, 1))
    note(second, tmp_path / "x.jpg", "x")
    first.close()  # killed, but the other was not
    with pytest.raises(BlockingIOError, match=r"another has `records\.1\.jsonl` open"):
        Journal(out, NAMES, SETTINGS | {"mode": "fusion"}, ALONE, overwrite=True)
    assert (out / "records.1.jsonl").stat().st_size
    second.close()
