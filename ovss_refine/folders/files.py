"""Read arrays; write files whole or not at all."""

import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


def read_arrays(
    path: Path, *wanted: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Read arrays of an `.npz` file.

    Args:
        path: the file.
        wanted: for each required array, its possible keys, best first.
        optional: keys of arrays that are read if present.

    Returns:
        The arrays under their keys.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or lacks an array; the message names the file.
    """
    try:
        # np.load does not close a damaged archive that it opened itself.
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

    A reader of `path` sees the old file, no file, or the complete new one.
    """
    # A hash instead of the name, which may be as long as the file system allows; and a name of its
    # own for every call, because threads may write the same file.
    unique = f"{zlib.crc32(os.fsencode(path.name)):08x}.{secrets.token_hex(8)}"
    temporary = path.with_name(f".{unique}.part")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text by `write_whole`."""
    write_whole(path, lambda file: file.write(text.encode()))
