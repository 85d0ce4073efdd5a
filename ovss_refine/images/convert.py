"""Pictures in any of the forms that people have them, as [H, W, 3] uint8 RGB."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ovss_refine.method.upsample import as_guide

if TYPE_CHECKING:
    from PIL import Image

RGB = NDArray[np.uint8]
Picture = Union[str, Path, "Image.Image", NDArray[Any], Tensor]


def as_rgb(image: Picture, name: str, max_pixels: int | None = None) -> RGB:
    """Read a picture.

    Args:
        image: the path of a file; a PIL image, turned as its EXIF orientation says; [H, W, 3]
            uint8 or float array; or [3, H, W] uint8 or float tensor. Floats are in [0, 1] and
            become 8-bit.
        name: of the argument, for messages.
        max_pixels: the largest picture that is taken; None: any.

    Returns:
        [H, W, 3], a copy.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if it is none of these.
        ValueError: on a wrong shape, values out of range, a damaged file, or a picture of more
            than `max_pixels`.
    """
    from PIL import Image

    from ovss_refine.images.read import read_image

    if isinstance(image, (str, Path)):
        return read_image(Path(image), max_pixels=max_pixels)
    if isinstance(image, Tensor):
        return _of_tensor(image, name, max_pixels)
    if isinstance(image, np.ndarray):
        return _of_array(image, name, max_pixels)
    if isinstance(image, Image.Image):
        return _of_pil(image, name, max_pixels)
    raise TypeError(
        f"`{name}` must be a path, a PIL image, an array [H, W, 3] or a tensor [3, H, W]; got "
        f"{type(image).__name__}."
    )


def _of_tensor(image: Tensor, name: str, max_pixels: int | None) -> RGB:
    if image.ndim != 3 or len(image) != 3 or not image.numel():
        raise ValueError(f"`{name}` must be a tensor [3, H, W]; got {list(image.shape)}.")
    _check_size(name, image.shape[2], image.shape[1], max_pixels)
    image = image.detach()
    if image.dtype != torch.uint8:
        image = as_guide(image[None])[0].mul(255).round().byte()
    return image.permute(1, 2, 0).cpu().numpy().copy()


def _of_array(image: NDArray[Any], name: str, max_pixels: int | None) -> RGB:
    if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(
            f"`{name}` must be an array [H, W, 3]; got {list(image.shape)}. Of RGBA take "
            "`image[..., :3]`; of grey `np.repeat(image[..., None], 3, axis=-1)`; several images "
            "go into a list."
        )
    _check_size(name, image.shape[1], image.shape[0], max_pixels)
    if image.dtype == np.uint8:
        return image.copy()
    if image.dtype.kind != "f":
        raise TypeError(f"`{name}` must be a uint8 or float array; got {image.dtype}.")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"`{name}` must be finite and in [0, 1] when floating-point; got values from "
            f"{low:.4g} to {high:.4g}. Divide 8-bit values by 255, or cast them to uint8."
        )
    return np.rint(image * np.float32(255)).astype(np.uint8)


def _of_pil(image: "Image.Image", name: str, max_pixels: int | None) -> RGB:
    from ovss_refine.images.read import to_rgb, upright

    _check_size(name, *image.size, max_pixels)
    try:
        pixels = to_rgb(upright(image))
    except (OSError, SyntaxError) as err:  # it was opened, but not read before
        raise ValueError(f"`{name}` must be a readable picture; got {err}.") from err
    if pixels is None:
        raise ValueError(f"`{name}` must have values of 8 or 16 bits; got mode {image.mode!r}.")
    return pixels


def _check_size(name: str, W: int, H: int, max_pixels: int | None) -> None:
    if max_pixels is not None and max_pixels < W * H:
        raise ValueError(
            f"`{name}` must have at most {max_pixels:,} pixels; got {W} x {H} = {W * H:,}. "
            "`max_pixels` raises the limit."
        )
