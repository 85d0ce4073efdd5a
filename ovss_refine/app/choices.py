"""What the page lets people choose: sources, modes, and the numbers that matter, with reasons."""

from dataclasses import dataclass, fields
from typing import Any

from ovss_refine.config import RefineConfig
from ovss_refine.method.modes import MODES
from ovss_refine.registry import list_attention, list_logits
from ovss_refine.sources.listing import facts

DEFAULTS = {field.name: field.default for field in fields(RefineConfig)}
# What `ovss-refine sources` says of sources that are made from files or functions of one's own:
# the page has no place to name those.
NO_DOWNLOAD = "-"


@dataclass(frozen=True, slots=True)
class Number:
    """A number of `RefineConfig` that people may set.

    Attributes:
        name: the field.
        label: what it is called on the page.
        low: lowest value.
        high: highest value.
        step: between two values.
        info: what it does, in a sentence or two.
    """

    name: str
    label: str
    low: float
    high: float
    step: float
    info: str

    @property
    def modes(self) -> list[str]:
        """The modes that read the field; all of them if it belongs to none in particular."""
        own = [name for name, mode in MODES.items() if self.name in mode.options]
        return own or list(MODES)

    @property
    def default(self) -> float:
        """The library's own default."""
        value = DEFAULTS[self.name]
        assert isinstance(value, (int, float))  # noqa: S101 - the tests look at every field
        return value


NUMBERS = (
    Number(
        "nms_threshold",
        "Seed threshold",
        0.0,
        1.0,
        0.05,
        "How sure a patch must be of its label to be a seed, as a share of the surest patch. "
        "Higher: fewer and safer seeds.",
    ),
    Number(
        "tau",
        "Reach",
        0.05,
        0.95,
        0.05,
        "A patch is reached once it holds this share of the largest mass. "
        "Lower: seeds spread further and sooner.",
    ),
    Number(
        "epsilon",
        "Entropy weight",
        0.02,
        1.0,
        0.02,
        "How blurred the optimal path is. Higher: smoother maps.",
    ),
    Number(
        "propagation_steps",
        "Steps",
        0,
        10,
        1,
        "How many steps the scores take along the attention.",
    ),
    Number(
        "pre_propagation",
        "Steps before",
        0,
        5,
        1,
        "Steps along the attention before all else. Helps large objects, hurts small ones.",
    ),
    Number(
        "sigma_range",
        "Edge tolerance",
        0.02,
        0.5,
        0.02,
        "How far colours may differ across one object. Lower: borders follow finer edges.",
    ),
)


def list_sources(kind: str) -> list[str]:
    """Name the sources that run without files of one's own.

    Args:
        kind: "logits" or "attention".
    """
    names = list_logits() if kind == "logits" else list_attention()
    return [n for n in names if facts(kind, n)["download"] != NO_DOWNLOAD]


def describe_choice(kind: str, name: str) -> str:
    """Say in a line what a source loads, under which licence, and what is missing for it."""
    about = facts(kind, name)
    line = f"`{name}`: {about['weights']}; {about['download']}; {about['licence']}"
    if "missing" in about["needs"]:
        line += f"; needs {about['needs']}: run `pip install 'ovss-refine[models]'`"
    return line + "."


def options_of(mode: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a refinement: those numbers that the mode uses.

    A slider gives whole numbers as floats at times, which counts may not be.
    """
    used = {number.name: type(number.default) for number in NUMBERS if mode in number.modes}
    return {"mode": mode, **{name: kind(numbers[name]) for name, kind in used.items()}}
