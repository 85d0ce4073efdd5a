"""Training-free refinement of any open-vocabulary segmenter's scores.

`Refiner()(logits, attn, image).labels` refines scores of one's own;
`Segmenter()("photo.jpg", "cat, dog, background: wall").save("out.png")` starts from a picture.

The names load on first use: torch takes over a second to import, and the command line has
to answer `--help` without it.
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

_HOME = {
    "Attention": "attention",
    "AttentionSource": "attention",
    "Logits": "logits",
    "LogitsSource": "logits",
    "RefineConfig": "config",
    "RefineResult": "result",
    "Refiner": "refiner",
    "Segmentation": "segmentation",
    "Segmenter": "segmenter",
    "joint_bilateral_upsample": "method.upsample",
    "list_attention": "registry",
    "list_logits": "registry",
    "load_attention": "registry",
    "load_logits": "registry",
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
