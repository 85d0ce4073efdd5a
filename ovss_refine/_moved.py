"""Import paths that have moved since version 0.1: the old name gives the new module."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_ADAPTERS = {
    "_dense": "logits.dense",
    "_timm": "backbones.timm",
    "affinity": "attention.affinity",
    "bring_your_own": "logits.own",
    "cass": "logits.cass",
    "clip": "logits.clip",
    "clip_attention": "attention.clip",
    "proxyclip": "logits.proxyclip",
    "rf_clip": "logits.rf_clip",
    "sc_clip": "logits.sc_clip",
    "stable_diffusion": "attention.stable_diffusion",
    "vit": "attention.vit",
}
MOVED = {
    "ovss_refine.inputs": "ovss_refine.segment.inputs",
    "ovss_refine_adapters.decision": "ovss_refine.baseline.decision",
    "ovss_refine_adapters.pamr": "ovss_refine.baseline.pamr",
    "ovss_refine_adapters.windows": "ovss_refine.baseline.resize",
    **{f"ovss_refine_adapters.{k}": f"ovss_refine_adapters.{v}" for k, v in _ADAPTERS.items()},
}


class _Alias(MetaPathFinder, Loader):
    """Finds the old names, and loads the new modules instead."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for a moved module, None for others."""
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Replace the empty module by the new one."""
        old, new = module.__name__, MOVED[module.__name__]
        warnings.warn(f"`{old}` has moved to `{new}`.", DeprecationWarning, stacklevel=2)
        sys.modules[old] = import_module(new)


sys.meta_path.append(_Alias())
