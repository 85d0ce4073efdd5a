"""The images of a data set, one by one. Imports neither torch nor numpy."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IGNORE = 255  # the label of pixels that do not count


@dataclass(frozen=True, slots=True)
class Item:
    """One image and its mask; the files need not exist."""

    id: str  # name without suffix, relative to the folder of images, "/" between folders
    image: Path
    mask: Path


def fingerprint(items: Sequence[Item]) -> str:
    """Hash the ids and the sizes of all files; a missing file has size -1."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.id}\t{_size(item.image)}\t{_size(item.mask)}\n".encode())
    return digest.hexdigest()[:16]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
