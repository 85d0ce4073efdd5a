"""The pictures that a user names: files, folders and patterns, each with a name for its results.

A name is the file's stem. Where a pattern reaches into sub-folders they stay a part of it, so that
`a/x.jpg` and `b/x.jpg` have results of their own.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovss_refine.images.read import IMAGE_SUFFIXES

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to read.

    Attributes:
        name: of its results, unique in a run, with "/" between sub-folders.
        path: where it is.
    """

    name: str
    path: Path


def find_pictures(inputs: Sequence[str], out: Path) -> list[Picture]:
    """List the pictures that files, folders and patterns stand for, in that order.

    Args:
        inputs: paths of files; paths of folders, of which the pictures right inside are taken; or
            patterns with "*", "?" or "[", where "**" is any number of folders.
        out: folder of the results, whose pictures are none to read.

    Returns:
        At least one, each file once.

    Raises:
        FileNotFoundError: if there is nothing at an input.
        ValueError: if an input is a URL, a folder or pattern has no picture, two pictures have
            the same name, or a picture that is named lies in `out`.
    """
    seen: dict[Path, Picture] = {}
    for text in inputs:
        for picture in _expand(text, out.resolve()):
            seen.setdefault(picture.path.resolve(), picture)
    by_name: dict[str, Picture] = {}
    for picture in seen.values():
        # Not every file system tells upper from lower case.
        other = by_name.setdefault(picture.name.casefold(), picture)
        if other is not picture:
            raise ValueError(
                f"pictures must differ in name, for their results; got `{other.path}` and "
                f"`{picture.path}`. Give each folder an --out of its own, or one quoted pattern "
                "such as 'photos/**/*.jpg', which keeps sub-folders."
            )
    return list(by_name.values())


def _expand(text: str, out: Path) -> list[Picture]:
    if URL.match(text):
        raise ValueError(
            f"IMAGE must be a file, a folder or a pattern; got {text!r}. Nothing is fetched but "
            "the models' weights: download the picture first."
        )
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - Path's own raises where nobody has that name
    if not path.exists() and MAGIC.search(text):
        return _matching(str(path), out)
    if not path.exists():
        raise FileNotFoundError(
            f"IMAGE must be a file, a folder or a pattern; `{text}` does not exist."
        )
    if path.resolve() == out or out in path.resolve().parents:
        raise ValueError(
            f"`--out` must not be or hold what is to be segmented; got `{text}`, which lies there."
        )
    if not path.is_dir():
        return [Picture(path.stem, path)]
    found = [Picture(inner.stem, inner) for inner in _sorted(path.iterdir()) if _is_picture(inner)]
    if not found:
        raise ValueError(
            f"`{text}` must hold pictures ({', '.join(IMAGE_SUFFIXES)}); got none. Those of its "
            f"sub-folders are '{path / '**' / '*'}'."
        )
    return found


def _matching(pattern: str, out: Path) -> list[Picture]:
    """List what a pattern matches, but for results of earlier runs."""
    parts = list(Path(pattern).parts)
    fixed = next(i for i, part in enumerate(parts) if MAGIC.search(part))
    base = Path(*parts[:fixed])
    if parts[-1] == "**":
        parts.append("*")  # alone it stands for folders only, before Python 3.13
    suffix = Path(parts[-1]).suffix
    any_kind = bool(suffix) and not MAGIC.search(suffix)  # "*.gif" is as good as a name
    found = [
        Picture(path.relative_to(base).with_suffix("").as_posix(), path)
        for path in _sorted(base.glob("/".join(parts[fixed:])))
        if (not path.is_dir() if any_kind else _is_picture(path))
        and out not in path.resolve().parents
        and not _is_hidden(path.relative_to(base), parts[fixed:])
    ]
    if not found:
        raise FileNotFoundError(
            f"IMAGE must match a picture outside of `--out`; the pattern '{pattern}' has none."
        )
    return found


def _is_hidden(path: Path, pattern: Sequence[str]) -> bool:
    """Whether a folder on the way is hidden, as ".thumbnails" is, and the pattern has no such."""
    named = any(part.startswith(".") for part in pattern)
    return not named and any(part.startswith(".") for part in path.parts[:-1])


def _sorted(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (path.parent, path.stem, path.name))


def _is_picture(path: Path) -> bool:
    hidden = path.name.startswith(".")  # such as macOS puts beside every file it copies
    # A link to nowhere is one: it fails when it is read, and is not passed over in silence.
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and not path.is_dir()
