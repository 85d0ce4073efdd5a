"""Reading pictures and arrays, and writing files whole. More bad files are in test_cli.py."""

from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from ovss_refine.files import read_arrays, read_image, write_whole

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
def test_pictures_are_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    turned = PIXELS.swapaxes(0, 1) if orientation > 4 else PIXELS
    down, right = (-1 if orientation in group else 1 for group in ((3, 4, 7, 8), (2, 3, 6, 7)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), turned[::down, ::right])


PALETTE = Image.fromarray(PIXELS).quantize(16, dither=Image.Dither.NONE)  # 15 pixels: exact
SEE_THROUGH = PALETTE.copy()
SEE_THROUGH.info["transparency"] = bytes([0, 128, *[255] * 14])
KINDS = {
    "RGBA": (Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]])), PIXELS),
    "L": (Image.fromarray(PIXELS[..., 0]), PIXELS[..., :1].repeat(3, -1)),
    "P": (PALETTE, PIXELS),
    "P, see-through": (SEE_THROUGH, PIXELS),
    "CMYK": (Image.new("CMYK", (5, 3), (0, 255, 0, 0)), np.full_like(PIXELS, (255, 0, 255))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_every_kind_become_rgb(tmp_path, kind):
    path = tmp_path / ("a.tif" if kind == "CMYK" else "a.png")
    KINDS[kind][0].save(path)
    with Image.open(path) as saved:
        assert saved.mode == kind.partition(",")[0]
    np.testing.assert_array_equal(read_image(path), KINDS[kind][1], strict=True)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_truncated_pictures_are_refused(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(PIXELS.repeat(20, 0).repeat(20, 1)).save(path)
    assert read_image(path).shape == (60, 100, 3)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"`.*a\.\w+` must be a readable picture; got "):
        read_image(path)


def test_arrays_are_found_by_their_best_key(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, b=np.ones(2), a=np.zeros(3), c=np.ones(1), d=np.ones(1))
    assert list(read_arrays(path, ["x", "b"], ["a", "b"], optional=["y", "d"])) == ["b", "a", "d"]
    np.testing.assert_array_equal(read_arrays(path, ["a"])["a"], np.zeros(3))
    with pytest.raises(ValueError, match=r"array 'x' or 'y'; got \['a', 'b', 'c', 'd'\]\."):
        read_arrays(path, ["a"], ["x", "y"])


@pytest.mark.parametrize("kind", ["empty", "objects", "checksum", "compression"])
def test_damaged_archives_are_refused(tmp_path, kind):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.array([{}], dtype=object) if kind == "objects" else np.zeros(30))
    data = bytearray(path.read_bytes())
    data[data.index(b"NUMPY") + 200] ^= kind == "checksum"
    data[data.index(b"PK\x01\x02") + 10] ^= 99 * (kind == "compression")  # an unknown method
    path.write_bytes(b"" if kind == "empty" else data)
    with pytest.raises(ValueError, match=r"`.*a\.npz` must be a readable \.npz file; got "):
        read_arrays(path, ["a"])
