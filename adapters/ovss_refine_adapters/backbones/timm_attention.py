"""Queries, keys and values of timm's attention modules, caught while they run.

Axes: B images, A heads, T tokens (prefix tokens first), d channels of a head.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine.registry import require


@dataclass(frozen=True, slots=True, eq=False)
class Projections:
    """What one block's attention works on.

    Attributes:
        q: [B, A, T, d] queries, normed and rotated as the block does, not scaled.
        k: [B, A, T, d] keys, likewise.
        v: [B, A, T, d] values.
        scale: factor that the block puts on q k^T.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float


def watch(attn: Any, caught: dict[str, Any]) -> list[Any]:
    """Note the input of `attn`, and its queries and keys just before rotation."""

    def note(name: str) -> Any:
        return lambda _module, _args, output: caught.__setitem__(name, output)

    def note_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught["x"] = args[0]
        caught["rope"] = kwargs.get("rope")

    return [
        attn.register_forward_pre_hook(note_input, with_kwargs=True),
        attn.q_norm.register_forward_hook(note("q")),
        attn.k_norm.register_forward_hook(note("k")),
    ]


def project(attn: Any, caught: dict[str, Any], index: int) -> Projections:
    """Finish what was caught: rotate queries and keys, make the values."""
    missing = {"x", "q", "k"} - caught.keys()
    if missing:
        raise RuntimeError(
            f"block {index} ran without computing attention: no {sorted(missing)} were seen."
        )
    q, k, x, rope = (caught[name] for name in ("q", "k", "x", "rope"))
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        v = _values(attn, x).reshape(*x.shape[:2], attn.num_heads, -1).transpose(1, 2)
        if rope is not None:
            q, k = (_rotate(attn, y, rope).type_as(v) for y in (q, k))
    return Projections(q, k, v, float(attn.scale))


def _rotate(attn: Any, y: Tensor, rope: Tensor) -> Tensor:
    """Rotate the patches of [B, A, T, d]; the prefix tokens have no place in the image."""
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
    own = getattr(attn, "v_bias", None)  # where timm keeps the bias apart from the projection
    return F.linear(x, attn.qkv.weight.chunk(3)[2], bias if own is None else own)
