"""Twenty kills of one evaluation: no image is lost or repeated, and the results are the same."""

from collections import Counter
from pathlib import Path

import pytest

from evaluation.test_run import arguments, make, numbers
from ovss_refine.cli import main
from ovss_refine.folders.records import read_all

SCRIPT = Path(__file__).with_name("interrupted.py")
KILLS, IMAGES = 20, 90


@pytest.mark.slow("twenty attempts, and 180 images evaluated")
def test_twenty_kills_at_random_moments(tmp_path, forks):
    ids = make(tmp_path, "folder", count=IMAGES)
    line = arguments(tmp_path, "folder", "--rows", "baseline", "refined")
    done = forks.run(SCRIPT.read_text(), KILLS, 0, *line)
    assert done.returncode == 0, done.stderr
    assert Counter(done.stdout.split()) == {"killed": 15, "torn": 5}
    kept = [record["id"] for record in read_all(tmp_path / "out")]
    assert 20 <= len(kept) < IMAGES  # it progressed, and did not finish
    assert len(kept) == len(set(kept))
    assert not (tmp_path / "out/results.json").exists()

    assert main(line) == 0
    after = [record["id"] for record in read_all(tmp_path / "out")]
    assert after[: len(kept)] == kept  # none of them was repeated
    assert sorted(after) == sorted(ids)
    assert main(arguments(tmp_path, "folder", "--rows", "baseline", "refined", out="whole")) == 0
    assert numbers(tmp_path / "out") == numbers(tmp_path / "whole")
