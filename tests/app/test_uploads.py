"""What is taken of what people drop on the page, and what is said of the rest."""

import struct
import zlib

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from ovss_refine.app.uploads import read_upload

LIMITS = {"max_bytes": 100_000, "max_pixels": 10_000}
RGB = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def huge_png(path, side):
    """A file of a few bytes whose header promises side x side pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_a_photograph_is_read(tmp_path):
    path = tmp_path / "my photo.png"
    Image.fromarray(RGB).save(path)
    picture = read_upload(path, **LIMITS)
    assert picture.name == "my photo"
    assert_array_equal(picture.pixels, RGB)


def test_it_is_turned_upright(tmp_path):
    path = tmp_path / "x.png"
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(RGB).save(path, exif=exif)
    assert read_upload(path, **LIMITS).pixels.shape == (40, 30, 3)


def refusal(path, **limits):
    with pytest.raises(ValueError, match=r".") as caught:
        read_upload(path, **(LIMITS | limits))
    # Where it lies on the server is nobody's business.
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


def test_text_is_no_picture(tmp_path):
    path = tmp_path / "x.png"
    path.write_text("not a picture")
    assert refusal(path).startswith("`x.png` must be a readable image; got cannot identify")


def test_a_cut_file_is_no_picture(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(RGB).save(path)
    path.write_bytes(path.read_bytes()[:900])
    assert refusal(path).startswith("`x.png` must be a readable image")


def test_too_many_bytes(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(RGB).save(path)
    size = path.stat().st_size
    said = refusal(path, max_bytes=size - 1)
    assert f"`x.png` must have at most {size - 1:,} bytes; got {size:,}" in said
    assert read_upload(path, **(LIMITS | {"max_bytes": size})).name == "x"


def test_too_many_pixels_are_seen_before_they_are_decoded(tmp_path):
    path = tmp_path / "x.png"
    huge_png(path, 20_000)  # Pillow's own limit would be reached at 179 megapixels
    assert "at most 10,000 pixels; got 20000 x 20000" in refusal(path)


def test_a_file_that_is_gone(tmp_path):
    assert "`x.png` is gone from the server" in refusal(tmp_path / "x.png")
