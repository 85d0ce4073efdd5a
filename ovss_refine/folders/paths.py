"""Paths that users give: local ones, not URLs."""

import os
import re
from pathlib import Path

# One letter before the colon is a drive; a `Path` has merged the slashes after it.
URL = re.compile(r"\s*([a-z][a-z0-9+.-]+:[/\\]|data:)", re.IGNORECASE)


def local_path(name: str, path: str | os.PathLike[str]) -> Path:
    """Return `path` as a Path; raise ValueError for one that nobody means.

    A URL would name a new folder, and no text at all, such as an unset variable of a shell, the
    current one.

    Args:
        name: of the argument, for the message.
        path: any text or path.
    """
    text = os.fspath(path)
    if not text:
        raise ValueError(f"`{name}` must be a path; got ''. The current folder is `.`.")
    if URL.match(text):
        raise ValueError(
            f"`{name}` must be a local path; got the URL {text[:100]!r}. Download it first."
        )
    return Path(path)
