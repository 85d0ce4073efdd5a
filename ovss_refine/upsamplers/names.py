"""Upsamplers by name, and what one promises. The command line reads the names without torch.

An entry point in the group `ovss_refine.upsampler` names an upsampler itself: the function, not
what makes it.
"""

from __future__ import annotations

import importlib
from dataclasses import fields
from functools import partial
from importlib.metadata import entry_points
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol, cast

from ovss_refine import registry

if TYPE_CHECKING:
    from torch import Tensor

    from ovss_refine.config import RefineConfig

BUILT_IN = {
    "jbu": "ovss_refine.method.upsample:joint_bilateral_upsample",
    "bilinear": "ovss_refine.upsamplers.bilinear:bilinear_upsample",
    "guided": "ovss_refine.upsamplers.guided:guided_upsample",
}
HELP = f"what upsamples: {', '.join(BUILT_IN)}, or your own MODULE:FUNCTION"


class Upsampler(Protocol):
    """A function from coarse maps to pixels, along the edges of an image or not.

    `ovss_refine.testing.check_upsampler` checks what is promised here. A refinement calls it
    without gradient and without autocast, with one image at a time and the maps of the classes
    that this image keeps.
    """

    def __call__(self, low: Tensor, image: Tensor, /) -> Tensor:
        """Upsample.

        Args:
            low: [B, K, gh, gw] float32 maps of any range, finite; not to be changed.
            image: [B, 3, H, W] float32 images in [0, 1], on the same device; not to be changed.

        Returns:
            [B, K, H, W] float32 on that device, finite. One image's maps must not depend on the
            other images; one map may depend on the others.
        """


def load_upsampler(name: str) -> Upsampler:
    """Return the upsampler that `RefineConfig.upsampler` names.

    Args:
        name: one of `list_upsamplers()`, or MODULE:FUNCTION.

    Raises:
        ValueError: if there is none of that name, or the module cannot be imported.

    Example:
        >>> load_upsampler("guided").__name__
        'guided_upsample'
    """
    path = BUILT_IN.get(name, name)
    if ":" not in path:
        return cast(Upsampler, registry.find("upsampler", name, [*BUILT_IN]).load())
    module, _, function = path.partition(":")
    try:
        found = attrgetter(function)(importlib.import_module(module))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"`upsampler` must be MODULE:FUNCTION that can be imported; got {name!r}: {error}."
        ) from error
    if not callable(found):
        raise ValueError(f"`upsampler` must name a function; {name!r} is {type(found).__name__}.")
    return cast(Upsampler, found)


def resolved(upsampler: Upsampler | str) -> Upsampler:
    """Return the upsampler that `RefineConfig.upsampler` is or names."""
    return load_upsampler(upsampler) if isinstance(upsampler, str) else upsampler


def list_upsamplers() -> list[str]:
    """List the names of the built-in upsamplers, then of those that other packages register.

    Example:
        >>> list_upsamplers()[:3]
        ['jbu', 'bilinear', 'guided']
    """
    others = {point.name for point in entry_points(group="ovss_refine.upsampler")}
    return [*BUILT_IN, *sorted(others - BUILT_IN.keys())]


def as_upsampler(name: str, value: Any) -> Upsampler | str:
    """Return `value`, an upsampler or the name of one, or raise.

    Raises:
        TypeError: if it is neither a text nor a function or another object that can be called.
        ValueError: if there is no upsampler of that name; names the nearest.
    """
    if isinstance(value, str):
        if ":" in value:
            load_upsampler(value)
        elif value not in BUILT_IN:
            registry.find("upsampler", value, [*BUILT_IN])
    elif isinstance(value, type) or not callable(value):
        raise TypeError(f"`{name}` must be a name or a function of maps and images; got {value!r}.")
    return cast("Upsampler | str", value)


def name_of(upsampler: Any) -> str:
    """Write down an upsampler, or another function: its name, for manifests.

    Example:
        >>> name_of("jbu"), name_of(load_upsampler("guided"))
        ('jbu', 'ovss_refine.upsamplers.guided:guided_upsample')
    """
    if isinstance(upsampler, str):
        return upsampler
    if isinstance(upsampler, partial):
        options = [*map(repr, upsampler.args)]
        options += [f"{key}={value!r}" for key, value in upsampler.keywords.items()]
        return f"{name_of(upsampler.func)}({', '.join(options)})"
    named = upsampler if hasattr(upsampler, "__qualname__") else type(upsampler)
    return f"{named.__module__}:{named.__qualname__}"


def settings_of(config: RefineConfig) -> dict[str, Any]:
    """Return the options by name, in a form for manifests: an upsampler as its name."""
    options = {one.name: getattr(config, one.name) for one in fields(config)}
    return options | {"upsampler": name_of(config.upsampler)}
