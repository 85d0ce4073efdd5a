"""Which images files, folders and patterns name, and the names of their results."""

import pytest

from ovss_refine.segment.inputs import find_pictures


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Some files in `p`, results of an earlier run among them."""
    for name in (
        *("p/a/x.jpg", "p/b/x.png", "p/b/c/y.webp", "p/z.JPG", "p/u.v.tif", "p/[1].png"),
        *("p/notes.txt", "p/._z.JPG", "p/g.gif", "p/out/z_labels.png"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(inputs, out):
    return {p.name: p.path.as_posix() for p in find_pictures(inputs.split(), out)}


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        ("p/z.JPG", {"z": "p/z.JPG"}),
        ("p/g.gif", {"g": "p/g.gif"}),  # any file that is named is tried
        ("p/notes.txt", {"notes": "p/notes.txt"}),
        ("p", {"[1]": "p/[1].png", "u.v": "p/u.v.tif", "z": "p/z.JPG"}),
        ("p/z.JPG p ./p", {"z": "p/z.JPG", "[1]": "p/[1].png", "u.v": "p/u.v.tif"}),  # once each
        ("p/[1].png", {"[1]": "p/[1].png"}),
        ("p/[uz].*", {"u.v": "p/u.v.tif", "z": "p/z.JPG"}),
        ("p/*.gif", {"g": "p/g.gif"}),
        ("p/*/x.*", {"a/x": "p/a/x.jpg", "b/x": "p/b/x.png"}),
        ("p/b/**/*.*", {"x": "p/b/x.png", "c/y": "p/b/c/y.webp"}),
        ("p/?/**", {"a/x": "p/a/x.jpg", "b/x": "p/b/x.png", "b/c/y": "p/b/c/y.webp"}),
    ],
)
@pytest.mark.filterwarnings("ignore:1 image file is left out.*gif")
@pytest.mark.parametrize("absolute", [False, True])
def test_names(photos, inputs, names, absolute):
    prefix = f"{photos}/" if absolute else ""
    inputs = " ".join(prefix + word for word in inputs.split())
    expected = {name: prefix + path for name, path in names.items()}
    assert found(inputs, photos / "p" / "out") == expected
    assert list(found(inputs, photos / "p" / "out")) == list(expected)


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        ("q", FileNotFoundError, "IMAGE must be an existing file or folder, or a pattern; got `q`"),
        ("p/z.JPG https://x.org/y.jpg", ValueError, r"got 'https://x\.org/y\.jpg'\. Download"),
        ("p/*.bmp", FileNotFoundError, r"must match an image .*; got the pattern 'p/\*\.bmp'"),
        ("p/out/*", FileNotFoundError, "must match an image outside of `--out`"),
        (
            "p/a p/b",
            ValueError,
            r"different names, .*; got `p/a/x\.jpg` and `p/b/x\.png`\.",
        ),
        ("p/out", ValueError, "`--out` must not contain the images to segment; got `p/out`"),
        ("p/out/z_labels.png", ValueError, "`--out` must not contain .*; got `p/out/z_labels"),
        ("e", ValueError, r"`e` must contain images \(\.jpg, .*\); got none\. .* 'e/\*\*/\*'"),
    ],
)
def test_refused_inputs(photos, inputs, error, text):
    (photos / "e").mkdir()
    with pytest.raises(error, match=text):
        found(inputs, photos / "p" / "out")


def test_names_are_compared_without_case(photos):
    (photos / "Z.png").touch()
    with pytest.raises(ValueError, match=r"got `Z\.png` and `p/z\.JPG`\..*'photos/\*\*/\*\.jpg'"):
        found("Z.png p/z.JPG", photos / "out")


def test_a_tilde_is_the_home_folder_in_patterns_too(photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos))
    for word in ("~/p/z.JPG", "~/p/z*"):
        assert found(word, photos / "out") == {"z": f"{photos}/p/z.JPG"}


def test_a_tilde_without_a_home_is_a_character(photos):
    (photos / "~tmp.png").touch()
    assert found("~tmp.png", photos / "out") == {"~tmp": "~tmp.png"}
    with pytest.raises(FileNotFoundError, match="or a pattern; got `~nobody/x`"):
        found("~nobody/x", photos / "out")


@pytest.mark.filterwarnings("ignore:1 image file is left out.*gif")
def test_hidden_folders_are_skipped_unless_named(photos):
    (photos / "p" / ".small").mkdir()
    (photos / "p" / ".small" / "s.png").touch()
    assert ".small/s" not in found("p/**/*", photos / "out")
    assert found("p/.small/*", photos / "out") == {"s": "p/.small/s.png"}
    assert list(found("p/.s*/*", photos / "out")) == [".small/s"]


@pytest.mark.parametrize("inputs", ["q", "q/*", "q/**/*"])
def test_image_files_that_are_left_out_are_counted_and_named(photos, inputs):
    names = "a.jpg IMG_1.HEIC IMG_2.heic b.NEF c.jxl notes.txt a.npz .d.heic"
    (photos / "q" / "out").mkdir(parents=True)
    (photos / "q" / "out" / "x.heic").touch()
    for name in names.split():
        (photos / "q" / name).touch()
    with pytest.warns(UserWarning, match="left out") as caught:
        assert found(inputs, photos / "q" / "out") == {"a": "q/a.jpg"}
    (warning,) = caught
    text = "4 image files are left out, `q/IMG_1.HEIC` the first: .heic (2), .jxl (1), .nef (1)."
    assert text in str(warning.message)
    assert "heif-convert" in str(warning.message)
    assert "raw files" in str(warning.message)


def test_a_folder_of_images_that_are_not_read(photos):
    (photos / "q").mkdir()
    (photos / "q" / "x.HEIF").touch()
    for inputs in ("q", "q/*"):
        with pytest.raises((ValueError, FileNotFoundError), match=r"\.heif \(1\).*HEIC and HEIF"):
            found(inputs, photos / "out")
    assert found("q/*.HEIF", photos / "out") == {"x": "q/x.HEIF"}  # tried, as it is named
