"""Colours of names: stable, and distinct with every kind of colour vision."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forks import fresh
from ovss_refine.images.palette import COLOURS, GREY, STEPS, palette

NAMES = [f"class {i}" for i in range(300)]
# What remains of linear RGB without red, green or blue cones: Machado et al. 2009, severity 1.
VISION = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# OKLab: linear RGB to the roots of cone responses, and those to lightness and two hues.
CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def oklab(colours, vision):
    c = np.asarray(colours) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    return np.cbrt(seen @ np.array(CONES).T) @ np.array(LAB).T


def nearest(colours, vision):
    seen = oklab(colours, vision)
    gaps = np.linalg.norm(seen[:, None] - seen, axis=-1)
    return gaps[~np.eye(len(seen), dtype=bool)].min()


@pytest.mark.parametrize("vision", VISION)
def test_colours_of_the_table_and_the_grey_are_distinct(vision):
    assert nearest([GREY, *COLOURS], vision) > (0.053 if vision == "tritanopia" else 0.069)
    red_and_green = [(200, 60, 60), (140, 110, 60)]  # it can fail
    assert nearest(red_and_green, "normal") > 0.07 > nearest(red_and_green, "deuteranopia")


def test_every_step_reaches_the_whole_table():
    assert all(np.gcd(step, len(COLOURS)) == 1 for step in STEPS)
    assert len(set(COLOURS)) == len(COLOURS) == 24


def test_a_name_keeps_its_colour_unless_another_name_collides():
    alone = {name: tuple(palette([name])[0]) for name in NAMES}
    assert set(alone.values()) == set(COLOURS)
    together = [NAMES[0]]
    for name in NAMES:
        if alone[name] not in {alone[other] for other in together}:
            together.append(name)
    assert len(together) > 15
    for order in (together, together[::-1]):
        assert [tuple(c) for c in palette(order)] == [alone[name] for name in order]


def test_one_of_two_colliding_names_keeps_its_colour_in_any_order():
    first = NAMES[0]
    colour = palette([first])[0].tolist()
    other = next(n for n in NAMES[1:] if palette([n])[0].tolist() == colour)
    one, two = palette([first, other]).tolist()
    assert colour in (one, two)
    assert one != two
    assert palette([other, first]).tolist() == [two, one]


@given(st.permutations(NAMES[:40]))
def test_order_does_not_matter(names):
    wanted = dict(zip(NAMES[:40], palette(NAMES[:40]).tolist(), strict=True))
    assert palette(names).tolist() == [wanted[name] for name in names]


@pytest.mark.parametrize("M", [1, 24, 25, 256, 2000])
def test_all_colours_differ(M):
    names = [f"name {i}" for i in range(M - 1)] + ["background"]
    colours = palette(names)
    assert (colours.shape, colours.dtype) == ((M, 3), np.uint8)
    assert len(np.unique(colours, axis=0)) == M
    assert colours[-1].tolist() == list(GREY)
    assert len(palette([])) == 0


def test_case_does_not_matter_but_both_get_colours():
    assert palette(["Cat"]).tolist() == palette(["cat"]).tolist()
    assert palette(["Background"])[0].tolist() == list(GREY)
    assert len(np.unique(palette(["Cat", "cat"]), axis=0)) == 2


def test_another_process_has_the_same_colours():
    code = f"from ovss_refine.images.palette import palette; print(palette({NAMES!r}).tolist())"
    assert fresh(code).strip() == str(palette(NAMES).tolist())


@pytest.mark.parametrize("start", range(0, 300, 20))
def test_a_second_choice_is_never_a_first_choice_of_another_name(start):
    names = NAMES[start : start + 20]
    alone = {name: tuple(palette([name])[0]) for name in names}
    for name, colour in zip(names, palette(names), strict=True):
        if alone[name] != tuple(colour):
            assert tuple(colour) not in alone.values()
