"""The images that a user names: files, folders and patterns, each with a name for its results.

A name is the file's stem. Where a pattern reaches into sub-folders, they are part of the name, so
that `a/x.jpg` and `b/x.jpg` have results of their own.
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
class ImageFile:
    """An image to read.

    Attributes:
        name: of its results, unique in a run, with "/" between sub-folders.
        path: of the file.
    """

    name: str
    path: Path


def find_pictures(inputs: Sequence[str], out: Path) -> list[ImageFile]:
    """List the images that files, folders and patterns stand for, in that order.

    Args:
        inputs: paths of files; paths of folders, whose images outside of sub-folders are taken; or
            patterns with "*", "?" or "[", where "**" is any number of folders.
        out: folder of the results, whose images are not read.

    Returns:
        At least one, each file once.

    Raises:
        FileNotFoundError: if there is nothing at an input.
        ValueError: if an input is a URL, a folder or pattern has no image, two images have the same
            name, or an image that is named lies in `out`.
    """
    seen: dict[Path, ImageFile] = {}
    for text in inputs:
        for image in _expand(text, out.resolve()):
            seen.setdefault(image.path.resolve(), image)
    by_name: dict[str, ImageFile] = {}
    for image in seen.values():
        # Not every file system tells upper from lower case.
        other = by_name.setdefault(image.name.casefold(), image)
        if other is not image:
            raise ValueError(
                f"pictures must differ in name, for their results; got `{other.path}` and "
                f"`{image.path}`. Give each folder an --out of its own, or one quoted pattern "
                "such as 'photos/**/*.jpg', which keeps sub-folders."
            )
    return list(by_name.values())


def _expand(text: str, out: Path) -> list[ImageFile]:
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
        return [ImageFile(path.stem, path)]
    found = [ImageFile(inner.stem, inner) for inner in _sorted(path.iterdir()) if _is_image(inner)]
    if not found:
        raise ValueError(
            f"`{text}` must hold pictures ({', '.join(IMAGE_SUFFIXES)}); got none. Those of its "
            f"sub-folders are '{path / '**' / '*'}'."
        )
    return found


def _matching(pattern: str, out: Path) -> list[ImageFile]:
    """List the images that a pattern matches, apart from results of earlier runs."""
    parts = list(Path(pattern).parts)
    fixed = next(i for i, part in enumerate(parts) if MAGIC.search(part))
    base = Path(*parts[:fixed])
    if parts[-1] == "**":
        parts.append("*")  # before Python 3.13 it matches folders only
    suffix = Path(parts[-1]).suffix
    any_kind = bool(suffix) and not MAGIC.search(suffix)  # whoever types "*.gif" means these files
    found = [
        ImageFile(path.relative_to(base).with_suffix("").as_posix(), path)
        for path in _sorted(base.glob("/".join(parts[fixed:])))
        if (not path.is_dir() if any_kind else _is_image(path))
        and out not in path.resolve().parents
        and not _is_hidden(path.relative_to(base), parts[fixed:])
    ]
    if not found:
        raise FileNotFoundError(
            f"IMAGE must match a picture outside of `--out`; the pattern '{pattern}' has none."
        )
    return found


def _is_hidden(path: Path, pattern: Sequence[str]) -> bool:
    """Whether a folder on the way is hidden, as ".thumbnails" is, and none of the pattern is."""
    named = any(part.startswith(".") for part in pattern)
    return not named and any(part.startswith(".") for part in path.parts[:-1])


def _sorted(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (path.parent, path.stem, path.name))


def _is_image(path: Path) -> bool:
    hidden = path.name.startswith(".")  # as macOS puts beside every file that it copies
    # A broken link counts: reading it fails, and the failure is reported.
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and not path.is_dir()
