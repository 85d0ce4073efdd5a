"""Reading image files: RGB, 8 bits, upright."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

RGB = NDArray[np.uint8]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Phones store a second view or a depth map behind the photograph; nobody means that one.
PHOTOGRAPH_WITH_EXTRAS = "MPO"
_PILLOWS_LIMIT = threading.Lock()


def read_image(path: Path, *, max_pixels: int | None = None) -> RGB:
    """Read an image file as [H, W, 3] uint8, as `decode` does.

    Of an animation the first frame is read, with a warning.

    Args:
        path: the file.
        max_pixels: the largest image accepted; the file's header decides, before anything is
            decoded. None: Pillow's own limit, twice its `Image.MAX_IMAGE_PIXELS`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is too large, has values of more than 16 bits or fractions, or is
            damaged; the message names the file.
    """
    with _readable(str(path)):
        opened = _open(path, max_pixels)
    with opened as image:
        pixels = decode(image, str(path), max_pixels)
        with _readable(str(path)):
            frames = _frames(image)
    if frames > 1:
        warnings.warn(f"`{path}` has {frames} frames; the first is used.", stacklevel=2)
    return pixels


def decode(image: Image.Image, name: str, max_pixels: int | None = None) -> RGB:
    """Decode a PIL image as [H, W, 3] uint8 RGB, upright by its EXIF orientation.

    Of 16 bits per channel the upper 8 are kept; alpha is dropped.

    Args:
        image: of any mode.
        name: of the argument or file, for messages.
        max_pixels: the largest image accepted; None: any.

    Raises:
        ValueError: if it is too large, has values of more than 16 bits or fractions, or cannot be
            decoded.
    """
    check_pixels(name, *image.size, max_pixels)
    with _readable(name):
        pixels = _to_rgb(_upright(image))
    if pixels is None:
        raise ValueError(f"`{name}` must have values of 8 or 16 bits; got mode {image.mode!r}.")
    return pixels


def check_pixels(name: str, W: int, H: int, max_pixels: int | None) -> None:
    """Raise ValueError if an image has more than `max_pixels`."""
    if max_pixels is not None and max_pixels < W * H:
        raise ValueError(
            f"`{name}` must have at most {max_pixels:,} pixels; got {W} x {H} = {W * H:,}. "
            "`max_pixels` (--max-pixels) raises the limit."
        )


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Raise ValueError for a damaged image, which fails in as many ways as there are formats."""
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as err:
        raise ValueError(f"`{name}` must be a readable image; got {err}.") from err


def _open(path: Path, max_pixels: int | None) -> Image.Image:
    """Open an image file, without Pillow's limit on its size if there is one of our own."""
    if max_pixels is None:
        return Image.open(path)
    with _PILLOWS_LIMIT:  # the limit is a global variable of Pillow, read by `open` alone
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _frames(image: Image.Image) -> int:
    if image.format == PHOTOGRAPH_WITH_EXTRAS or not getattr(image, "is_animated", False):
        return 1
    return int(getattr(image, "n_frames", 1))


def _upright(image: Image.Image) -> Image.Image:
    """Rotate an image by its EXIF orientation; unchanged where that cannot be read."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except SyntaxError:  # of the EXIF block: the pixels have been decoded
        return image


def _to_rgb(image: Image.Image) -> RGB | None:
    """Convert an image to [H, W, 3] uint8; None if its values do not have 8 or 16 bits."""
    if image.mode == "F":
        return None
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            return None
        grey = (values >> 8).astype(np.uint8)  # as Pillow does with three channels of 16 bits
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode == "P":
        image = image.convert("RGBA")  # or Pillow warns where colours are transparent
    return np.asarray(image.convert("RGB"))
