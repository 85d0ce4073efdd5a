"""Reading pictures and arrays, and writing files whole or not at all."""

import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read a picture as [H, W, 3] uint8 RGB, upright as its EXIF orientation says.

    Raises:
        ValueError: if it is not an 8-bit picture, or is damaged; the message names the file.
    """
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            upright = ImageOps.exif_transpose(picture)
            upright.load()
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise ValueError(f"`{path}` must be a readable picture; got {err}.") from err
    if mode.startswith(("I", "F")):
        raise ValueError(f"`{path}` must be an 8-bit picture; got mode {mode!r}.")
    if mode == "P":
        upright = upright.convert("RGBA")  # or Pillow warns where colours are transparent
    return np.asarray(upright.convert("RGB"))


def read_arrays(
    path: Path, *wanted: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Read arrays of an `.npz` file.

    Args:
        path: the file.
        wanted: for each array that is needed, the keys that it may have, best first.
        optional: keys of arrays that are read if they are there.

    Returns:
        The arrays under their keys.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or lacks an array; the message names the file.
    """
    try:
        # Opened here, because np.load leaves a damaged archive that it opened itself open.
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive of named ones")
            keys = [next((k for k in group if k in arrays), "") for group in wanted]
            if "" not in keys:
                keys += [key for key in optional if key in arrays]
                return {key: arrays[key] for key in keys}
            found = sorted(arrays)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as err:
        raise ValueError(f"`{path}` must be a readable .npz file; got {err}.") from err
    needed = " or ".join(repr(key) for key in wanted[keys.index("")])
    raise ValueError(f"`{path}` must have the array {needed}; got {found}.")


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name beside `path`, then rename it.

    Whoever looks at `path` sees the old file, or none, or all of the new one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
