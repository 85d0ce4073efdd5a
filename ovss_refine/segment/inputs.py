"""The images that a user names: files, folders and patterns, each with a name for its results.

A name is the file's stem, preceded by the sub-folders that a pattern matched, so that `a/x.jpg` and
`b/x.jpg` have different results.
"""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovss_refine.folders.paths import URL
from ovss_refine.images.formats import IMAGE_SUFFIXES, by_stem, pick_images

MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image to read; `name` is that of its results, unique in a run, with "/" in between."""

    name: str
    path: Path


def find_pictures(inputs: Sequence[str], out: Path) -> list[ImageFile]:
    """List the images that files, folders and patterns name, in that order.

    Args:
        inputs: paths of files; paths of folders, for the images directly in them; or patterns with
            "*", "?" or "[", in which "**" matches any number of folders.
        out: folder of the results, whose images are skipped.

    Returns:
        At least one, each file once. Image files of other formats are left out with a warning that
        counts them.

    Raises:
        FileNotFoundError: if there is nothing at an input.
        ValueError: if an input is a URL, a folder or pattern has no image, two images have the same
            name, or an input is in `out`.
    """
    seen: dict[Path, ImageFile] = {}
    for text in inputs:
        for image in _expand(text, out.resolve()):
            seen.setdefault(image.path.resolve(), image)
    by_name: dict[str, ImageFile] = {}
    for image in seen.values():
        # Not every file system distinguishes upper and lower case.
        other = by_name.setdefault(image.name.casefold(), image)
        if other is not image:
            raise ValueError(
                f"images must have different names, for their results; got `{other.path}` and "
                f"`{image.path}`. Use a separate --out for each folder, or one quoted pattern "
                "such as 'photos/**/*.jpg', which keeps sub-folders."
            )
    return list(by_name.values())


def _expand(text: str, out: Path) -> list[ImageFile]:
    if URL.match(text):
        raise ValueError(
            f"IMAGE must be a file, a folder or a pattern; got {text!r}. Download the image first."
        )
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - Path's own raises for an unknown user
    if not path.exists() and MAGIC.search(text):
        return _matching(str(path), out)
    if not path.exists():
        raise FileNotFoundError(
            f"IMAGE must be an existing file or folder, or a pattern; got `{text}`."
        )
    if path.resolve() == out or out in path.resolve().parents:
        raise ValueError(
            f"`--out` must not contain the images to segment; got `{text}`, which is in it."
        )
    if not path.is_dir():
        return [ImageFile(path.stem, path)]
    found, lost = pick_images(path.iterdir())
    if not found:
        raise ValueError(
            f"`{text}` must contain images ({', '.join(IMAGE_SUFFIXES)}); got none. To include "
            f"sub-folders, pass '{path / '**' / '*'}'. {lost}".rstrip()
        )
    _warn(lost)
    return [ImageFile(image.stem, image) for image in found]


def _matching(pattern: str, out: Path) -> list[ImageFile]:
    """List the images that a pattern matches, except results of earlier runs."""
    parts = list(Path(pattern).parts)
    fixed = next(i for i, part in enumerate(parts) if MAGIC.search(part))
    base = Path(*parts[:fixed])
    if parts[-1] == "**":
        parts.append("*")  # before Python 3.13 it matches folders only
    suffix = Path(parts[-1]).suffix
    any_kind = bool(suffix) and not MAGIC.search(suffix)  # "*.gif" means these files
    matched = [
        path
        for path in base.glob("/".join(parts[fixed:]))
        if out not in path.resolve().parents
        and not _is_hidden(path.relative_to(base), parts[fixed:])
    ]
    found, lost = pick_images(matched)
    if any_kind:
        found, lost = by_stem(path for path in matched if not path.is_dir()), ""
    if not found:
        raise FileNotFoundError(
            f"IMAGE must match an image outside of `--out`; got the pattern '{pattern}'. "
            f"{lost}".rstrip()
        )
    _warn(lost)
    return [ImageFile(path.relative_to(base).with_suffix("").as_posix(), path) for path in found]


def _warn(lost: str) -> None:
    if lost:
        warnings.warn(lost, stacklevel=4)


def _is_hidden(path: Path, pattern: Sequence[str]) -> bool:
    """Whether a path has a hidden folder, such as ".thumbnails", but the pattern has none."""
    named = any(part.startswith(".") for part in pattern)
    return not named and any(part.startswith(".") for part in path.parts[:-1])
