"""Write files whole or not at all, and clear what killed writers left; read JSON."""

import contextlib
import fcntl
import json
import os
import re
import secrets
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

# The name of a file that is being written: a hash of the name that it will have, and a random part.
TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.[0-9a-f]{16}\.part")
MAX_JSON = 1 << 26  # bytes; the records of an image with a thousand classes have some 10 MB


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name beside `path`, then rename it.

    A reader of `path` sees the old file, no file, or the complete new one.

    Raises:
        FileExistsError: if `path` is a folder or a device.
        OSError: if the file cannot be written, with the `errno` of the failure.
    """
    check_replaceable(path)
    try:
        with _temporary(path) as temporary:
            with temporary.open("wb") as file:
                write(file)
            temporary.replace(path)
    except OSError as err:
        raise unwritable(path, err) from err


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text by `write_whole`."""
    write_whole(path, lambda file: file.write(text.encode()))


def clear_leftovers(folder: Path, *, deep: bool = False) -> None:
    """Remove the temporary files of writers that were killed.

    A writer holds a lock on its file, which ends with its process, however that ends and wherever
    it ran: a file that another process or thread is writing is locked, and remains.

    Args:
        folder: which may not exist.
        deep: include sub-folders.
    """
    for root, _, names in os.walk(folder):
        for name in filter(TEMPORARY.fullmatch, names):
            _remove_unlocked(Path(root, name))
        if not deep:
            return


def make_folder(path: Path) -> None:
    """Create a folder, and those above it, unless it exists; raises OSError that names it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise unwritable(path, err, kind="a folder") from err


def check_replaceable(path: Path) -> None:
    """Raise FileExistsError if there is something other than a regular file at `path`.

    A renamed file would take the place of a device such as `/dev/null`.
    """
    if os.path.exists(path) and not path.is_file():  # noqa: PTH110 - Path's own may raise OSError
        what = "a folder" if path.is_dir() else "a device"
        raise FileExistsError(f"`{path}` must be a new or regular file; got {what}.")


def unwritable(path: Path, err: OSError, fix: str = "", kind: str = "a file") -> OSError:
    """Return the error for a path that cannot be written, of the class and `errno` of `err`."""
    error = type(err)(
        f"`{path}` must be {kind} that can be written; got {err.strerror or err}{fix}."
    )
    error.errno = err.errno  # set here, it does not become part of the text
    return error


def read_json(path: Path) -> Any:
    """Read a JSON file; raises as `parse_json` does."""
    with path.open("rb") as file:
        return parse_json(file.read(MAX_JSON + 1), path)


def parse_json(data: bytes, path: Path) -> Any:
    """Parse JSON that was read from `path`.

    Raises:
        ValueError: if it is damaged, too large or nested too deeply.
    """
    if len(data) > MAX_JSON:
        raise ValueError(f"`{path}` must have at most {MAX_JSON:,} bytes of JSON; got more.")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as err:
        raise ValueError(f"`{path}` must be readable JSON; got {err}.") from err


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield the path of a new file beside `path`, locked until it is renamed or removed."""
    # A hash instead of the name, which may be as long as the file system allows; and a name of its
    # own for every call, because threads may write the same file.
    start = f".{zlib.crc32(os.fsencode(path.name)):08x}"
    temporary, lock = path, -1
    while lock < 0:
        temporary = path.with_name(f"{start}.{secrets.token_hex(8)}.part")
        lock = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # A file system without locks: nobody can lock the file in order to remove it, either.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not temporary.exists():  # removed before it was locked
            os.close(lock)
            lock = -1
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(lock)


def _remove_unlocked(path: Path) -> None:
    """Remove a regular file, unless it is locked or not ours to open."""
    with contextlib.suppress(OSError):
        lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if stat.S_ISREG(os.fstat(lock).st_mode):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        finally:
            os.close(lock)
