"""A colour for every name: always the same one, and distinct to colour-blind people too.

A name alone decides its first choice, so that "cat" has one colour beside "dog" and beside twenty
others. Where two names of one image choose the same colour, one of them takes another.
"""

import colorsys
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

GREY = (115, 115, 115)
BACKGROUND = "background"
# Found by taking, again and again, the colour farthest from all before it, and from grey and white.
# Distance is Euclidean in OKLab (B. Ottosson, 2020), the least of normal vision and of protanopia,
# deuteranopia and tritanopia as G. Machado et al., IEEE TVCG 2009, simulate them: at least 0.07
# (0.054 for tritanopia), where 0.02 is about the least that one can see.
COLOURS = (
    (210, 90, 0),
    (225, 180, 255),
    (90, 255, 0),
    (75, 0, 150),
    (120, 0, 15),
    (195, 90, 255),
    (240, 150, 135),
    (195, 240, 195),
    (150, 0, 210),
    (165, 45, 0),
    (90, 75, 120),
    (165, 150, 210),
    (90, 120, 180),
    (210, 180, 0),
    (90, 45, 75),
    (195, 150, 60),
    (135, 195, 195),
    (120, 75, 75),
    (225, 120, 150),
    (150, 225, 120),
    (255, 210, 255),
    (240, 0, 165),
    (60, 60, 255),
    (135, 135, 90),
)
# Steps through the table that reach all of it: they have no divisor in common with its length.
STEPS = (1, 5, 7, 11, 13, 17, 19, 23)
# Additive steps of M. Roberts' R3 sequence, which leaves no gaps in three dimensions.
R3 = (0.8191725134, 0.6710436067, 0.5497004779)


def palette(names: Sequence[str]) -> NDArray[np.uint8]:
    """Choose a colour for each of M names: [M, 3].

    "background" is grey. The others have their own colour, whatever their case and their order;
    of names that want the same one all but one take another of the table, which of them depends on
    the names alone. Past the 24 colours of the table the rest get distinct ones, which the eye may
    not tell apart.
    """
    keys = [_digest(name) for name in names]
    ranked = sorted(range(len(names)), key=lambda i: (keys[i], names[i], i))
    chosen: dict[int, tuple[int, int, int]] = {
        i: GREY for i in ranked if names[i].casefold() == BACKGROUND
    }
    taken: set[tuple[int, int, int]] = set()
    for tries in (1, len(COLOURS)):  # first choices go before second ones
        for i in ranked:
            if i in chosen:
                continue
            free = [colour for colour in _choices(keys[i])[:tries] if colour not in taken]
            if free:
                chosen[i] = free[0]
                taken.add(free[0])
    more = _more()
    for i in ranked:
        if i not in chosen:
            chosen[i] = next(colour for colour in more if colour not in taken)
            taken.add(chosen[i])
    return np.array([chosen[i] for i in range(len(names))], np.uint8).reshape(-1, 3)


def _digest(name: str) -> int:
    digest = hashlib.blake2b(name.casefold().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _choices(key: int) -> list[tuple[int, int, int]]:
    """Return the colours of the table in the order in which a name wants them."""
    n = len(COLOURS)
    step = STEPS[key // n % len(STEPS)]
    return [COLOURS[(key + step * i) % n] for i in range(n)]


def _more() -> Iterator[tuple[int, int, int]]:
    """Return further colours, well spread over hue, lightness and saturation."""
    index = 0
    while True:
        index += 1
        hue, lightness, saturation = (index * step % 1.0 for step in R3)
        colour = colorsys.hls_to_rgb(hue, 0.3 + 0.45 * lightness, 0.5 + 0.5 * saturation)
        red, green, blue = (round(255 * part) for part in colour)
        yield red, green, blue
