"""Sums over the records of a folder, of all processes."""

import pytest

from folders.test_records import record, write
from ovss_refine.evaluation.totals import add_up


def test_records_of_all_processes_are_added_up(tmp_path):
    write(tmp_path, record("x", 1), record("y", 10), rank=0)
    write(tmp_path, record("z", 100), {"id": "w", "failure": "no mask"}, rank=1)
    totals = add_up(tmp_path, ["a"], 2)
    assert totals.counts["a"].tolist() == [[111, 0], [0, 6]]
    assert totals.done == {"x", "y", "z"}
    assert totals.failures == {"w": "no mask"}
    assert totals.seconds == {"a": 1.5}


def test_a_result_replaces_a_failure_but_not_a_result(tmp_path):
    write(tmp_path, {"id": "x", "failure": "no mask"}, record("x"))
    assert add_up(tmp_path, ["a"], 2).failures == {}
    write(tmp_path, record("x"), rank=1)
    with pytest.raises(ValueError, match="one result for each image; got two for 'x'"):
        add_up(tmp_path, ["a"], 2)
