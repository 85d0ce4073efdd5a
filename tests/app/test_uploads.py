"""Which uploads are accepted, and the messages for the others."""

import os
import struct
import zlib

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from ovss_refine.app.uploads import MAX_AGE_S, UPLOADS, Uploads, read_upload

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
    assert "at most 50,000,000 pixels; got 20000 x 20000" in refusal(path)
    message = refusal(path, max_pixels=60_000_000)
    assert "at most 60,000,000 pixels" in message


@pytest.mark.parametrize(
    ("size", "small"),
    [
        ((200, 100), (141, 70)),
        ((100, 200), (70, 140)),
        ((101, 100), (100, 99)),
        ((1, 20_000), None),
    ],
)
def test_a_large_image_is_reduced(tmp_path, size, small):
    path = tmp_path / "x.png"
    Image.new("RGB", size, (10, 20, 30)).save(path)
    image = read_upload(path, **LIMITS)
    H, W, _ = image.pixels.shape
    assert (small or (1, 10_000)) == (W, H)
    assert LIMITS["max_pixels"] >= W * H
    assert image.full_size == size
    assert (image.pixels == (10, 20, 30)).all()


def test_an_image_at_the_limit_is_not_reduced(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(RGB).save(path)
    image = read_upload(path, max_bytes=10**6, max_pixels=1200)
    assert image.full_size is None
    assert_array_equal(image.pixels, RGB)
    assert read_upload(path, max_bytes=10**6, max_pixels=None).full_size is None


def test_a_reduced_pixel_is_the_mean_of_those_it_replaces(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(RGB).save(path)
    image = read_upload(path, max_bytes=10**6, max_pixels=300)
    want = RGB.reshape(15, 2, 20, 2, 3).mean((1, 3))
    assert np.abs(image.pixels - want).max() <= 1  # each axis is rounded


def test_a_missing_file_is_reported(tmp_path):
    assert "`x.png` is gone from the server" in refusal(tmp_path / "x.png")


MOST = 1000


@pytest.fixture
def uploads(tmp_path):
    return Uploads(tmp_path, MOST, clock=lambda: 10_000.0)


def arrive(uploads, name, size=10, at=10_000.0, readers=1):
    """Write an upload as gradio does."""
    assert uploads.admit(size)
    path = uploads.root / f"{hash(name) % 16**64:064x}" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    for one in (path, path.parent):
        os.utime(one, (at, at))
    uploads.expect([str(path)] * readers)
    uploads.ended(size)
    return path


def test_an_upload_is_removed_when_its_last_reader_has_read_it(uploads):
    path = arrive(uploads, "a", readers=2)
    uploads.was_read(str(path))
    assert path.exists()
    uploads.was_read(str(path))
    assert list(uploads.root.iterdir()) == []


def test_reading_twice_takes_nothing_from_the_next_visitor(uploads):
    path = arrive(uploads, "a")
    assert uploads.admit(5)  # while another arrives, nothing is removed
    uploads.was_read(str(path))
    uploads.was_read(str(path))
    assert path.exists()
    uploads.expect([str(path)])  # it was the same file
    uploads.ended(5)
    assert path.exists()
    uploads.was_read(str(path))
    assert not path.exists()


def test_the_oldest_uploads_make_room(uploads):
    old = arrive(uploads, "old", MOST, at=9_800)
    others = [arrive(uploads, f"{n}", MOST, at=9_900 + n) for n in range(UPLOADS - 1)]
    assert old.exists()
    new = arrive(uploads, "new", MOST)
    assert not old.parent.exists()
    assert all(path.exists() for path in [*others, new])


def test_what_arrives_has_its_room_reserved(uploads):
    for _ in range(UPLOADS):
        assert uploads.admit(MOST)
    assert not uploads.admit(1)
    uploads.ended(MOST)
    assert uploads.admit(MOST)


def test_uploads_that_nobody_reads_and_partial_ones_are_removed_by_age(uploads):
    old, new = (arrive(uploads, str(at), at=at) for at in (9_999 - MAX_AGE_S, 9_999))
    partial = uploads.root / "tmpx1"
    partial.write_bytes(b"x")
    os.utime(partial, (9_999 - MAX_AGE_S,) * 2)
    session = uploads.root / ("0" * 32)
    session.mkdir()
    os.utime(session, (0, 0))
    uploads.tidy()
    assert not old.parent.exists()
    assert not partial.exists()
    assert new.exists()
    assert session.exists()


def test_only_complete_uploads_are_held(uploads, tmp_path):
    path = arrive(uploads, "a")
    assert uploads.holds(str(path))
    link = path.with_name("link.png")
    link.symlink_to("/etc/passwd")
    inner = path.parent / "b" / "c.png"
    inner.parent.mkdir()
    inner.write_bytes(b"x")
    for other in (link, inner, path.parent, tmp_path, f"{path.parent}/../{path.parent.name}/a.png"):
        assert not uploads.holds(str(other))
    for other in (None, 1, [], "", "\0", "http://192.0.2.1/x.png", path.name):
        assert not uploads.holds(other)
