"""Reading image files: RGB, 8 bits, upright."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Phones put a second view or a depth map behind the photograph; nobody means that one.
PHOTOGRAPH_WITH_EXTRAS = "MPO"
_PILLOWS_LIMIT = threading.Lock()


def read_image(path: Path, *, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """Read a picture as [H, W, 3] uint8 RGB, upright as its EXIF orientation says.

    Of 16 bits per channel the upper 8 are kept, of an animation the first frame, which is
    said in a warning; alpha is dropped.

    Args:
        path: the file.
        max_pixels: most pixels that the picture may have; the file's header decides, before
            anything is decoded. None: Pillow's own limit, twice its `Image.MAX_IMAGE_PIXELS`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is too large, has values of more than 16 bits or fractions, or is
            damaged; the message names the file.
    """
    try:
        with _open(path, max_pixels) as picture:
            mode, (W, H) = picture.mode, picture.size
            fits = max_pixels is None or max_pixels >= W * H
            pixels = to_rgb(upright(picture)) if fits else None
            frames = _frames(picture) if fits else 1
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as err:  # a damaged file fails in as many ways as there are formats
        raise ValueError(f"`{path}` must be a readable picture; got {err}.") from err
    if not fits:
        raise ValueError(
            f"`{path}` must have at most {max_pixels:,} pixels; got {W} x {H} = {W * H:,}. "
            "`max_pixels` (--max-pixels) raises the limit."
        )
    if pixels is None:
        raise ValueError(f"`{path}` must have values of 8 or 16 bits; got mode {mode!r}.")
    if frames > 1:
        warnings.warn(f"`{path}` has {frames} frames; the first is used.", stacklevel=2)
    return pixels


@contextmanager
def _open(path: Path, max_pixels: int | None) -> Iterator[Image.Image]:
    """Open a picture, without Pillow's limit on its size if there is one of our own."""
    if max_pixels is None:
        with Image.open(path) as picture:
            yield picture
        return
    with _PILLOWS_LIMIT:  # the limit is a global variable of Pillow, looked at by `open` alone
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            picture = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    with picture:
        yield picture


def _frames(picture: Image.Image) -> int:
    if picture.format == PHOTOGRAPH_WITH_EXTRAS or not getattr(picture, "is_animated", False):
        return 1
    return int(getattr(picture, "n_frames", 1))


def upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF orientation says; as it is where that cannot be read."""
    picture.load()
    try:
        return ImageOps.exif_transpose(picture)
    except SyntaxError:  # of the EXIF block: the pixels are there by now
        return picture


def to_rgb(picture: Image.Image) -> NDArray[np.uint8] | None:
    """Turn a picture into [H, W, 3] uint8; None if its values are no 8 or 16 bits."""
    if picture.mode == "F":
        return None
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 0xFFFF:
            return None
        grey = (values >> 8).astype(np.uint8)  # as Pillow does with three channels of 16 bits
        return np.repeat(grey[..., None], 3, axis=-1)
    if picture.mode == "P":
        picture = picture.convert("RGBA")  # or Pillow warns where colours are transparent
    return np.asarray(picture.convert("RGB"))
