"""Queries and keys of timm's attention modules, captured by hooks.

Axes: B images, A heads, T tokens (prefix tokens first), d channels per head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ovss_refine.registry import require


@dataclass(frozen=True, slots=True, eq=False)
class Projections:
    """What one block's attention compares.

    Attributes:
        q: [B, A, T, d] queries, normalised and rotated as in the block, not scaled.
        k: [B, A, T, d] keys, likewise.
        scale: the block's factor on q k^T.
    """

    q: Tensor
    k: Tensor
    scale: float


def add_hooks(attn: Any, captured: dict[str, Any]) -> list[Any]:
    """Capture the input of `attn`, and its queries and keys just before rotation."""

    def capture(name: str) -> Any:
        return lambda _module, _args, output: captured.__setitem__(name, output)

    def capture_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured["x"] = args[0]
        captured["rope"] = kwargs.get("rope")

    return [
        attn.register_forward_pre_hook(capture_input, with_kwargs=True),
        attn.q_norm.register_forward_hook(capture("q")),
        attn.k_norm.register_forward_hook(capture("k")),
    ]


def project(attn: Any, captured: dict[str, Any], index: int) -> Projections:
    """Rotate the captured queries and keys."""
    missing = {"x", "q", "k"} - captured.keys()
    if missing:
        raise RuntimeError(
            f"block {index} ran without computing attention: no {sorted(missing)} were captured."
        )
    q, k, x, rope = (captured[name] for name in ("q", "k", "x", "rope"))
    if rope is not None:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            q, k = (_rotate(attn, y, rope).type_as(x) for y in (q, k))
    if q.shape[1] != k.shape[1]:  # several heads in turn share one head of keys
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return Projections(q, k, float(attn.scale))


def _rotate(attn: Any, y: Tensor, rope: Tensor) -> Tensor:
    """Rotate the patches of [B, A, T, d]; the prefix tokens have no position."""
    layers = require("timm.layers", "models")
    prefix = attn.num_prefix_tokens
    half = getattr(attn, "rotate_half", False)
    patches = layers.apply_rot_embed_cat(y[:, :, prefix:], rope, half=half)
    return torch.cat([y[:, :, :prefix], patches], dim=2)
