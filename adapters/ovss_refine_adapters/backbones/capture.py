"""Shared by all sources: images prepared, maps averaged.

Axes: B images, A heads, T tokens, N of them patches, d channels per head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine.attention import Attention
from ovss_refine.checks import check_count, check_number
from ovss_refine.images.convert import ImagesLike, as_image_batch

# Elements of a block of rows: it fits in a CPU's cache, and a few float32 blocks are no larger than
# one half-precision map of 64 x 64 patches.
BLOCK_ELEMENTS = 1 << 21


class EarlyExit(Exception):
    """Raised by a hook, to leave a model after the last part that is needed."""


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters."""
    return next(model.parameters()).device


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the dtype of the model's parameters."""
    return next(model.parameters()).dtype


def check_images(images: ImagesLike) -> Tensor:
    """Return B images, in the forms of `AttentionSource`, as [B, 3, H, W] float32 in [0, 1]."""
    batch, several = as_image_batch(images, "images")
    if not several:
        raise ValueError(
            f"`images` must be a batch or a list of images; got one image, {batch.shape[2]} x "
            f"{batch.shape[3]}. Pass `[images]`."
        )
    return batch


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [B, 3, H, W] images to `size`, in float32, bilinear with antialiasing."""
    images = images.float()
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def target_size(
    size: int | tuple[int, int] | None, images: Tensor, multiple: tuple[int, int]
) -> tuple[int, int]:
    """Return the size to which [B, 3, H, W] images are resized for a model.

    Args:
        size: None: the images' own, each side rounded to a multiple; a number: the shorter side,
            the longer one in proportion, rounded; a pair: exactly that.
        images: only their size is used.
        multiple: (height, width) of a patch.
    """
    if isinstance(size, tuple):
        return size
    H, W = images.shape[2:]
    scale = 1.0 if size is None else size / min(H, W)
    height, width = (
        max(1, round(side * scale / m)) * m for side, m in zip((H, W), multiple, strict=True)
    )
    return height, width


def check_size(
    name: str, size: int | tuple[int, int] | None, multiple: tuple[int, int]
) -> int | tuple[int, int] | None:
    """Return `size` for `target_size`, or raise ValueError if its sides are not whole patches."""
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    whole = len(pair) == 2 and all(isinstance(s, int) and s > 0 for s in pair)
    if not whole or any(s % m for s, m in zip(pair, multiple, strict=True)):
        patch = multiple[0] if len(set(multiple)) == 1 else f"{multiple[0]} x {multiple[1]}"
        raise ValueError(
            f"`{name}` must be a positive multiple of the patch size {patch}, or a pair of them; "
            f"got {size!r}."
        )
    return size if isinstance(size, int) else (pair[0], pair[1])


def add_mean_attention(
    out: Tensor, q: Tensor, k: Tensor, scale: float, weight: float, prefix: int = 0
) -> None:
    """Add `weight` times the mean over heads of softmax(scale q k^T) to `out`, a block at a time.

    The softmax is over all T = prefix + N tokens. Then the `prefix` tokens, which are not patches,
    are dropped and each row is divided by its remaining sum. Memory beyond `out`: four blocks of
    2^21 floats.

    Args:
        out: [B, N, N], updated in place; any float dtype.
        q: [B, A, T, d] queries.
        k: [B, A, T, d] keys.
        scale: factor on the products, usually d ** -0.5.
        weight: factor on the map.
        prefix: number of leading tokens that are not patches.
    """
    B, A, T, _ = q.shape
    n = max(1, BLOCK_ELEMENTS // (B * T))
    for start in range(prefix, T, n):
        rows = slice(start, min(start + n, T))
        block = torch.zeros((), device=q.device)
        for head in range(A):
            # float32, because products of half-precision heads overflow.
            products = (q[:, head, rows].float() * scale) @ k[:, head].float().mT  # [B, n, T]
            block = block + products.softmax(dim=-1)
        block = block[..., prefix:]
        block = block / block.sum(dim=-1, keepdim=True)
        out[:, start - prefix : rows.stop - prefix].add_(block.to(out.dtype), alpha=weight)


def mix_attention(
    layers: Sequence[tuple[Tensor, Tensor, float]],
    weights: Sequence[float],
    grid: tuple[int, int],
    *,
    prefix: int,
    factors: bool,
    device: torch.device,
) -> Attention:
    """Average the attention of layers, as a float32 map or as factors.

    Args:
        layers: queries [B, A, T, d], keys [B, A, T, d] and the factor on their products.
        weights: one per layer, summing to one; equal with `factors`.
        grid: (gh, gw), T - prefix = gh * gw.
        prefix: number of leading tokens that are not patches.
        factors: return the layers' heads side by side instead of the map.
        device: of the result.
    """
    with torch.no_grad(), torch.autocast(layers[0][0].device.type, enabled=False):
        if factors:
            used = [layer for layer, weight in zip(layers, weights, strict=True) if weight]
            scaled = [q[:, :, prefix:].float() * scale for q, _, scale in used]
            keys = [k[:, :, prefix:].float() for _, k, _ in used]
            q, k = (torch.cat(x, dim=1).to(device) for x in (scaled, keys))
            return Attention.from_factors(q, k, 1.0, grid)
        q = layers[0][0]
        N = q.shape[2] - prefix
        out = torch.zeros(len(q), N, N, dtype=torch.float32, device=q.device)
        for (q, k, scale), weight in zip(layers, weights, strict=True):
            add_mean_attention(out, q, k, scale, weight, prefix)
        return Attention(out.to(device), grid)


def check_layers(layers: Sequence[int], count: int) -> list[int]:
    """Return some of `count` layers, which may be negative, counted from the start, or raise."""
    if isinstance(layers, str) or len(layers) == 0:
        raise ValueError(f"`layers` must name at least one layer; got {layers!r}.")
    for layer in layers:
        check_count("layers", layer, -count)
        check_number("layers", layer, -count, count - 1)
    return [layer % count for layer in layers]


def check_layer_weights(
    name: str, weights: Sequence[float] | None, count: int, *, factors: bool
) -> tuple[float, ...]:
    """Return the weights of `count` layers, divided by their sum; equal weights for None.

    With `factors`, those that are not zero must be equal.
    """
    if weights is None:
        return (1 / count,) * count
    if len(weights) != count:
        raise ValueError(f"`{name}` must have one weight per layer, {count}; got {len(weights)}.")
    for weight in weights:
        check_number(name, weight, 0)
    total = sum(weights)
    if total == 0:
        raise ValueError(f"`{name}` must not be all zero; got {list(weights)}.")
    if factors and len({weight for weight in weights if weight}) > 1:
        raise ValueError(
            f"`{name}` must be equal with `factors`, which average the layers' heads; got "
            f"{list(weights)}."
        )
    return tuple(weight / total for weight in weights)
