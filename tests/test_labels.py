"""The grammar of labels, and every label that is refused."""

import subprocess
import sys

import pytest

from ovss_refine.labels import Labels, as_labels, parse_labels, read_labels

TEXT = "cat, dog/puppy, background: wall/floor/sky"
MEANT = Labels(names=("cat", "dog", "background"), prompts=("cat", "dog/puppy", "wall/floor/sky"))


@pytest.mark.parametrize(
    "given",
    [
        TEXT,
        "  cat ,dog / puppy,\tbackground :wall/ floor /sky",
        "cat\ndog/puppy\nbackground: wall/floor/sky",
        ["cat", "dog/puppy", "background: wall/floor/sky"],
        ("cat", " dog/ puppy ", "background:wall/floor/sky"),
        MEANT,
    ],
)
def test_all_forms_mean_the_same(given):
    labels = as_labels(given)
    assert labels == MEANT
    assert len(labels) == 3
    assert str(labels) == TEXT
    assert parse_labels(str(labels)) == labels


def test_a_comma_inside_a_list_is_part_of_the_text():
    assert as_labels(["a cat, asleep", "sofa"]).names == ("a cat, asleep", "sofa")


def test_blanks_inside_a_label_are_one():
    assert as_labels(["traffic\n  light"]) == Labels(("traffic light",), ("traffic light",))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("", ValueError, "no empty label"),
        (" , ", ValueError, "no empty label"),
        ([], ValueError, "at least one"),
        ("cat, dog,", ValueError, "no empty label.*Look for a comma too many"),
        ("cat,,dog", ValueError, "no empty label"),
        ("/cat", ValueError, "no empty label; got '/cat'"),
        ("cat/", ValueError, "no empty prompt; got one in 'cat'"),
        ("cat//kitten", ValueError, "no empty prompt; got one in 'cat'"),
        ("background:", ValueError, "no empty prompt; got one in 'background'"),
        (": wall", ValueError, "no empty label; got 'wall'"),
        ("a: b: c", ValueError, "at most one colon in a class; got 'a: b: c'"),
        ("cat, dog, cat", ValueError, "no name twice; got 'cat' twice"),
        ("Cat, cat", ValueError, "no name twice; got 'cat' twice"),
        ("cat/kitten/cat", ValueError, "no prompt twice; got 'cat' twice"),
        ("wall, background: floor/Wall", ValueError, "no prompt twice; got 'Wall' twice"),
        ("cat, caf\udce9", ValueError, "must be text; got 'caf.udce9', with half a letter"),
        ("cat: caf\udce9", ValueError, "must be text; got ' caf.udce9', with half a letter"),
        (["cat", 3], TypeError, "must be strings; got 3"),
        ([["cat"]], TypeError, r"must be strings; got \['cat'\]"),
        (None, TypeError, "must be a text such as .* or a list; got NoneType"),
        ({"cat"}, TypeError, "or a list; got set"),
    ],
)
def test_what_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        as_labels(given)


@pytest.mark.parametrize(
    ("names", "prompts", "error"),
    [(("a", "b"), ("a",), ValueError), ((), (), ValueError), (("a",), (1,), TypeError)],
)
def test_labels_by_hand_are_checked_too(names, prompts, error):
    with pytest.raises(error, match="`labels` must be"):
        Labels(names, prompts)


@pytest.mark.parametrize(
    "content",
    [
        b"cat\ndog/puppy\nbackground: wall/floor/sky\n\n",
        b"\xef\xbb\xbfcat\r\ndog, puppy\r\nbackground: wall, floor/ sky\r\n",  # as SCLIP's files
    ],
)
def test_a_file_has_a_class_on_every_line(tmp_path, content):
    (tmp_path / "labels.txt").write_bytes(content)
    assert read_labels(tmp_path / "labels.txt") == MEANT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n\ndog\n", "labels.txt` must have a class on every line; line 2 is blank"),
        (b"cat, dog, bird\n", "labels.txt` must have one class a line; got one line with commas"),
        (b"cat\ncat\n", "labels.txt`: `labels` must have no name twice"),
        (b"", "labels.txt`: `labels` must be at least one"),
        (b"\xff\xfe\x00", "labels.txt` must be a text file"),
    ],
)
def test_a_file_that_is_refused_is_named(tmp_path, content, message):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / "labels.txt")


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.txt` is none"):
        read_labels(tmp_path / "no.txt")


def test_labels_need_no_torch():
    code = "import sys, ovss_refine.labels; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_line_breaks_at_the_end_are_no_labels():
    assert parse_labels("\nfire\ngrass\n\n") == parse_labels("fire, grass")
