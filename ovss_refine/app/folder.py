"""The folder of a server's files, which ends with the server, however that ends."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR

PREFIX = "ovss-refine-app-"
LOCK = ".lock"  # held as long as the server lives


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder that only this user can read, and remove it at the end.

    Those of this user's servers that were killed are removed first.
    """
    remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as root:
        folder = Path(root).resolve()
        with _locked(folder):
            yield folder


def remove_abandoned() -> None:
    """Remove the folders of this user's servers that are no longer there: nobody holds the lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # gone meanwhile, without a lock yet, or held
            facts = folder.lstat()
            if S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid():
                with _locked(folder, create=False):
                    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path, *, create: bool = True) -> Iterator[None]:
    """Hold the lock of a folder; raises OSError if another process does, or there is none."""
    path = folder / (f"{LOCK}.new" if create else LOCK)
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.rename(folder / LOCK)  # a new one has its name once it is held
        yield
    finally:
        os.close(fd)
