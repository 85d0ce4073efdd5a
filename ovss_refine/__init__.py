"""Training-free refinement of the logits of any open-vocabulary segmenter.

`Refiner()(logits, attn, image).labels` refines your own logits;
`Segmenter()("photo.jpg", "cat, dog, background: wall").save("out.png")` starts from an image.

The names are loaded at first use: importing torch takes over a second, and the command line must
answer `--help` without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ovss_refine import _moved as _moved

if TYPE_CHECKING:
    from ovss_refine.attention import Attention as Attention
    from ovss_refine.attention import AttentionSource as AttentionSource
    from ovss_refine.config import RefineConfig as RefineConfig
    from ovss_refine.logits import Logits as Logits
    from ovss_refine.logits import LogitsSource as LogitsSource
    from ovss_refine.method.upsample import joint_bilateral_upsample as joint_bilateral_upsample
    from ovss_refine.refiner import Refiner as Refiner
    from ovss_refine.refiner import refine as refine
    from ovss_refine.registry import list_attention as list_attention
    from ovss_refine.registry import list_logits as list_logits
    from ovss_refine.registry import load_attention as load_attention
    from ovss_refine.registry import load_logits as load_logits
    from ovss_refine.result import RefineResult as RefineResult
    from ovss_refine.segmentation import Segmentation as Segmentation
    from ovss_refine.segmenter import Segmenter as Segmenter

__version__ = "0.1.0"

_NAMES = {
    "attention": ("Attention", "AttentionSource"),
    "config": ("RefineConfig",),
    "logits": ("Logits", "LogitsSource"),
    "method.upsample": ("joint_bilateral_upsample",),
    "refiner": ("Refiner", "refine"),
    "registry": ("list_attention", "list_logits", "load_attention", "load_logits"),
    "result": ("RefineResult",),
    "segmentation": ("Segmentation",),
    "segmenter": ("Segmenter",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
