"""Paths that users give: local ones, not URLs."""

import os
import re
from pathlib import Path

# One letter before the colon is a drive; a `Path` has merged the slashes after it.
URL = re.compile(r"\s*([a-z][a-z0-9+.-]+:[/\\]|data:)", re.IGNORECASE)


def local_path(name: str, path: str | os.PathLike[str]) -> Path:
    """Return `path` as a Path; raise ValueError if it is a URL, which would name a new folder.

    Args:
        name: of the argument, for the message.
        path: any text or path.
    """
    if URL.match(text := os.fspath(path)):
        raise ValueError(
            f"`{name}` must be a local path; got the URL {text[:100]!r}. Download it first."
        )
    return Path(path)
