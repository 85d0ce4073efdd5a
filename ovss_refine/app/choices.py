"""What the page lets people choose: sources, modes, and the hyperparameters that matter most."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ovss_refine.config import RefineConfig
from ovss_refine.method.modes import MODES
from ovss_refine.registry import list_attention, list_logits
from ovss_refine.sources.listing import facts

FIELDS = {field.name: field for field in fields(RefineConfig)}


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """A numeric field of `RefineConfig`, called `name`, and its slider from `low` to `high`."""

    name: str
    label: str
    low: float
    high: float
    step: float
    effect: str = ""  # of a change, in a sentence

    @property
    def modes(self) -> list[str]:
        """The modes that read the field; all modes if none lists it."""
        return [name for name, mode in MODES.items() if self.name in mode.options] or list(MODES)

    @property
    def default(self) -> Any:
        """The field's default: an int for a count, else a float."""
        return FIELDS[self.name].default

    @property
    def info(self) -> str:
        """The field's own help, then the effect."""
        text: str = FIELDS[self.name].metadata["help"]
        return f"{text[0].upper()}{text[1:]}. {self.effect}".strip()


HYPERPARAMETERS = (
    Hyperparameter("seed_quantile", "Seed quantile", 0, 1, 0.05, "Higher: fewer, safer seeds."),
    Hyperparameter("vote", "Vote", 0, 0.05, 0.001, "Higher: fewer classes."),
    Hyperparameter("tau", "Reach", 0.05, 0.95, 0.05, "Lower: seeds spread further and sooner."),
    Hyperparameter("epsilon", "Entropy weight", 0.02, 1, 0.02, "Higher: smoother maps."),
    Hyperparameter("propagation_steps", "Steps", 0, 10, 1),
    Hyperparameter(
        "pre_propagation", "Steps before", 0, 5, 1, "Helps large objects, hurts small ones."
    ),
    Hyperparameter(
        "sigma_range", "Edge tolerance", 0.02, 0.5, 0.02, "Lower: borders follow finer edges."
    ),
)


def list_sources(kind: str) -> list[str]:
    """List the sources of `kind`, "logits" or "attention", that need no file of the user's."""
    names = list_logits() if kind == "logits" else list_attention()
    about = {name: facts(kind, name) for name in names}
    # "your own", "and your last.pt": what the page has no field for.
    return [
        name
        for name, row in about.items()
        if row["download"] != "-" and "your" not in row["weights"]
    ]


def describe_choice(kind: str, name: str) -> str:
    """Describe a source in one line: weights, download, licence, missing libraries."""
    about = facts(kind, name)
    line = f"`{name}`: {about['weights']}; {about['download']}; {about['licence']}"
    if "missing" in about["needs"]:
        line += f"; unavailable here: it needs {about['needs']}"
    return line + "."


def out_of_range(mode: str, values: Sequence[object]) -> str:
    """Say what is wrong with the values of all `HYPERPARAMETERS`, of those that a mode reads.

    Returns:
        A sentence about the first that is not a number of its slider; "" if there is none.
    """
    for one, value in zip(HYPERPARAMETERS, values, strict=True):
        number = isinstance(value, int | float) and one.low <= value <= one.high
        if mode in one.modes and not number:
            return f"`{one.label}` must be a number from {one.low} to {one.high}."
    return ""


def options_of(mode: str, values: Sequence[float]) -> dict[str, Any]:
    """Return the mode and, of the `values` of all `HYPERPARAMETERS`, those that it reads.

    A slider may send a count as a float; the field's type is restored.
    """
    return {"mode": mode} | {
        one.name: type(one.default)(value)
        for one, value in zip(HYPERPARAMETERS, values, strict=True)
        if mode in one.modes
    }
