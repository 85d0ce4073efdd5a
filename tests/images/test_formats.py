"""Which files are images, and what is said about those that cannot be read."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ovss_refine.images.formats import how_to_read, left_out
from ovss_refine.images.read import read_image, read_oriented, upright_size

HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(200)


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("x.HEIC", HEIC, "heif-convert"),
        ("x.heif", b"junk", "heif-convert"),
        ("x.jpg", HEIC, "heif-convert"),  # renamed by a program
        ("x.CR2", b"junk", "A camera's raw files are not supported"),
        ("x.avif", b"junk", r"needs Pillow 11\.3"),
        ("x.jpg", HEIC.replace(b"heic", b"avif"), r"needs Pillow 11\.3"),
        ("x.jxl", b"junk", "Convert it to JPEG or PNG first"),
        ("x.jpg", b"junk", r"cannot identify image file '.*x\.jpg'\.$"),
    ],
)
def test_what_an_image_that_cannot_be_read_needs(tmp_path, name, content, advice):
    path = tmp_path / name
    path.write_bytes(content)
    for read in (read_image, upright_size):
        with pytest.raises(ValueError, match=rf"`.*{name}` must be a readable ima.*{advice}"):
            read(path)


def test_the_preview_in_a_raw_file_is_not_taken_for_the_photograph(tmp_path):
    Image.new("RGB", (16, 12)).save(tmp_path / "x.tif")
    (tmp_path / "x.tif").rename(tmp_path / "x.NEF")
    with pytest.raises(ValueError, match=r"Pillow reads a preview at best.* export them as JPEG"):
        read_image(tmp_path / "x.NEF")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "y.NEF")


@pytest.mark.parametrize("suffix", ["avif", "gif", "jp2"])
def test_other_formats_are_read_where_pillow_can(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    try:
        Image.new("RGB", (16, 12)).save(path)
    except (KeyError, OSError, ValueError):
        pytest.skip("this Pillow does not write it")
    assert read_image(path).shape == (12, 16, 3)


def test_left_out(tmp_path):
    names = "a.jpg b.HEIC c.heic d.gif .e.heic f.txt g.npz h"
    paths = [tmp_path / name for name in names.split()]
    (tmp_path / "folder.heic").mkdir()
    assert left_out(paths[:1]) == left_out([tmp_path / "folder.heic"]) == ""
    assert left_out(paths).startswith(
        f"3 image files are left out, `{tmp_path}/b.HEIC` the first: .gif (1), .heic (2)."
    )
    assert left_out(paths).count("heif-convert") == 1
    assert ".jpg (1)" in left_out(paths, ("_left.png",))
    assert how_to_read(paths[-1]) == ""


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [None, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_the_size_before_decoding_is_that_of_the_pixels(tmp_path, orientation, suffix):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x112] = orientation
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (16, 12)).save(path, exif=exif)
    pixels, undone = read_oriented(path)
    assert upright_size(path) == (pixels.shape[1::-1], undone)
    assert undone == (orientation if orientation in range(2, 9) else 1)
    assert (pixels.shape == (16, 12, 3)) == (undone > 4)
    np.testing.assert_array_equal(read_image(path), pixels)


def test_suffixes_need_no_pillow():
    code = "import sys, ovss_refine.images.formats; print({'PIL', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
