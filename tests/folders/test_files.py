"""Reading images, and writing files whole. More bad files are in cli/test_refine.py."""

import errno
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from ovss_refine.folders.files import read_json, write_whole
from ovss_refine.images import MAX_PIXELS
from ovss_refine.images.read import read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, None])
@pytest.mark.parametrize("old", [{}, {"file": b"old"}])
def test_files_are_written_whole_or_not_at_all(tmp_path, old, error):
    def listing():
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def write(file):
        file.write(b"half, ")
        assert listing().get("file") == old.get("file")
        if error:
            raise error("midway")
        file.write(b"whole")

    if old:
        (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(error, match="midway") if error else nullcontext():
        write_whole(tmp_path / "file", write)
    assert listing() == (old if error else {"file": b"half, whole"})


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    transposed = PIXELS.swapaxes(0, 1) if orientation > 4 else PIXELS
    down, right = (-1 if orientation in group else 1 for group in ((3, 4, 7, 8), (2, 3, 6, 7)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), transposed[::down, ::right])


PALETTE = Image.fromarray(PIXELS).quantize(16, dither=Image.Dither.NONE)  # 15 pixels: exact
TRANSPARENT = PALETTE.copy()
TRANSPARENT.info["transparency"] = bytes([0, 128, *[255] * 14])
KINDS = {
    "RGBA": (Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]])), PIXELS),
    "L": (Image.fromarray(PIXELS[..., 0]), PIXELS[..., :1].repeat(3, -1)),
    "P": (PALETTE, PIXELS),
    "P, transparent": (TRANSPARENT, PIXELS),
    "CMYK": (Image.new("CMYK", (5, 3), (0, 255, 0, 0)), np.full_like(PIXELS, (255, 0, 255))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_mode_become_rgb(tmp_path, kind):
    path = tmp_path / ("a.tif" if kind == "CMYK" else "a.png")
    KINDS[kind][0].save(path)
    with Image.open(path) as saved:
        assert saved.mode == kind.partition(",")[0]
    np.testing.assert_array_equal(read_image(path), KINDS[kind][1], strict=True)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_truncated_images_are_refused(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(PIXELS.repeat(20, 0).repeat(20, 1)).save(path)
    assert read_image(path).shape == (60, 100, 3)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"`.*a\.\w+` must be a readable image; got "):
        read_image(path)


DEEP = np.random.default_rng(1).integers(0, 1 << 16, (3, 5), dtype=np.uint16)
DEEP[0, :2] = 0, 0xFFFF


@pytest.mark.parametrize(
    ("kind", "suffix"), [("<u2", ".png"), ("<u2", ".tif"), (">u2", ".tif"), ("<i4", ".tif")]
)
def test_the_upper_8_of_16_bits_are_kept(tmp_path, kind, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(DEEP.astype(kind)).save(path)
    with Image.open(path) as saved:
        assert saved.mode.startswith("I")
    expected = (DEEP // 256).astype(np.uint8)[..., None].repeat(3, -1)
    np.testing.assert_array_equal(read_image(path), expected, strict=True)


@pytest.mark.parametrize("values", [DEEP.astype("<i4") + 1, DEEP.astype("<i4") - 1, DEEP / 7])
def test_other_value_types_are_refused(tmp_path, values):
    path = tmp_path / "a.tif"
    Image.fromarray(values.astype(np.float32) if values.dtype == float else values).save(path)
    with pytest.raises(ValueError, match=r"`.*a\.tif` must have values of 8 or 16 bits; got mode"):
        read_image(path)


def test_an_image_of_one_pixel_is_read(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]


def header_only(path, width, height):
    """Write a PNG whose header gives a large size, with hardly any data."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", data))


def test_the_size_in_the_header_is_limited(tmp_path):
    path, before = tmp_path / "a.png", Image.MAX_IMAGE_PIXELS
    header_only(path, 20000, 15000)
    says = r"`.*a\.png` must have at most 50,000,000 pixels; got 20000 x 15000 = 300,000,000\. "
    with pytest.raises(
        ValueError, match=says + r"`max_pixels` \(--max-pixels\) raises the limit\."
    ):
        read_image(path, max_pixels=MAX_PIXELS)
    header_only(path, 20000, 150)  # otherwise this takes a gigabyte
    with pytest.raises(ValueError, match=r"must be a readable image; got .*truncated"):
        read_image(path, max_pixels=20000 * 150)
    assert before == Image.MAX_IMAGE_PIXELS


def test_pillows_limit_applies_only_without_max_pixels(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)  # of 15, more than twice
    np.testing.assert_array_equal(read_image(path, max_pixels=15), PIXELS)
    with pytest.raises(ValueError, match="must have at most 14 pixels; got 5 x 3 = 15"):
        read_image(path, max_pixels=14)
    with pytest.raises(ValueError, match=r"readable image; got 5 x 3 = 15 pixels, more than 14\.$"):
        read_image(path)
    assert Image.MAX_IMAGE_PIXELS == 7


@pytest.mark.parametrize("suffix", [".gif", ".png", ".tif"])
def test_an_animation_gives_its_first_frame_and_a_warning(tmp_path, suffix):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "green", "blue")]
    path = tmp_path / f"a{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=rf"`.*a\{suffix}` has 3 frames; the first is used\."):
        image = read_image(path)
    np.testing.assert_array_equal(image, np.full((4, 6, 3), (255, 0, 0)))


def test_the_second_view_of_a_phone_image_is_ignored_without_a_warning(tmp_path):
    one, two = (Image.new("RGB", (6, 4), colour) for colour in ("red", "blue"))
    one.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[two])
    with Image.open(tmp_path / "a.jpg") as saved:
        assert saved.n_frames == 2
    assert read_image(tmp_path / "a.jpg")[0, 0].argmax() == 0


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".tif", ".webp", ".bmp"])
def test_damaged_bytes_raise_valueerror_or_nothing(tmp_path, suffix):
    path, rng, refused = tmp_path / f"a{suffix}", np.random.default_rng(2), 0
    Image.fromarray(PIXELS.repeat(9, 0).repeat(9, 1)).save(path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(150):
        data = whole.copy()
        data[rng.integers(0, min(len(data), 300), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(data.tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of data that it ignores
            try:
                assert read_image(path, max_pixels=10_000).shape[-1] == 3
            except ValueError as err:
                refused += str(err).startswith(f"`{path}` must ")
    assert refused > 5


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_a_damaged_exif_block_is_ignored(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(PIXELS).save(path, lossless=True, exif=b"Exif\0\0garbage!")
    np.testing.assert_array_equal(read_image(path), PIXELS)


def test_a_file_name_of_the_maximum_length_is_written(tmp_path):
    path = tmp_path / ("x" * 255)
    write_whole(path, lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole"


def test_threads_may_write_one_file(tmp_path):
    path, content = tmp_path / "x", [bytes([n]) * 100_000 for n in range(8)]
    start = threading.Barrier(8)

    def write(n):
        start.wait()
        for _ in range(20):
            write_whole(path, lambda file: file.write(content[n]))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert path.read_bytes() in content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", ["folder", "pipe"])
def test_only_files_are_replaced(tmp_path, path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match=rf"`.*{path}` must be a new or regular file; got a "):
        write_whole(tmp_path / path, lambda file: file.write(b"whole"))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EDQUOT, None])
def test_what_cannot_be_written_is_named_in_one_sentence(tmp_path, number):
    def write(file):
        raise OSError(number, os.strerror(number)) if number else OSError("encoder error")

    with pytest.raises(OSError, match=r"^`.*/x` must be a file that can be written; got ") as err:
        write_whole(tmp_path / "x", write)
    assert err.value.errno == number
    assert isinstance(err.value, PermissionError) == (number == errno.EACCES)
    assert str(err.value).endswith(f"{os.strerror(number) if number else 'encoder error'}.")
    assert list(tmp_path.iterdir()) == []


JSON = {
    "nested lists": b"[" * 200_000,
    "nested and closed": b"[" * 100_000 + b"]" * 100_000,
    "nested objects": b'{"a":' * 200_000,
    "thousands of digits": b"9" * 5000,
    "not UTF-8": b'"\xff"',
    "nothing": b"",
    "zeros": bytes(100),
}


@pytest.mark.parametrize("kind", JSON)
def test_json_that_cannot_be_read_is_refused(tmp_path, kind):
    path = tmp_path / "x.json"
    path.write_bytes(JSON[kind])
    with pytest.raises(ValueError, match=r"^`.*x\.json` must be readable JSON; got .*\.$"):
        read_json(path)


def test_json_of_hundreds_of_megabytes_is_refused(tmp_path):
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no space on the disk
    with pytest.raises(ValueError, match=r"at most 67,108,864 bytes of JSON; got more\.$"):
        read_json(path)


def test_postscript_is_not_run(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)
    with pytest.raises(ValueError, match=r"`.*x\.png` must be a readable image; got PostScript"):
        read_image(path)
