"""Fonts for names in any script: Pillow's own, a system font, or Unicode numbers."""

import warnings
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

from PIL import ImageFont

# System fonts for scripts that Pillow's own font (Latin) lacks; fonts with many scripts first.
SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "arial.ttf",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
)
# An unassigned code point, drawn as a font's placeholder for missing letters.
UNASSIGNED = "\U0010fffe"
ELLIPSIS = "..."
MOST_LETTERS = 500


def writable(text: str, px: int) -> tuple[str, Any]:
    """Return a text and a font of `px` pixels that has all of its letters.

    If no font has them, letters become Unicode numbers, such as "[U+732B]", with a warning.
    """
    text = " ".join(text.split())  # on one line
    for font in _fonts(px):
        if all(has(font, letter) for letter in text):
            return text, font
    own = default(px)
    coded = "".join(c if has(own, c) else f"[U+{ord(c):04X}]" for c in text)
    warnings.warn(
        f"no font was found for {text!r}; it is drawn as {coded!r}. Install one, such as Noto Sans "
        "CJK.",
        stacklevel=2,
    )
    return coded, own


def fitting(text: str, px: int, width: float) -> tuple[str, Any]:
    """Return what `writable` does, truncated to `width` pixels and 500 letters."""
    text, font = writable(text[: MOST_LETTERS + 1], px)
    if len(text) <= MOST_LETTERS and font.getlength(text) <= width:
        return text, font
    text = text[:MOST_LETTERS]
    # By halves: measuring takes as long as the text, and a name may be of any length.
    fits = bisect_right(
        range(1, len(text) + 1), width, key=lambda n: font.getlength(text[:n] + ELLIPSIS)
    )
    return (text[:fits] + ELLIPSIS if fits else ""), font


@cache
def default(px: int) -> Any:
    """Return Pillow's own font."""
    return ImageFont.load_default(px)


def _fonts(px: int) -> Iterator[Any]:
    yield default(px)
    yield from (font for name in SYSTEM_FONTS if (font := _system(name, px)) is not None)


@cache
def _system(name: str, px: int) -> Any | None:
    try:
        return ImageFont.truetype(name, px)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def has(font: Any, letter: str) -> bool:
    """Whether a font has a letter: it draws it differently from an unassigned code point."""
    return letter.isspace() or _drawn(font, letter) != _drawn(font, UNASSIGNED)


def _drawn(font: Any, letter: str) -> tuple[Any, bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)
