"""Tables as Markdown and as CSV."""

import csv

import pytest

from ovss_refine.folders.tables import markdown_table, write_csv


def test_text_is_aligned_left_and_numbers_right():
    rows = [["class", "baseline", "refined"], ["sky", "7.5", "-"], ["long name", "100.00", "1"]]
    assert markdown_table(rows, text_columns=1).splitlines() == [
        "| class     | baseline | refined |",
        "| --------- | -------: | ------: |",
        "| sky       |      7.5 |       - |",
        "| long name |   100.00 |       1 |",
    ]
    assert markdown_table(rows, text_columns=2).splitlines()[1:3] == [
        "| --------- | -------- | ------: |",
        "| sky       | 7.5      |       - |",
    ]


def test_rows_must_have_one_length():
    with pytest.raises(ValueError, match="zip"):
        markdown_table([["a", "b"], ["c"]], text_columns=1)


def test_csv_keeps_commas_and_escapes_surrogates(tmp_path):
    path = tmp_path / "a.csv"
    write_csv(path, iter([["name", "x"], ["sea, deep", None], ["W\udcff\u00fc", 0.5]]))
    assert path.read_bytes().endswith(b"\n")
    assert b"\r" not in path.read_bytes()
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["name", "x"],
            ["sea, deep", ""],
            ["W\\udcff\u00fc", "0.5"],
        ]


def test_a_failed_csv_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")

    def rows():
        yield ["name"]
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write_csv(path, rows())
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a.csv", "old")]
