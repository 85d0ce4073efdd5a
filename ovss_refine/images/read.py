"""Reading image files: RGB, 8 bits, upright."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from ovss_refine.images.formats import RAW_SUFFIXES, how_to_read

RGB = NDArray[np.uint8]
_PILLOW_LIMIT = threading.Lock()


def read_image(path: Path, *, max_pixels: int | None = None) -> RGB:
    """Read an image file as `decode` does; the first frame of an animation, with a warning.

    Args:
        path: the file.
        max_pixels: the largest image accepted, checked before decoding; None: Pillow's own limit,
            twice `Image.MAX_IMAGE_PIXELS`, if it has one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or as `decode` does; the message names the file.
    """
    return read_oriented(path, max_pixels)[0]


def read_oriented(path: Path, max_pixels: int | None = None) -> tuple[RGB, int]:
    """Do `read_image`; also return the EXIF orientation that was undone, 1 if there was none."""
    with _readable(str(path), path):
        opened = open_image(path, max_pixels)
    with opened as image:
        pixels, orientation = _decode(image, str(path), max_pixels)
        with _readable(str(path)):
            frames = _frames(image)
    if frames > 1:
        warnings.warn(f"`{path}` has {frames} frames; the first is used.", stacklevel=3)
    return pixels, orientation


def upright_size(path: Path) -> tuple[tuple[int, int], int]:
    """Return the size (W, H) that `read_oriented` gives, and the orientation.

    Reads only the header where that suffices. Raises as `read_image` does.
    """
    with _readable(str(path), path), open_image(path) as image:
        orientation = orientation_of(image)
        return (image.size if orientation == 1 else upright(image).size), orientation


def decode(image: Image.Image, name: str, max_pixels: int | None = None) -> RGB:
    """Decode a PIL image as [H, W, 3] uint8 RGB, made upright by its EXIF orientation.

    The upper 8 of 16 bits are kept; alpha is dropped.

    Args:
        image: of any mode.
        name: of the argument or file, for messages.
        max_pixels: the largest image accepted; None: any.

    Raises:
        ValueError: if it is too large, has more than 16 bits per channel or fractions, or cannot be
            decoded.
    """
    return _decode(image, name, max_pixels)[0]


def check_pixels(name: str, W: int, H: int, max_pixels: int | None) -> None:
    """Raise ValueError if an image has no pixels, or more than `max_pixels`."""
    if W * H == 0:
        raise ValueError(f"`{name}` must have pixels; got {W} x {H}.")
    if max_pixels is not None and max_pixels < W * H:
        raise ValueError(
            f"`{name}` must have at most {max_pixels:,} pixels; got {W} x {H} = {W * H:,}. "
            "`max_pixels` (--max-pixels) raises the limit."
        )


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image that is not decoded yet; 1 if it has none.

    Decoding a TIFF makes it upright and drops the tag.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except SyntaxError:  # in the EXIF block
        return 1
    return next((known for known in range(2, 9) if known == value), 1)


def upright(image: Image.Image) -> Image.Image:
    """Decode an image and undo its EXIF orientation, if that can be read."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except SyntaxError:  # in the EXIF block: the pixels have been decoded
        return image


def _decode(image: Image.Image, name: str, max_pixels: int | None) -> tuple[RGB, int]:
    check_pixels(name, *image.size, max_pixels)
    with _readable(name):
        orientation = orientation_of(image)
        pixels = _to_rgb(upright(image))
    if pixels is None:
        raise ValueError(f"`{name}` must have values of 8 or 16 bits; got mode {image.mode!r}.")
    return pixels, orientation


@contextmanager
def _readable(name: str, path: Path | None = None) -> Iterator[None]:
    """Convert any exception of a decoder to a ValueError; each format has its own."""
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as err:
        fix = "" if path is None else how_to_read(path, _start(path))
        raise ValueError(f"`{name}` must be a readable image; got {err}.{fix}") from err


def open_image(path: Path, max_pixels: int | None = None) -> Image.Image:
    """Open an image file; a limit of our own replaces Pillow's, whose message is not ours."""
    if path.suffix.lower() in RAW_SUFFIXES and path.is_file():
        raise ValueError("a raw file of a camera, of which Pillow reads a preview at best")
    with _PILLOW_LIMIT:  # a global variable of Pillow, which only `open` reads
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    W, H = image.size
    reason = "PostScript, a program that draws one" if image.format == "EPS" else ""
    if max_pixels is None and before is not None and 2 * before < W * H:
        reason = f"{W} x {H} = {W * H:,} pixels, more than {2 * before:,}"
    if reason:
        image.close()
        raise ValueError(reason)
    return image


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(12)
    except (OSError, ValueError):  # also a path that no file can have
        return b""


def _frames(image: Image.Image) -> int:
    # Phones append a second view or a depth map to a photograph (MPO): those do not count.
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return 1
    return int(getattr(image, "n_frames", 1))


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
        image = image.convert("RGBA")  # Pillow warns about transparent colours otherwise
    return np.asarray(image.convert("RGB"))
