"""Training-free refinement of any open-vocabulary segmenter's scores.

`refiner = Refiner()` and `refiner(logits, attn, image).labels` is the whole use.

The names load on first use: torch takes over a second to import, and the command line has
to answer `--help` without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovss_refine.attention import Attention as Attention
    from ovss_refine.config import RefineConfig as RefineConfig
    from ovss_refine.refiner import Refiner as Refiner
    from ovss_refine.refiner import RefineResult as RefineResult
    from ovss_refine.refiner import refine as refine
    from ovss_refine.upsample import joint_bilateral_upsample as joint_bilateral_upsample

__version__ = "0.1.0"

_HOME = {
    "Attention": "attention",
    "RefineConfig": "config",
    "RefineResult": "refiner",
    "Refiner": "refiner",
    "joint_bilateral_upsample": "upsample",
    "refine": "refiner",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
