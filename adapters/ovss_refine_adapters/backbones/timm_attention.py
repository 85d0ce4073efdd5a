"""Where timm's models have their patches and attention, and its queries and keys, by hooks.

Axes: B images, A heads, T tokens (prefix tokens first), d channels per head.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ovss_refine.registry import require
from ovss_refine_adapters.backbones.capture import EarlyExit

# Attention that is a softmax of q k^T over all tokens. By name, as older versions of timm lack
# some; not by isinstance, as a subclass may add a bias to the products, which would be missed.
PLAIN = {
    "timm.layers.attention.Attention",
    "timm.layers.attention.AttentionRope",
    "timm.models.eva.EvaAttention",
    "timm.models.gemma4_vit.Gemma4Attention",
}
# Blocks that are their own attention.
PLAIN_BLOCKS = {"timm.models.vision_transformer.ParallelScalingBlock"}
# Those whose queries and keys are [B, T, A, d] where they are captured.
TOKENS_FIRST = {"timm.models.gemma4_vit.Gemma4Attention", *PLAIN_BLOCKS}
GEMMA = "timm.models.gemma4_vit"
# Names of modules that are named in the place of attention that is not plain.
ATTENTIVE = re.compile("Attention|Attn|XCA$|Parallel.*Block")


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


def trunk(model: Any) -> Any:
    """Return the part of a model that has its blocks: the encoder in a classifier around one."""
    encoder = getattr(model, "encoder", None)
    return encoder if not hasattr(model, "blocks") and hasattr(encoder, "blocks") else model


def patch_size(model: Any) -> tuple[int, int]:
    """Return (height, width) of a token in pixels; (1, 1) for a model without patches."""
    # `embeds` is that of a NaFlexVit.
    embed = getattr(model, "patch_embed", getattr(model, "embeds", None))
    height, width = _pair(getattr(embed, "patch_size", 1))
    # Of a convolutional stem before the patches.
    rows, columns = _pair(getattr(embed, "feature_ratio", 1))
    return height * rows, width * columns


def attention_of(model: Any, index: int) -> Any:
    """Return the attention module of a block, or raise ValueError unless it is plain softmax."""
    blocks = [*getattr(trunk(model), "blocks", [])]
    block = blocks[index] if index < len(blocks) else None  # some models have other stages too
    if _kind(block) in PLAIN_BLOCKS:
        return block
    attn = getattr(block, "attn", None)
    if _kind(attn) not in PLAIN:
        raise ValueError(
            "`model` must be a vision transformer whose blocks have plain softmax attention over "
            f"all patches; got {type(model).__name__} with {_what_it_has(model, attn)}. Use the "
            'affinity of its features: kind="affinity", or the source "affinity".'
        )
    return attn


def _kind(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"


def _pair(size: Any) -> tuple[int, int]:
    return (int(size[0]), int(size[1])) if isinstance(size, Sequence) else (int(size), int(size))


def _what_it_has(model: nn.Module, attn: Any) -> str:
    """Name the attention of a block, or else all kinds of attention in a model."""
    if attn is not None:
        return type(attn).__name__
    names = {type(part).__name__ for part in model.modules()}
    return " and ".join(sorted(filter(ATTENTIVE.search, names))) or "none"


def add_hooks(attn: Any, captured: dict[str, Any], *, leave: bool) -> list[Any]:
    """Capture the input of `attn`, and its queries and keys just before rotation.

    With `leave`, raise `EarlyExit` then.
    """

    def capture(name: str) -> Any:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            captured[name] = output
            if leave and {"q", "k"} <= captured.keys():
                raise EarlyExit

        return hook

    def capture_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured["x"] = args[0]
        captured["rope"] = args[1:3] if _kind(attn).startswith(GEMMA) else kwargs.get("rope")

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
    if _kind(attn) in TOKENS_FIRST:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    if q.shape[1] != k.shape[1]:  # several heads in turn share one head of keys
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return Projections(q, k, float(getattr(attn, "scale", 1.0)))  # Gemma 4 has none


def _rotate(attn: Any, y: Tensor, rope: Any) -> Tensor:
    """Rotate the patches of [B, A, T, d]; the prefix tokens have no position."""
    if _kind(attn).startswith(GEMMA):  # [B, T, A, d], and cosines and sines
        rotated: Tensor = require(GEMMA, "models").apply_multidimensional_rope(
            y, *rope, ndim=2, unsqueeze_dim=2
        )
        return rotated
    layers = require("timm.layers", "models")
    prefix = attn.num_prefix_tokens
    half = getattr(attn, "rotate_half", False)
    patches = layers.apply_rot_embed_cat(y[:, :, prefix:], rope, half=half)
    return torch.cat([y[:, :, :prefix], patches], dim=2)
