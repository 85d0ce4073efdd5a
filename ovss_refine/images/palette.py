"""A colour for every name: always the same one, and distinct with colour-blind vision too.

The name alone determines its first choice, so that "cat" has the same colour next to "dog" and
among twenty others. If two names of an image choose the same colour, one of them takes another.
"""

import colorsys
import hashlib
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
GREY: Colour = (115, 115, 115)
# Found by repeatedly adding the colour farthest from all others, and from grey and white.
# Distance is Euclidean in OKLab (B. Ottosson, 2020), the least of normal vision and of protanopia,
# deuteranopia and tritanopia as G. Machado et al., IEEE TVCG 2009, simulate them: at least 0.07
# (0.054 for tritanopia), where 0.02 is about the least visible difference.
COLOURS = [
    (code >> 16, code >> 8 & 0xFF, code & 0xFF)
    for code in (
        *(0xD25A00, 0xE1B4FF, 0x5AFF00, 0x4B0096, 0x78000F, 0xC35AFF, 0xF09687, 0xC3F0C3),
        *(0x9600D2, 0xA52D00, 0x5A4B78, 0xA596D2, 0x5A78B4, 0xD2B400, 0x5A2D4B, 0xC3963C),
        *(0x87C3C3, 0x784B4B, 0xE17896, 0x96E178, 0xFFD2FF, 0xF000A5, 0x3C3CFF, 0x87875A),
    )
]
# Steps that reach every colour of the table: they are coprime to its length.
STEPS = (1, 5, 7, 11, 13, 17, 19, 23)
# Additive steps of M. Roberts' R3 sequence, which leaves no gaps in three dimensions.
R3 = (0.8191725134, 0.6710436067, 0.5497004779)


def palette(names: Sequence[str]) -> NDArray[np.uint8]:
    """Choose a colour for each of M names: [M, 3].

    "background" is grey. The colours depend neither on the order nor on the case of the names. If
    several choose the same colour, all but one take another of the table; which one keeps it
    depends on the names alone. Beyond the 24 colours of the table, further colours are distinct
    but may look alike.
    """
    keys = [_digest(name) for name in names]
    ranked = sorted(range(len(names)), key=lambda i: (keys[i], names[i], i))
    chosen = {i: GREY for i in ranked if names[i].casefold() == "background"}
    taken: set[Colour] = set()
    more = _more()
    # First choices, then second ones, then colours beyond the table.
    for choices in (lambda key: _choices(key)[:1], _choices, lambda _: more):
        for i in ranked:
            free = (colour for colour in choices(keys[i]) if colour not in taken)
            if i not in chosen and (colour := next(free, None)):
                chosen[i] = colour
                taken.add(colour)
    return np.array([chosen[i] for i in range(len(names))], np.uint8).reshape(-1, 3)


def _digest(name: str) -> int:
    digest = hashlib.blake2b(name.casefold().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _choices(key: int) -> list[Colour]:
    """Return the colours of the table in the order of preference of a name."""
    n = len(COLOURS)
    step = STEPS[key // n % len(STEPS)]
    return [COLOURS[(key + step * i) % n] for i in range(n)]


def _more() -> Iterator[Colour]:
    """Yield further colours, spread evenly over hue, lightness and saturation."""
    for index in count(1):
        hue, lightness, saturation = (index * step % 1.0 for step in R3)
        colour = colorsys.hls_to_rgb(hue, 0.3 + 0.45 * lightness, 0.5 + 0.5 * saturation)
        red, green, blue = (round(255 * part) for part in colour)
        yield red, green, blue
