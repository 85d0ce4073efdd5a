"""Read arrays of numbers from `.npz` and `.npy` files that anybody may have made.

A header says how large its array is. Nothing is allocated before that agrees with what the file
holds.
"""

import io
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

NPY = ".npy"
HEAD = 16_384  # bytes; NumPy refuses longer headers as well
# An array inflates to at most this many bytes, or this many times its compressed size; and to no
# more than deflate can reach, on zeros.
INFLATED, RATIO, DEFLATE = 1 << 30, 64, 1032


def read_arrays(
    path: Path, *wanted: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Read arrays of an `.npz` file.

    Args:
        path: the file.
        wanted: for each required array, its possible keys, best first.
        optional: keys of arrays that are read if present.

    Returns:
        The arrays under their keys, in native byte order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, has no numbers or more than it can hold, or lacks an
            array; the message names the file.
    """
    with _readable(path):
        found = _read_archive(path, wanted, optional)
    if isinstance(found, dict):
        return found
    needed, names = found
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    raise ValueError(f"`{path}` must have the array {needed}; got {_short(names[:10])}{more}.")


def read_array(path: Path) -> NDArray[Any]:
    """Read the array of an `.npy` file; raises as `read_arrays` does."""
    with _readable(path):
        return _read_array(lambda: path.open("rb"), path.stat().st_size)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Convert any exception of a decoder to a ValueError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as err:
        got = _short(err).split("\n")[0].rstrip(".") or type(err).__name__
        raise ValueError(f"`{path}` must be a readable {path.suffix} file; got {got}.") from err


def _read_archive(
    path: Path, wanted: Sequence[Sequence[str]], optional: Sequence[str]
) -> dict[str, NDArray[Any]] | tuple[str, list[str]]:
    """Read arrays; or return the missing keys, and those that the file has."""
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise ValueError("a single array, not an archive of named ones")
        with zipfile.ZipFile(file) as archive:
            members = {one.filename.removesuffix(NPY): one for one in archive.infolist()}
            keys = [next((key for key in group if key in members), "") for group in wanted]
            if "" in keys:
                return " or ".join(map(repr, wanted[keys.index("")])), sorted(members)
            keys += [key for key in optional if key in members]
            return {key: _read_member(archive, members[key], path) for key in keys}


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> NDArray[Any]:
    packed, size = member.compress_size, member.file_size
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"an unknown compression of {member.filename!r}")
    if packed > path.stat().st_size:
        raise ValueError(f"a truncated archive, with {packed:,} bytes of {member.filename!r}")
    deflated = min(DEFLATE * packed, max(INFLATED, RATIO * packed))
    most = deflated if member.compress_type == zipfile.ZIP_DEFLATED else packed
    if size > most:
        raise ValueError(f"{size:,} bytes of {member.filename!r} out of {packed:,}")
    return _read_array(lambda: archive.open(member), size)


def _read_array(start: Callable[[], IO[bytes]], size: int) -> NDArray[Any]:
    """Read an array from a stream of `size` bytes, once its header agrees with that size."""
    with start() as stream:
        head = io.BytesIO(stream.read(HEAD))
    version = np.lib.format.read_magic(head)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array of format {version}; save plain numbers")
    read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, _, dtype = read(head)
    if dtype.kind not in "biufc" or dtype.char in "gG":  # no tensor has that precision
        raise ValueError(f"an array of type {dtype}; save plain numbers")
    held = size - head.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"a header of shape {shape} and type {dtype} for {held:,} bytes")
    with start() as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."
