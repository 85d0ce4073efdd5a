"""Pictures in every form that people have them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ovss_refine.images.convert import as_rgb

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
TENSOR = torch.tensor(RGB).permute(2, 0, 1)
ALPHA = np.dstack([RGB, np.full((5, 7), 9, np.uint8)])
FORMS = {
    "PIL": Image.fromarray(RGB),
    "PIL with alpha": Image.fromarray(ALPHA),
    "array": RGB,
    "float64 array": RGB / 255,
    "float16 array": (RGB / 255).astype(np.float16),
    "tensor": TENSOR,
    "float tensor": TENSOR / 255,
    "float64 tensor with gradient": (TENSOR.double() / 255).requires_grad_(),
    "strided tensor": TENSOR.flip(2).contiguous().flip(2),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_picture(form):
    found = as_rgb(FORMS[form], "image")
    assert (found.shape, found.dtype) == ((5, 7, 3), np.uint8)
    np.testing.assert_array_equal(found, RGB)


def test_a_path_is_read_whatever_its_type(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "x.png")
    for path in (tmp_path / "x.png", str(tmp_path / "x.png")):
        np.testing.assert_array_equal(as_rgb(path, "image"), RGB)


def test_pil_images_stand_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the left of upright
    turned = Image.fromarray(np.rot90(RGB).copy())
    turned.info["exif"] = exif.tobytes()
    np.testing.assert_array_equal(as_rgb(turned, "image"), RGB)


@pytest.mark.parametrize("form", ["array", "tensor"])
def test_later_changes_of_the_callers_picture_are_not_seen(form):
    mine = RGB.copy() if form == "array" else TENSOR.clone()
    found = as_rgb(mine, "image")
    mine[:] = 0
    np.testing.assert_array_equal(found, RGB)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (ALPHA, ValueError, r"must be an array \[H, W, 3\]; got \[5, 7, 4\]. Of RGBA take"),
        (RGB[..., 0], ValueError, r"must be an array \[H, W, 3\]; got \[5, 7\]"),
        (RGB[None], ValueError, r"got \[1, 5, 7, 3\].*several images go into a list"),
        (RGB[:0], ValueError, r"got \[0, 7, 3\]"),
        (RGB.astype(int), TypeError, "must be a uint8 or float array; got int64"),
        (RGB.astype(float), ValueError, r"in \[0, 1\] when .* got values from .* to 2\d\d. Divide"),
        (np.full((2, 2, 3), np.nan), ValueError, "must be finite .* got values from nan to nan"),
        (TENSOR.permute(1, 2, 0), ValueError, r"must be a tensor \[3, H, W\]; got \[5, 7, 3\]"),
        (TENSOR[:, :0], ValueError, r"must be a tensor \[3, H, W\]; got \[3, 0, 7\]"),
        (TENSOR.float(), ValueError, "divide by 255"),
        (TENSOR.int(), TypeError, "must be uint8 or floating-point; got torch.int32"),
        (Image.fromarray(RGB[..., 0] / np.float32(9)), ValueError, "8 or 16 bits; got mode 'F'"),
        (b"bytes", TypeError, "must be a path, a PIL image, an array .* got bytes"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_what_is_refused(image, error, message):
    with pytest.raises(error, match=f"`image` .*{message}"):
        as_rgb(image, "image")


@pytest.mark.parametrize("form", [*FORMS, "path"])
def test_the_largest_picture_is_taken_and_no_larger_one(tmp_path, form):
    Image.fromarray(RGB).save(tmp_path / "x.png")
    image = FORMS.get(form, tmp_path / "x.png")
    as_rgb(image, "image", max_pixels=35)
    with pytest.raises(ValueError, match=r"at most 34 pixels; got 7 x 5 = 35.*`max_pixels`"):
        as_rgb(image, "image", max_pixels=34)


def test_a_pil_image_that_cannot_be_read_is_named():
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    broken = Image.open(io.BytesIO(file.getvalue()[:-40]))
    with pytest.raises(ValueError, match="`image` must be a readable picture; got "):
        as_rgb(broken, "image")
