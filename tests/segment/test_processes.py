"""`segment` in several processes under torchrun gives the files of one, killed or not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovss_refine import Segmenter
from ovss_refine.folders.records import iterate
from ovss_refine.segment.run import run_segment
from segment.shared_run import request_of
from sources.test_processes import torchrun
from tiny_sources import Colours, Likeness

SCRIPT = (str(Path(__file__).with_name("shared_run.py")),)
COUNT = 7
NOBODY = ("-", "0")


@pytest.fixture
def photos(tmp_path):
    """An odd number of images of two sizes, with blocks of colour."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(COUNT):
        rng = np.random.default_rng(index)
        blocks = rng.integers(0, 256, (4, 6 + index % 2, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(7, 0).repeat(7, 1)).save(folder / f"p{index}.png")
    return folder


def contents(out):
    """Return what a run leaves for its user: the files, and the rows of the table in any order."""
    table = sorted((out / "areas.csv").read_text().splitlines())
    files = [path for path in out.iterdir() if path.name[0] == "p"]
    return {path.name: path.read_bytes() for path in files} | {"areas": table}


def names(path):
    return [record["name"] for record, _ in iterate(path)]


@pytest.mark.slow("eight processes import torch")
def test_killed_and_resumed_runs_of_several_processes_equal_one(tmp_path, photos):
    one, out = tmp_path / "one", tmp_path / "out"
    assert run_segment(request_of(photos, one), Segmenter(Colours(), Likeness())) == 0
    expected = contents(one)
    assert len(expected) == 3 * COUNT + 1
    assert len({value for key, value in expected.items() if key.endswith("labels.png")}) == COUNT

    killed = torchrun(2, [str(photos), str(out), "1", "2"], SCRIPT)  # the second, after two of 3
    assert killed.returncode != 0
    assert names(out / "records.1.jsonl") == ["p1", "p3"]
    assert not (out / "p5_labels.png").exists()
    before = [*names(out / "records.0.jsonl"), "p1", "p3"]

    done = torchrun(3, [str(photos), str(out), *NOBODY], SCRIPT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"results: {out} ({COUNT} of {COUNT} images)\n") == 1
    assert f"{len(before)} of {COUNT} images were finished before\n" in done.stdout
    kept = [name for path in sorted(out.glob("records.*.jsonl")) for name in names(path)]
    assert sorted(kept) == [f"p{i}" for i in range(COUNT)]  # none was repeated
    assert contents(out) == expected


@pytest.mark.slow("two processes import torch")
def test_failures_of_all_processes_are_listed_once(tmp_path, photos):
    """The process that finds them leaves the others time to finish."""
    (photos / "p1.png").write_bytes(b"")
    (photos / "p4.png").write_bytes(b"")
    out = tmp_path / "out"
    done = torchrun(2, [str(photos), str(out), *NOBODY], SCRIPT)
    assert done.returncode == 1
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert [line.partition(".png")[0][-2:] for line in failed] == ["p4", "p1"]  # by rank
    assert f"results: {out} (5 of 7 images)\n" in done.stdout
    assert len(list(out.glob("p*_labels.png"))) == 5
