"""Which uploads are accepted, and the messages for the others."""

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
    """Write a file of a few bytes whose header claims side x side pixels."""
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


def test_an_image_is_read(tmp_path):
    path = tmp_path / "my photo.png"
    Image.fromarray(RGB).save(path)
    image = read_upload(path, **LIMITS)
    assert image.name == "my photo"
    assert_array_equal(image.pixels, RGB)


def test_exif_orientation_is_applied(tmp_path):
    path = tmp_path / "x.png"
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(RGB).save(path, exif=exif)
    assert read_upload(path, **LIMITS).pixels.shape == (40, 30, 3)


def refusal(path, **limits):
    with pytest.raises(ValueError, match=r".") as caught:
        read_upload(path, **(LIMITS | limits))
    # The server's folders are not revealed.
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


def test_a_text_file_is_refused(tmp_path):
    path = tmp_path / "x.png"
    path.write_text("not an image")
    assert refusal(path).startswith("`x.png` must be a readable image; got cannot identify")


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(RGB).save(path)
    path.write_bytes(path.read_bytes()[:900])
    assert refusal(path).startswith("`x.png` must be a readable image")


def test_a_file_of_too_many_bytes_is_refused(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(RGB).save(path)
    size = path.stat().st_size
    message = refusal(path, max_bytes=size - 1)
    assert f"`x.png` must have at most {size - 1:,} bytes; got {size:,}" in message
    assert read_upload(path, **(LIMITS | {"max_bytes": size})).name == "x"


def test_too_many_pixels_are_refused_before_decoding(tmp_path):
    path = tmp_path / "x.png"
    huge_png(path, 20_000)  # Pillow's own limit would be reached at 179 megapixels
    assert "at most 10,000 pixels; got 20000 x 20000" in refusal(path)


def test_a_missing_file_is_reported(tmp_path):
    assert "`x.png` is gone from the server" in refusal(tmp_path / "x.png")
