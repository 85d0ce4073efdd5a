"""Queries, keys and values of timm's attention modules, captured by hooks.

Axes: B images, A heads, T tokens (prefix tokens first), d channels per head.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine.registry import require


@dataclass(frozen=True, slots=True, eq=False)
class Projections:
    """Inputs of one block's attention.

    Attributes:
        q: [B, A, T, d] queries, normalised and rotated as in the block, not scaled.
        k: [B, A, T, d] keys, likewise.
        v: [B, A, T, d] values.
        scale: the block's factor on q k^T.
    """

    q: Tensor
    k: Tensor
    v: Tensor
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
    """Rotate the captured queries and keys, and compute the values."""
    missing = {"x", "q", "k"} - captured.keys()
    if missing:
        raise RuntimeError(
            f"block {index} ran without computing attention: no {sorted(missing)} were captured."
        )
    q, k, x, rope = (captured[name] for name in ("q", "k", "x", "rope"))
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        v = _values(attn, x).reshape(*x.shape[:2], attn.num_heads, -1).transpose(1, 2)
        if rope is not None:
            q, k = (_rotate(attn, y, rope).type_as(v) for y in (q, k))
    return Projections(q, k, v, float(attn.scale))


def _rotate(attn: Any, y: Tensor, rope: Tensor) -> Tensor:
    """Rotate the patches of [B, A, T, d]; the prefix tokens have no position."""
    layers = require("timm.layers", "models")
    prefix = attn.num_prefix_tokens
    half = getattr(attn, "rotate_half", False)
    patches = layers.apply_rot_embed_cat(y[:, :, prefix:], rope, half=half)
    return torch.cat([y[:, :, :prefix], patches], dim=2)


def _values(attn: Any, x: Tensor) -> Tensor:
    """Project the input of the attention to its values, [B, T, A * d]."""
    if attn.qkv is None:
        values: Tensor = attn.v_proj(x)
        return values
    bias = attn.qkv.bias.chunk(3)[2] if attn.qkv.bias is not None else None
    own = getattr(attn, "v_bias", None)  # if timm keeps the bias separate from the projection
    return F.linear(x, attn.qkv.weight.chunk(3)[2], bias if own is None else own)
