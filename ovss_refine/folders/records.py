"""Results of single images on disk, one line each, so that an interrupted run can be resumed.

A line is a checksum and a JSON object. It is written by one call and is on the disk before the
next begins. Whatever a kill leaves after the last whole line (no newline, or a wrong checksum) is
cut off by the next run.
"""

import contextlib
import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ovss_refine.folders.files import MAX_JSON, parse_json, unwritable

Record = dict[str, Any]
PATTERN = "records.{rank}.jsonl"


class Records:
    """The records of one process, open for appending and locked against other runs.

    Args:
        folder: where the file is, or will be.
        rank: number of this process; every process has its own file.

    Raises:
        BlockingIOError: if another process has the file open.
        ValueError: if a line before the last is damaged.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        """Open and lock the file, and cut off an unfinished line."""
        self.path = folder / PATTERN.format(rank=rank)
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as err:
            raise unwritable(self.path, err) from err
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._end = max((end for _, end in iterate(self.path)), default=0)
            os.ftruncate(self._fd, self._end)
            _sync_folder(folder)
        except BlockingIOError:
            os.close(self._fd)
            raise BlockingIOError(
                f"`{folder}` must be written by one run at a time; another has `{self.path.name}` "
                "open."
            ) from None
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, record: Record) -> None:
        """Write a record; it is on the disk on return.

        Raises:
            OSError: if it cannot be written, for example because the disk is full; the file then
                ends with the previous record.
        """
        line = encode(record)
        try:
            written = 0
            while written < len(line):
                written += os.write(self._fd, line[written:])
            os.fsync(self._fd)
        except OSError as err:
            with contextlib.suppress(OSError):  # otherwise the next run cuts the line off
                os.ftruncate(self._fd, self._end)
            fix = (
                "; a result could not be written, earlier results are safe. Make room and run the "
                "same command again to resume"
            )
            raise unwritable(self.path, err, fix) from err
        self._end += len(line)

    def clear(self) -> None:
        """Discard all records."""
        os.ftruncate(self._fd, 0)
        os.fsync(self._fd)
        self._end = 0

    def close(self) -> None:
        """Close the file, which releases the lock."""
        os.close(self._fd)


def encode(record: Record) -> bytes:
    """Make the line of a record."""
    body = json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def iterate(path: Path) -> Iterator[tuple[Record, int]]:
    """Yield the whole records of a file: (record, byte at which its line ends).

    Raises:
        ValueError: if a line before the last is damaged.
    """
    end = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_JSON):
            body = line[9:-1]
            if line[-1:] != b"\n" or line[:9] != b"%08x " % zlib.crc32(body):
                if file.read(1):
                    raise ValueError(
                        f"`{path}` must have whole lines; the one at byte {end} is damaged."
                    )
                return
            end += len(line)
            yield parse_json(body, path), end


def read_all(folder: Path) -> Iterator[Record]:
    """Yield the records that all processes have ever written into a folder."""
    for path in files_of(folder):
        for record, _ in iterate(path):
            yield record


def files_of(folder: Path) -> list[Path]:
    """List the files of records of all processes that have ever written into a folder."""
    return sorted(folder.glob(PATTERN.format(rank="*")))


def rank_of(path: Path) -> int:
    """Return the number of the process that writes a file of records."""
    return int(path.name.split(".")[1])


def _sync_folder(folder: Path) -> None:
    """Flush the folder, so that the name of a new file is on the disk as well."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
