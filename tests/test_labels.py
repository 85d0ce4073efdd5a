"""The grammar of labels, and every label that is refused."""

import codecs

import pytest

from forks import fresh
from ovss_refine.labels import Labels, as_labels, parse_labels, read_labels

TEXT = "cat, dog/puppy, background: wall/floor/sky"
MEANT = Labels(
    names=("cat", "dog", "background"),
    synonyms=(("cat",), ("dog", "puppy"), ("wall", "floor", "sky")),
)


@pytest.mark.parametrize(
    "given",
    [
        TEXT,
        "  cat ,dog / puppy,\tbackground :wall/ floor /sky",
        "cat\ndog/puppy\nbackground: wall/floor/sky",
        ["cat", "dog/puppy", "background: wall/floor/sky"],
        ("cat", " dog/ puppy ", "background:wall/floor/sky"),
        {"cat": 0, "dog/puppy": 1, "background: wall/floor/sky": 2}.keys(),
        (text for text in TEXT.split(",")),
        MEANT,
    ],
)
def test_all_forms_mean_the_same(given):
    labels = as_labels(given)
    assert labels == MEANT
    assert len(labels) == 3
    assert labels.prompts == ("cat", "dog/puppy", "wall/floor/sky")
    assert labels.all_prompts == ("cat", "dog", "puppy", "wall", "floor", "sky")
    assert labels.prompt_index == (0, 1, 1, 2, 2, 2)
    assert str(labels) == TEXT
    assert parse_labels(str(labels)) == labels


def test_a_comma_inside_a_list_is_part_of_the_text():
    assert as_labels(["a cat, asleep", "sofa"]).names == ("a cat, asleep", "sofa")


def test_white_space_inside_a_label_is_collapsed():
    assert as_labels(["traffic\n  light"]) == Labels(("traffic light",), (("traffic light",),))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("", ValueError, "no empty name"),
        (" , ", ValueError, "no empty name"),
        ([], ValueError, "at least one"),
        ("cat, dog,", ValueError, "no empty name.*Check for a comma at the end"),
        ("cat,,dog", ValueError, "no empty name"),
        ("/cat", ValueError, "no empty name; got '/cat'"),
        ("cat/", ValueError, "no empty prompt; got one in 'cat'"),
        ("cat//kitten", ValueError, "no empty prompt; got one in 'cat'"),
        ("background:", ValueError, "no empty prompt; got one in 'background'"),
        (": wall", ValueError, "no empty name; got 'wall'"),
        ("a: b: c", ValueError, "at most one colon; got 'a: b: c'"),
        ("cat, dog, cat", ValueError, "no name twice; got 'cat' twice"),
        ("Cat, cat", ValueError, "no name twice; got 'cat' twice"),
        ("cat/kitten/cat", ValueError, "no prompt twice; got 'cat' twice"),
        ("room: wall/Wall", ValueError, "no prompt twice; got 'Wall' twice in 'room'"),
        ("cat, caf\udce9", ValueError, "text that can be encoded; got 'caf.udce9'"),
        ("cat: caf\udce9", ValueError, "text that can be encoded; got 'caf.udce9'"),
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
    ("names", "synonyms", "error", "message"),
    [
        (("a", "b"), (("a",),), ValueError, "at least one.*got 2 names and 1 rows"),
        ((), (), ValueError, "at least one.*got 0 names"),
        (("a",), ((),), ValueError, "no empty prompt; got one in 'a'"),
        (("a",), ((1,),), TypeError, "must be strings; got 1"),
        ((1,), (("a",),), TypeError, "must be strings; got 1"),
        (("cat",), ("cat",), TypeError, "`synonyms` must be tuples of prompts; got 'cat'"),
        (("a",), (("b/c",),), ValueError, "contain no '/' and no colon; got 'b/c'"),
        (("a",), (("b: c",),), ValueError, "contain no '/' and no colon; got 'b: c'"),
    ],
)
def test_labels_by_hand_are_checked_too(names, synonyms, error, message):
    with pytest.raises(error, match=message):
        Labels(names, synonyms)


def test_labels_by_hand_may_be_lists():
    assert Labels(["a"], [["b ", " c"]]) == Labels(("a",), (("b", "c"),))


def read_file(tmp_path):
    (tmp_path / "x.txt").write_text("Screen door, screen\nblind, Screen\nearth/soil\nland; soil\n")
    return read_labels(tmp_path / "x.txt")


@pytest.mark.parametrize(
    "read",
    [
        read_file,
        lambda _: parse_labels("Screen door/screen, blind/Screen, earth/soil, land/soil"),
        lambda _: as_labels(["Screen door/screen", "blind/Screen", "earth/soil", "land/soil"]),
    ],
)
def test_one_prompt_of_two_classes_is_kept_with_one_warning(tmp_path, read):
    with pytest.warns(UserWarning, match="belong to several classes") as caught:
        labels = read(tmp_path)
    assert labels.prompts == ("Screen door/screen", "blind/Screen", "earth/soil", "land/soil")
    (warning,) = caught
    assert warning.filename == __file__
    told = str(warning.message)
    assert "them: 'screen' for ['Screen door', 'blind']; 'soil' for ['earth', 'land']." in told
    assert ("x.txt`: " in told) == (read is read_file)


def test_labels_that_are_passed_on_keep_their_names_and_warn_no_more():
    """The texts alone would give two classes named "wall"."""
    with pytest.warns(UserWarning, match="'wall' for"):
        labels = as_labels("background: wall/floor, other: wall")
    assert list(labels) == ["wall/floor", "wall"]
    assert as_labels(labels) is labels
    assert as_labels(["wall/floor", "sky"]).names == ("wall", "sky")


@pytest.mark.parametrize(
    "content",
    [
        b"cat\ndog/puppy\nbackground: wall/floor/sky\n\n",
        b"\xef\xbb\xbfcat\r\ndog, puppy\r\nbackground: wall, floor/ sky\r\n",  # as SCLIP's files
        b"cat\ndog; puppy\nbackground: wall;floor; sky \n \n\n",  # as ProxyCLIP's
        b"cat\rdog,puppy\rbackground: wall,floor,sky",
    ],
)
def test_a_file_has_a_class_on_every_line(tmp_path, content):
    (tmp_path / "labels.txt").write_bytes(content)
    path = tmp_path / "labels.txt"
    assert read_labels(path) == read_labels(str(path)) == as_labels(path) == MEANT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n\ndog\n", "labels.txt` must have a class on every line; line 2 is blank"),
        (b"\ncat\n", "labels.txt` must have a class on every line; line 1 is blank"),
        (b"cat\n \t\ndog\n", "labels.txt` must have a class on every line; line 2 is blank"),
        (b"cat, dog, bird\n", "labels.txt` must have one class a line; got one line with ','"),
        (b"cat; dog; bird\n", "labels.txt` must have one class a line; got one line with ','"),
        (b"cat\ncat\n", "labels.txt`: classes must have no name twice"),
        (b"cat\ndog,\n", "labels.txt`: classes must have no empty prompt; got one in 'dog'"),
        (b"", "labels.txt`: classes must be at least one"),
        ("cat\nfenêtre\n".encode("utf-16"), "labels.txt` .* got UTF-16. Save it as UTF-8"),
        (codecs.BOM_UTF16_BE + "cat\n".encode("utf-16-be"), "got UTF-16. Save it as UTF-8"),
        ("cat\ndog\n".encode("utf-16-le"), "labels.txt` must be UTF-8 text; got another encoding"),
        ("cat\ndog\n".encode("utf-32"), "got UTF-32. Save it as UTF-8"),
        (codecs.BOM_UTF32_BE + "cat\n".encode("utf-32-be"), "got UTF-32. Save it as UTF-8"),
        ("cat\nfenêtre\n".encode("latin-1"), "labels.txt` .* another encoding. Save it as UTF-8"),
    ],
)
def test_a_refused_file_is_named(tmp_path, content, message):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / "labels.txt")


@pytest.mark.parametrize(
    "content",
    [
        "0,wall\n1,floor\n",
        "1. wall\n2. floor\n",
        "0 wall\n1 floor\n2 sky\n",
        "Idx,Ratio,Name\n1,0.16,wall\n2,0.12,building\n",
        "wall\t0.16\nfloor\t0.12\n",
    ],
)
def test_rows_of_a_table_are_no_names(tmp_path, content):
    path = tmp_path / "labels.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"labels.txt` must have .*, like a row of a table\."):
        read_labels(path)


@pytest.mark.parametrize(
    "content", ["1 cent\n2 cents\n5 cents\n", "0\n1\n", "0: wall\n1: floor\n", "7 up\ncola\n"]
)
def test_names_may_begin_with_numbers(tmp_path, content):
    path = tmp_path / "labels.txt"
    path.write_text(content)
    assert read_labels(path).names[0] == content.splitlines()[0].partition(":")[0]


def test_byte_order_marks_are_no_part_of_names(tmp_path):
    """Files that were joined have one in the middle."""
    path = tmp_path / "labels.txt"
    path.write_text("\ufeff\ufeffcat\ndog\n\ufeffsky\n", encoding="utf-8")
    assert read_labels(path).names == ("cat", "dog", "sky")


def test_a_file_of_gigabytes_is_refused(tmp_path):
    with (tmp_path / "labels.txt").open("wb") as file:
        file.truncate(1 << 40)  # takes no space on the disk
    with pytest.raises(ValueError, match=r"labels.txt` must have at most 16,777,216 bytes of text"):
        read_labels(tmp_path / "labels.txt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no\.txt` must be an existing file of class names"
    ):
        read_labels(tmp_path / "no.txt")


def test_labels_need_neither_torch_nor_numpy():
    code = "import sys, ovss_refine.labels; print({'torch', 'numpy'} & {*sys.modules})"
    assert fresh(code) == "set()\n"


def test_line_breaks_at_the_end_are_ignored():
    assert parse_labels("\nfire\ngrass\n\n") == parse_labels("fire, grass")
