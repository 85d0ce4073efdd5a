"""Images in every form give the same image; anything else is refused, naming the argument."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from forks import fresh
from ovss_refine.images.convert import as_image_batch, as_image_list, as_image_tensor, as_rgb

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
OTHER = RGB[::-1, ::-1]
TENSOR = torch.tensor(RGB).permute(2, 0, 1)
FLOAT = TENSOR / 255
ALPHA = np.dstack([RGB, np.full((5, 7), 9, np.uint8)])
QUARTER_LEFT = 6  # EXIF: the pixels are stored a quarter turn to the left of upright


def rotated(pixels):
    """Store an image rotated, with the EXIF orientation that makes it upright."""
    exif = Image.Exif()
    exif[0x0112] = QUARTER_LEFT
    image = Image.fromarray(np.rot90(pixels).copy())
    image.info["exif"] = exif.tobytes()
    return image


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


FORMS = {
    "PIL": Image.fromarray(RGB),
    "PIL with alpha": Image.fromarray(ALPHA),
    "PIL rotated": rotated(RGB),
    "array": RGB,
    "read-only array": read_only(RGB),
    "flipped array": RGB[::-1].copy()[::-1],
    "float64 array": RGB / 255,
    "float32 array": (RGB / np.float32(255)),
    "big-endian array": (RGB / 255).astype(">f4"),
    "tensor": TENSOR,
    "float tensor": FLOAT,
    "float64 tensor with gradient": (TENSOR.double() / 255).requires_grad_(),
    "strided tensor": TENSOR.flip(2).contiguous().flip(2),
}
HALF = {
    "float16 array": (RGB / 255).astype(np.float16),
    "float16 tensor": FLOAT.half(),
    "bfloat16 tensor": FLOAT.bfloat16(),
}
REFUSED = [
    (ALPHA, ValueError, r"an array \[H, W, 3\]; got \[5, 7, 4\]. Drop alpha: `NAME\[..., :3\]`."),
    (RGB[..., 0], ValueError, r"an array .* got \[5, 7\]. Repeat .*: `np.dstack\(\[NAME\] \* 3\)`"),
    (RGB[..., :1], ValueError, r"got \[5, 7, 1\]. Repeat .*: `np.dstack\(\[NAME\] \* 3\)`."),
    (RGB.transpose(2, 0, 1), ValueError, r"got \[3, 5, 7\]. Pass `NAME.transpose\(1, 2, 0\)`."),
    (RGB[..., :2], ValueError, r"must be an array \[H, W, 3\]; got \[5, 7, 2\].$"),
    (RGB[:0], ValueError, r"must be an array \[H, W, 3\]; got \[0, 7, 3\].$"),
    (RGB.astype(int), TypeError, "must be a uint8 or float array; got int64"),
    (RGB > 9, TypeError, "must be a uint8 or float array; got bool"),
    (RGB.astype(float), ValueError, r"in \[0, 1\] when .* got values from .* divide by 255 first"),
    (RGB / 255 - 0.5, ValueError, "undo the model's normalisation first"),
    (np.full((2, 2, 3), np.nan), ValueError, "must be finite .* got values from nan to nan"),
    (TENSOR.permute(1, 2, 0), ValueError, r"\[5, 7, 3\]. Pass `NAME.permute\(2, 0, 1\)`."),
    (TENSOR[[0, 1, 2, 0]], ValueError, r"got \[4, 5, 7\]. Drop alpha: `NAME\[:3\]`."),
    (TENSOR[:1], ValueError, r"got \[1, 5, 7\]. Repeat .*: `NAME.expand\(3, -1, -1\)`."),
    (TENSOR[0], ValueError, r"got \[5, 7\]. Repeat .*: `NAME.expand\(3, -1, -1\)`."),
    (TENSOR[:, :0], ValueError, r"must be a tensor \[3, H, W\]; got \[3, 0, 7\].$"),
    (TENSOR.float(), ValueError, "divide by 255 first"),
    (TENSOR.int(), TypeError, "must be uint8 or floating-point; got torch.int32"),
    (Image.fromarray(RGB[..., 0] / np.float32(9)), ValueError, "8 or 16 bits; got mode 'F'"),
    (b"bytes", TypeError, "must be a path, a PIL image, an array .* got bytes"),
    (None, TypeError, "got NoneType"),
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_image(form):
    pixels = as_rgb(FORMS[form], "image")
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, RGB)
    image = as_image_tensor(FORMS[form], "image")
    assert image.dtype == torch.float32
    assert image.is_contiguous() or "tensor" in form
    torch.testing.assert_close(image, FLOAT)
    batch, several = as_image_batch(FORMS[form], "image")
    assert not several
    assert torch.equal(batch, image[None])


@pytest.mark.parametrize("form", HALF)
def test_half_precision_is_widened(form):
    expected = torch.as_tensor(HALF[form] if "tensor" in form else HALF[form].transpose(2, 0, 1))
    assert torch.equal(as_image_tensor(HALF[form], "image"), expected.float())
    if "bfloat16" not in form:
        np.testing.assert_array_equal(as_rgb(HALF[form], "image"), RGB)


def test_eight_bits_are_the_same_in_every_form():
    expected = as_image_tensor(TENSOR, "image")
    for form in ("PIL", "PIL with alpha", "PIL rotated", "array", "read-only array"):
        assert torch.equal(as_image_tensor(FORMS[form], "image"), expected)


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_floats_are_not_rounded_to_eight_bits(kind):
    fine = np.random.default_rng(1).random((5, 7, 3), np.float32)
    given = fine if kind == "array" else torch.from_numpy(fine).permute(2, 0, 1)
    expected = torch.from_numpy(fine).permute(2, 0, 1)
    assert torch.equal(as_image_tensor(given, "image"), expected)
    assert torch.equal(as_image_batch([given], "image")[0], expected[None])


def test_a_path_is_read_whatever_its_type(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "x.png")
    for path in (tmp_path / "x.png", str(tmp_path / "x.png")):
        np.testing.assert_array_equal(as_rgb(path, "image"), RGB)
        assert torch.equal(as_image_tensor(path, "image"), FLOAT)
        assert torch.equal(as_image_batch([path, path], "image")[0], torch.stack([FLOAT] * 2))
    missing = tmp_path / "missing.png"
    with pytest.raises(FileNotFoundError, match=r"^`image` must be an existing file; got `.*ing"):
        as_image_tensor(missing, "image")
    with pytest.raises(FileNotFoundError, match=r"^`image\[1\]` must be an existing file; got `"):
        as_image_batch([tmp_path / "x.png", missing], "image")


@pytest.mark.parametrize("path", ["a\0b.png", "a\0b.nef", "x" * 5000, "/"])
def test_paths_that_no_image_has(path):
    for convert in (as_rgb, as_image_tensor, as_image_batch):
        with pytest.raises(ValueError, match=r"^`.*` must be a readable image; got "):
            convert(path, "image")


def test_an_empty_path_is_not_the_current_folder():
    for convert in (as_rgb, as_image_tensor, as_image_batch):
        with pytest.raises(ValueError, match=r"^`image` must be a path; got ''"):
            convert("", "image")


@pytest.mark.parametrize("size", [(0, 0), (0, 4), (4, 0)])
def test_images_without_pixels_are_refused(size):
    for convert in (as_rgb, as_image_tensor, as_image_batch):
        with pytest.raises(ValueError, match=rf"^`x` must have pixels; got {size[0]} x {size[1]}"):
            convert(Image.new("RGB", size), "x")


def test_a_batch_refuses_the_images_that_are_refused_alone():
    """One that was cast from [0, 1] to uint8 is not hidden by others."""
    cast = TENSOR.clamp(max=1)
    batch = torch.stack([TENSOR, cast, TENSOR])
    for images, name in (
        (cast, "x"),
        (batch, r"x\[1\]"),
        (list(batch), r"x\[1\]"),
        (batch.permute(0, 2, 3, 1).numpy(), r"x\[1\]"),
    ):
        with pytest.raises(ValueError, match=rf"^`{name}` must be uint8 in .* 0 and 1 only"):
            as_image_batch(images, "x")
    assert as_image_batch(batch * 0, "x")[0].max() == 0  # black


def test_exif_is_applied_once_to_files_and_pil_images_alike(tmp_path):
    image = rotated(RGB)
    image.save(tmp_path / "x.png", exif=image.getexif())
    with Image.open(tmp_path / "x.png") as opened:
        assert opened.size == (5, 7)
        assert opened.getexif()[0x0112] == QUARTER_LEFT
        for given in (tmp_path / "x.png", opened, opened.convert("RGB"), image):
            for _ in range(2):  # the caller's image stays as it is
                np.testing.assert_array_equal(as_rgb(given, "image"), RGB)
                assert torch.equal(as_image_tensor(given, "image"), FLOAT)


@pytest.mark.parametrize("form", ["array", "tensor"])
def test_later_changes_of_the_callers_image_have_no_effect(form):
    mine = RGB.copy() if form == "array" else TENSOR.clone()
    found = as_rgb(mine, "image")
    mine[:] = 0
    np.testing.assert_array_equal(found, RGB)


def test_rounding_errors_of_resizing_are_clamped():
    image = FLOAT.clone()
    image[0, 0, :2] = torch.tensor([-5e-4, 1 + 5e-4])
    found = as_image_tensor(image, "image")
    assert torch.equal(found, image.clamp(0, 1))
    assert image.max() > 1  # the caller's own is as it was
    for value in (-2e-3, 1 + 2e-3):
        image[0, 0, 0] = value
        with pytest.raises(ValueError, match=r"`image` must be finite and in \[0, 1\]"):
            as_image_tensor(image, "image")


def test_a_float_image_cast_to_uint8_is_noticed():
    with pytest.raises(ValueError, match=r"`photo` must be uint8 in .* Multiply by 255"):
        as_image_tensor(RGB // 200, "photo")
    dark = Image.fromarray(RGB // 200)  # a file or PIL image cannot be mistaken
    assert torch.equal(as_image_tensor(dark, "photo"), torch.floor(TENSOR / 200) / 255)


@pytest.mark.parametrize("name", ["image", "photos"])
@pytest.mark.parametrize(("image", "error", "message"), REFUSED)
def test_what_is_refused(image, error, message, name):
    for convert in (as_rgb, as_image_tensor, as_image_batch):
        with pytest.raises(error, match=f"`{name}` .*{message}".replace("NAME", name)):
            convert(image, name)
    second = rf"{name}\[1\]"
    with pytest.raises(error, match=f"`{second}` .*{message}".replace("NAME", second)):
        as_image_batch([RGB, image], name)


@pytest.mark.parametrize("image", [RGB[None], TENSOR[None]], ids=["array", "tensor"])
def test_a_batch_is_not_one_image(image):
    for convert in (as_rgb, as_image_tensor):
        with pytest.raises(ValueError, match=r"`image` .* got \[1, .*Pass several .* as a list"):
            convert(image, "image")


BATCHES = {
    "tensor": torch.stack([TENSOR, TENSOR.flip(1, 2)]),
    "float tensor": torch.stack([FLOAT, FLOAT.flip(1, 2)]),
    "array": np.stack([RGB, OTHER]),
    "float array": np.stack([RGB, OTHER]) / 255,
    "list of arrays": [RGB, OTHER],
    "tuple of PIL images": (Image.fromarray(RGB), Image.fromarray(OTHER)),
    "mixed list": [rotated(RGB), FLOAT.flip(1, 2)],
}


@pytest.mark.parametrize("form", BATCHES)
def test_every_form_of_a_batch_is_the_same(form):
    batch, several = as_image_batch(BATCHES[form], "images")
    assert several
    torch.testing.assert_close(batch, BATCHES["float tensor"])
    if "float" not in form and "mixed" not in form:
        assert torch.equal(batch, BATCHES["tensor"].float() / 255)


def test_a_batch_of_one_is_a_batch():
    for one in (TENSOR[None], RGB[None], [RGB], (TENSOR,)):
        batch, several = as_image_batch(one, "images")
        assert several
        assert torch.equal(batch, FLOAT[None])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "must hold at least one image; got none"),
        ([RGB, RGB[1:], TENSOR, RGB[2:]], r"one size H x W; got 5 x 7, 4 x 7, 3 x 7\. Call once"),
        ([RGB, RGB[1:]], "or use `Segmenter`"),
        (TENSOR[None].permute(0, 2, 3, 1), r"Pass `images.permute\(0, 3, 1, 2\)`"),
        (TENSOR[None][:, [0, 1, 2, 0]], r"a tensor \[B, 3, H, W\]; .* `images\[:, :3\]`"),
        (TENSOR[None, :1], r"`images.expand\(-1, 3, -1, -1\)`"),
        (TENSOR[None][:0], r"must be a tensor \[B, 3, H, W\]; got \[0, 3, 5, 7\]\.$"),
        (RGB[None].transpose(0, 3, 1, 2), r"Pass `images.transpose\(0, 2, 3, 1\)`"),
        (ALPHA[None], r"an array \[B, H, W, 3\]; .* `images\[..., :3\]`"),
        (RGB[None, ..., :1], r"`np.repeat\(images, 3, axis=-1\)`"),
        (TENSOR[None, None], r"must be a tensor \[3, H, W\]; got \[1, 1, 3, 5, 7\]"),
        ([TENSOR[None]], r"\[0\]` must be a tensor \[3, H, W\]; got \[1, 3, 5, 7\]"),
    ],
)
def test_batches_that_are_refused(images, message):
    with pytest.raises(ValueError, match=f"`images.*{message}"):
        as_image_batch(images, "images")


@pytest.mark.parametrize(
    ("fix", "image"),
    [
        ("np.dstack([image] * 3)", RGB[..., 0]),
        ("np.dstack([image] * 3)", RGB[..., :1]),
        ("np.repeat(image, 3, axis=-1)", RGB[None, ..., :1]),
        ("image[..., :3]", ALPHA),
        ("image.transpose(1, 2, 0)", RGB.transpose(2, 0, 1)),
        ("image.transpose(0, 2, 3, 1)", RGB[None].transpose(0, 3, 1, 2)),
        ("image.expand(3, -1, -1)", TENSOR[0]),
        ("image.expand(3, -1, -1)", TENSOR[:1]),
        ("image.expand(-1, 3, -1, -1)", TENSOR[None, :1]),
        ("image[:3]", TENSOR[[0, 1, 2, 0]]),
        ("image[:, :3]", TENSOR[None][:, [0, 1, 2, 0]]),
        ("image.permute(2, 0, 1)", TENSOR.permute(1, 2, 0)),
        ("image.permute(0, 3, 1, 2)", TENSOR[None].permute(0, 2, 3, 1)),
    ],
)
def test_the_fix_of_a_message_works(fix, image):
    with pytest.raises(ValueError, match=re.escape(f"`{fix}`")):
        as_image_batch(image, "image")
    batch, _ = as_image_batch(eval(fix, {"image": image, "np": np}), "image")
    assert batch.shape == (1, 3, 5, 7)
    grey = any(word in fix for word in ("dstack", "repeat", "expand"))
    assert torch.equal(batch[0], FLOAT[:1].expand(3, -1, -1) if grey else FLOAT)


def test_images_of_any_sizes_are_listed_with_their_names():
    listed, several = as_image_list([RGB, RGB[1:], "x.png"], "images")
    assert several
    assert [name for _, name in listed] == ["images[0]", "images[1]", "images[2]"]
    assert listed[0][0] is RGB
    for one in (RGB, TENSOR, "x.png", Image.fromarray(RGB)):
        assert as_image_list(one, "images") == ([(one, "images")], False)
    for batch in (TENSOR[None], RGB[None]):
        listed, several = as_image_list(batch, "images")
        assert several
        assert listed[0][0].shape == batch.shape[1:]
    assert as_image_list([], "images") == ([], True)


@pytest.mark.parametrize("form", [*FORMS, "path"])
def test_the_largest_image_is_accepted_and_no_larger_one(tmp_path, form):
    Image.fromarray(RGB).save(tmp_path / "x.png")
    image = FORMS.get(form, tmp_path / "x.png")
    as_rgb(image, "image", max_pixels=35)
    size = "5 x 7" if form == "PIL rotated" else "7 x 5"
    with pytest.raises(ValueError, match=rf"at most 34 pixels; got {size} = 35.*`max_pixels`"):
        as_rgb(image, "image", max_pixels=34)


def test_a_pil_image_that_cannot_be_read_is_named():
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    broken = Image.open(io.BytesIO(file.getvalue()[:-40]))
    with pytest.raises(ValueError, match="`image` must be a readable image; got "):
        as_rgb(broken, "image")


def test_torch_and_pillow_are_loaded_only_to_convert():
    code = "import sys, ovss_refine.images.convert; print({'torch', 'PIL'} & {*sys.modules})"
    assert fresh(code) == "set()\n"
