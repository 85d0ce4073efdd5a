"""Attention from what a vision transformer has computed: maps over all its tokens.

Axes: B images, A heads, T tokens, the last N = gh * gw of them patches, (H, W) pixels.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ovss_refine.attention import Attention
from ovss_refine.checks import ROW_SUM_TOLERANCE, check_count, check_weights_shape
from ovss_refine.images.convert import as_tensor
from ovss_refine.tensors.layout import MOST_EXTRA_TOKENS

EAGER = (
    'Load the model with `attn_implementation="eager"`, as other implementations compute no map, '
    "and call it with `output_attentions=True`."
)
# Of a row on all patches: in float32, so that its entries still have digits.
LEAST = 1e-30
# Models with tokens in front of the patches besides class and registers, and how many.
MORE_TOKENS = {"deit": 1}


def from_hugging_face(
    outputs: Any,
    config: Any,
    image_size: Tensor | Sequence[int],
    *,
    layers: Sequence[int] = (-1,),
) -> Attention:
    """Take the attention from the outputs of a Hugging Face vision transformer.

    The heads of a layer are averaged, class and register tokens dropped, rows renormalised, and the
    layers averaged: what `load_attention` returns for the same model.

    Args:
        outputs: of ViT, DeiT, DINOv2 (with registers too), DINOv3, BEiT, the image encoders of CLIP
            and SigLIP, or of a segmenter built on them; with `attentions`.
        config: the model's, `model.config`.
        image_size: what the model was given: `pixel_values` [B, 3, H, W], or their (H, W).
        layers: which maps are averaged, counted from the end if negative.

    Returns:
        B maps [B, N, N] float32, on the grid of whole patches in (H, W).

    Raises:
        TypeError: on an `image_size` or a `config` of another kind.
        ValueError: without maps, which only eager attention computes; on a model whose maps are
            not over all patches, such as Swin or SegFormer; on an image of another size; a layer
            that does not exist; or maps of a model in training mode.

    Example: `from_hugging_face(model(**inputs, output_attentions=True), model.config,
    inputs.pixel_values)`
    """
    config = getattr(config, "vision_config", config)
    maps = _maps(outputs, config)
    (H, W), B = _size(image_size), len(image_size) if isinstance(image_size, Tensor) else None
    if hasattr(config, "depths") or any(_over_windows(one, maps[0], B) for one in maps):
        raise ValueError(
            "`outputs` must be of a plain vision transformer, with maps over all patches; those of "
            f"{_kind(config)} are of windows, or of fewer keys. Use its features [B, C, h, w]: "
            "`ovss_refine.attention.affinity(features, temperature=0.1)`."
        )
    grid = _grid(config, (H, W), maps[0].shape[-1])
    if not len(layers):
        raise ValueError("`layers` must name at least one layer; got none.")
    chosen = [maps[check_count("layers", i, -len(maps), len(maps) - 1)] for i in layers]
    return Attention(torch.stack([_patches(one, grid) for one in chosen]).mean(dim=0), grid)


def from_tokens(weights: Tensor | NDArray[Any], grid: tuple[int, int]) -> Attention:
    """Drop the tokens in front of the patches from a map, and renormalise.

    Args:
        weights: [B, A, T, T] (heads, averaged), [B, T, T] or [T, T] attention after the softmax;
            row = query. At most 8 tokens, such as class and registers, precede the patches.
        grid: (gh, gw), whose gh * gw patches are the last tokens, row-major.

    Returns:
        Maps [B, N, N] or [N, N], float32.

    Raises:
        TypeError: if `weights` are not floating-point numbers.
        ValueError: on another shape, fewer tokens than patches or more than 8 besides them, or
            rows that do not sum to one.

    Example:
        >>> import torch
        >>> from_tokens(torch.rand(2, 3, 7, 7).softmax(-1), grid=(2, 3)).shape
        torch.Size([2, 6, 6])
    """
    given = check_weights_shape("weights", as_tensor(weights, "weights"))
    if len(grid) != 2:
        raise ValueError(f"`grid` must be (gh, gw); got {grid}.")
    gh, gw = (check_count("grid", side, 1) for side in grid)
    extra = given.shape[-1] - gh * gw
    if not 0 <= extra <= MOST_EXTRA_TOKENS:
        raise ValueError(
            f"`weights` must be over the gh * gw = {gh * gw} patches of `grid` and at most "
            f"{MOST_EXTRA_TOKENS} tokens in front of them; got T={given.shape[-1]}."
        )
    return Attention(_patches(given, (gh, gw)), (gh, gw))


def _maps(outputs: Any, config: Any) -> tuple[Tensor, ...]:
    """Return the maps of all layers, each [B, A, T, T]."""
    maps = getattr(outputs, "attentions", None)
    if maps and all(isinstance(one, Tensor) and one.ndim == 4 for one in maps):
        if getattr(outputs, "ids_restore", None) is not None:
            raise ValueError(
                "`outputs` must have the patches in their places; those of a masked autoencoder "
                "are shuffled. Load its weights as `ViTModel`."
            )
        return tuple(maps)
    if getattr(outputs, "vision_model_output", None) is not None:
        raise ValueError("`outputs` must be of the image encoder: `outputs.vision_model_output`.")
    own = getattr(config, "_attn_implementation", None)
    now = f" The model has {own!r}." if own not in (None, "eager") else ""
    raise ValueError(
        f"`outputs` must have `attentions`, a map for each layer; got none.{now} {EAGER}"
    )


def _size(image_size: Tensor | Sequence[int]) -> tuple[int, int]:
    """Return (H, W) of what the model was given."""
    size = image_size.shape[-2:] if isinstance(image_size, Tensor) else image_size
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        raise TypeError(
            f"`image_size` must be `pixel_values` [B, 3, H, W] or their (H, W); got {image_size!r}."
        )
    H, W = (check_count("image_size", side, 1) for side in size)
    return H, W


def _over_windows(one: Tensor, first: Tensor, B: int | None) -> bool:
    """Whether a map is not over the tokens of a whole image, of which there are as many as ever."""
    square = one.shape[-2] == one.shape[-1] == first.shape[-1]
    return not square or (B is not None and len(one) != B)


def _grid(config: Any, size: tuple[int, int], T: int) -> tuple[int, int]:
    """Return the grid of patches, or raise if there are not T tokens with it."""
    patch = getattr(config, "patch_size", None)
    if patch is None:
        fix = " Pass `model.config`." if hasattr(config, "config") else ""
        raise TypeError(f"`config` must have a `patch_size`; {_kind(config)} has none.{fix}")
    ph, pw = patch if isinstance(patch, Sequence) else (patch, patch)
    gh, gw = size[0] // ph, size[1] // pw
    registers = getattr(config, "num_register_tokens", 0) or 0
    most = 1 + MORE_TOKENS.get(getattr(config, "model_type", ""), 0)
    if gh * gw > 0 and 0 <= T - registers - gh * gw <= most:
        return gh, gw
    sides = [math.isqrt(T - registers - own) for own in range(most + 1) if registers + own < T]
    fits = [s for own, s in enumerate(sides) if s * s == T - registers - own]
    hint = f" An image of {fits[0] * ph} x {fits[0] * pw} would fit." if fits else ""
    raise ValueError(
        f"`image_size` must be that of `pixel_values`, as the model was given them; {size[0]} x "
        f"{size[1]} pixels are {gh} x {gw} patches of {ph} x {pw}, but `outputs` have T={T} "
        f"tokens, {registers} of them registers.{hint}"
    )


def _patches(weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average heads, drop the tokens in front of the patches, renormalise: float32."""
    weights = weights.float()
    if weights.ndim == 4:
        weights = weights.mean(dim=1)  # [B, T, T]
    sums = weights.sum(dim=-1)
    low, high = (float(x) for x in sums.detach().aminmax())
    if not 1 - ROW_SUM_TOLERANCE <= low <= high <= 1 + ROW_SUM_TOLERANCE:
        raise ValueError(
            "the rows of the attention maps must sum to one; got sums from "
            f"{low:.4g} to {high:.4g}. Take them after the softmax and without dropout: call "
            "`model.eval()` first."
        )
    extra = weights.shape[-1] - grid[0] * grid[1]
    weights = weights[..., extra:, extra:]  # [..., N, N]
    sums = weights.sum(dim=-1, keepdim=True)
    if not float(sums.detach().amin()) > LEAST:
        raise ValueError(
            "every patch must attend to patches in the attention maps; got a row of which other "
            "tokens have everything. Compute attention in float32, or take another layer."
        )
    return weights / sums


def _kind(config: Any) -> str:
    return str(getattr(config, "model_type", None) or type(config).__name__)
