"""Images in any form: to 8-bit RGB, to a tensor, to a batch; other arrays to tensors.

The forms are a path, a PIL image, an array [H, W, 3] and a tensor [3, H, W]; arrays and tensors are
uint8, or float in [0, 1]. Files and PIL images are made upright by their EXIF orientation. Torch
and Pillow are imported when an image is converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, cast

import numpy as np
from numpy.typing import NDArray

from ovss_refine.checks import check_dense, check_float, check_shape
from ovss_refine.folders.paths import local_path

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ovss_refine.images.read import RGB

ImageLike = Union[str, Path, "Image.Image", NDArray[Any], "Tensor"]
ImagesLike = ImageLike | Sequence[ImageLike]
# Resizing an image, or undoing its normalisation, may leave [0, 1] by rounding.
RANGE_SLACK = 1e-3
# By whether it is an array, and whether it has a batch axis: the form, and how to make it of an
# image with its channels at the other end, of RGBA and of grey.
FORMS = {
    (True, False): (
        "an array [H, W, 3]",
        "`{0}.transpose(1, 2, 0)`",
        "`{0}[..., :3]`",
        "`np.dstack([{0}] * 3)`",
    ),
    (True, True): (
        "an array [B, H, W, 3]",
        "`{0}.transpose(0, 2, 3, 1)`",
        "`{0}[..., :3]`",
        "`np.repeat({0}, 3, axis=-1)`",
    ),
    (False, False): (
        "a tensor [3, H, W]",
        "`{0}.permute(2, 0, 1)`",
        "`{0}[:3]`",
        "`{0}.expand(3, -1, -1)`",
    ),
    (False, True): (
        "a tensor [B, 3, H, W]",
        "`{0}.permute(0, 3, 1, 2)`",
        "`{0}[:, :3]`",
        "`{0}.expand(-1, 3, -1, -1)`",
    ),
}


def as_tensor(x: Tensor | NDArray[Any], name: str) -> Tensor:
    """Return a NumPy array as a tensor, sharing memory where possible; anything else unchanged.

    Raises:
        TypeError: on an array of something that torch has no type for, or with masked entries.
    """
    import torch

    if not isinstance(x, np.ndarray):
        return x
    if x.dtype.kind not in "biufc" or isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"`{name}` must be an array of numbers; got {_kind(x)}.")
    if x.dtype.kind == "f" and not (x.dtype.isnative and x.dtype.itemsize <= 8):
        x = x.astype(f"f{min(x.dtype.itemsize, 8)}")
    # torch takes neither negative strides nor memory that must not be written to.
    return torch.from_numpy(x if x.flags.writeable and min(x.strides, default=0) >= 0 else x.copy())


def as_rgb(image: ImageLike, name: str, max_pixels: int | None = None) -> RGB:
    """Convert one image to [H, W, 3] uint8, a copy; floats are rounded.

    Args:
        image: in any form.
        name: of the argument, for messages.
        max_pixels: the largest image accepted; None: any.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if it is in none of the forms.
        ValueError: on a wrong shape, values out of range, a damaged file, or an image of more
            than `max_pixels`.
    """
    import torch

    from ovss_refine.images.read import check_pixels

    if not isinstance(image, (torch.Tensor, np.ndarray)):
        return _decoded(image, name, max_pixels)
    H, W = _check_form(image, name)
    check_pixels(name, W, H, max_pixels)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        return image.copy()
    if isinstance(image, np.ndarray) or image.dtype != torch.uint8:
        image = as_image_tensor(image, name).mul(255).round().byte()
    return image.detach().permute(1, 2, 0).cpu().numpy().copy()


def as_image_tensor(image: ImageLike, name: str) -> Tensor:
    """Convert one image to [3, H, W] float32 in [0, 1]; floats are not rounded to 8 bits.

    Args:
        image: in any form. A tensor stays on its device.
        name: of the argument, for messages.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `as_rgb`.
    """
    import torch

    if isinstance(image, (torch.Tensor, np.ndarray)):
        _check_form(image, name)
        return _to_float(image[None], name)[0]
    pixels = _decoded(image, name).transpose(2, 0, 1)  # [3, H, W]
    return torch.from_numpy(pixels.copy()).float() / 255  # whatever torch's default type is


def as_image_batch(images: ImagesLike, name: str) -> tuple[Tensor, bool]:
    """Convert one image or several of one size to a batch.

    Args:
        images: one image in any form; or several: a tensor [B, 3, H, W], an array [B, H, W, 3], or
            a list of images in any forms.
        name: of the argument, for messages.

    Returns:
        [B, 3, H, W] float32 in [0, 1], and whether several images were given; B = 1 otherwise.

    Raises:
        FileNotFoundError, TypeError: as `as_rgb`.
        ValueError: on no images, images of different sizes, and as `as_rgb`.
    """
    import torch

    if isinstance(images, (torch.Tensor, np.ndarray)) and images.ndim == 4:
        _check_form(images, name, batch=True)
        return _to_float(images, name), True
    named, several = as_image_list(images, name)
    if not named:
        raise ValueError(f"`{name}` must hold at least one image; got none.")
    tensors = [as_image_tensor(image, own_name) for image, own_name in named]
    sizes = dict.fromkeys(f"{x.shape[1]} x {x.shape[2]}" for x in tensors)
    if len(sizes) > 1:
        raise ValueError(
            f"`{name}` must be images of one size H x W; got {', '.join(sizes)}. Call once for "
            "each image, or use `Segmenter`, which takes images of any sizes."
        )
    return torch.stack(tensors), several


def as_image_list(images: ImagesLike, name: str) -> tuple[list[tuple[ImageLike, str]], bool]:
    """List one image or several, of any sizes, without converting them.

    Takes the arguments of `as_image_batch`; returns the images with the name of each, and whether
    several were given.
    """
    import torch

    if isinstance(images, (torch.Tensor, np.ndarray)):
        if isinstance(images, torch.Tensor):
            check_dense(name, images)
        several = images.ndim == 4
    else:
        several = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
    if not several:
        return [(cast("ImageLike", images), name)], False
    return [(image, f"{name}[{i}]") for i, image in enumerate(cast("Any", images))], True


def as_guide(image: Tensor, name: str = "image", **known: int) -> Tensor:
    """Check images [B, 3, H, W], uint8 or float in [0, 1], and return them as float32 in [0, 1].

    Raises:
        TypeError: if they are not a tensor, or neither uint8 nor floating-point.
        ValueError: on a wrong shape or values out of range.
    """
    import torch

    known["C"] = 3
    check_shape(name, image, "B C H W", **known)
    if image.dtype == torch.uint8:
        cast = (image.flatten(1).amax(dim=1) == 1).nonzero()  # each alone, as outside of a batch
        if len(cast):
            one = f"{name}[{int(cast[0])}]" if len(image) > 1 else name
            raise ValueError(
                f"`{one}` must be uint8 in [0, 255] or float in [0, 1]; got uint8 with values 0 "
                "and 1 only, like a float image cast to uint8. Multiply by 255 before the cast; if "
                "it is as dark as that, pass `image.float() / 255`."
            )
        return image.float() / 255
    check_float(name, image, "uint8 or floating-point")
    low, high = (float(x) for x in image.detach().aminmax())
    if not (low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK):
        fix = "divide by 255" if low >= 0 else "undo the model's normalisation"
        raise ValueError(
            f"`{name}` must be finite and in [0, 1] when floating-point; got values from {low:.4g} "
            f"to {high:.4g}. If it is 8-bit or normalised, {fix} first."
        )
    image = image.float()
    return image if low >= 0 and high <= 1 else image.clamp(0, 1)


def _check_form(image: Tensor | NDArray[Any], name: str, *, batch: bool = False) -> tuple[int, int]:
    """Return H, W of an array or a tensor, or raise with the fix."""
    is_array = isinstance(image, np.ndarray)
    if not isinstance(image, np.ndarray):
        check_dense(name, image)
    form, transposed, rgb, grey = FORMS[is_array, batch]
    shape = list(image.shape)
    own = shape[batch:]  # without the batch axis
    first, last = (own[0], own[-1]) if len(own) == 3 else (0, 0)
    channels, other = (last, first) if is_array else (first, last)
    if channels != 3 or 0 in shape:
        fix = ""
        if len(own) == 2 or channels == 1:
            fix = f" Repeat a grey channel: {grey}."
        elif channels == 4:
            fix = f" Drop alpha: {rgb}."
        elif other == 3:
            fix = f" Pass {transposed}."
        elif len(shape) > 3 and not batch:
            fix = " Pass several images as a list."
        raise ValueError(f"`{name}` must be {form}; got {shape}.{fix.format(name)}")
    if isinstance(image, np.ma.MaskedArray) or (
        isinstance(image, np.ndarray) and image.dtype != np.uint8 and image.dtype.kind != "f"
    ):
        raise TypeError(f"`{name}` must be a uint8 or float array; got {_kind(image)}.")
    return (own[0], own[1]) if is_array else (own[1], own[2])


def _kind(array: NDArray[Any]) -> str:
    return "a masked array" if isinstance(array, np.ma.MaskedArray) else str(array.dtype)


def _to_float(images: Tensor | NDArray[Any], name: str) -> Tensor:
    """Check the values of a batch; return it as [B, 3, H, W] float32."""
    import torch

    if isinstance(images, np.ndarray):
        dtype = np.float32 if images.dtype.kind == "f" else images.dtype
        with np.errstate(over="ignore"):  # out of range in any case, as `as_guide` says
            images = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), dtype, order="C"))
    return as_guide(images, name)


def _decoded(image: object, name: str, max_pixels: int | None = None) -> RGB:
    """Read a file or decode a PIL image."""
    from PIL import Image

    from ovss_refine.images.read import decode, read_image

    if isinstance(image, (str, Path)):
        try:
            return read_image(local_path(name, image), max_pixels=max_pixels)
        except FileNotFoundError:
            message = f"`{name}` must be an existing file; got `{image}`."
            raise FileNotFoundError(message) from None
    if isinstance(image, Image.Image):
        return decode(image, name, max_pixels)
    raise TypeError(
        f"`{name}` must be a path, a PIL image, an array [H, W, 3] or a tensor [3, H, W]; got "
        f"{type(image).__name__}."
    )
