"""CLIP's image tower in parts: its stem, its blocks and the parts of each block.

The training-free methods differ in what the last block does with its queries, keys and values.
Here the modules of an unmodified open_clip tower are called one by one; nothing is hooked,
replaced or modified.

Axes: B images, T = 1 + N tokens (class token first, then N = h * w patches, row by row),
C channels, A heads of d channels, D channels of the joint image-text space.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine.checks import check_shape
from ovss_refine.registry import require
from ovss_refine_adapters.backbones.plain import plain, undisturbed
from ovss_refine_adapters.backbones.positions import Skip, resize_positions


@dataclass(frozen=True, slots=True, eq=False)
class Tower:
    """An open_clip image tower, callable in parts.

    The blocks run in the dtype of the model's weights; queries, keys, values and the result of
    `head` are float32.

    Attributes:
        visual: `model.visual` of an open_clip model: a `VisionTransformer` with a class token.
        faithful: True: add the position table unchanged to any grid with as many patches, as the
            released code does (7 x 28 as well as 14 x 14). False: only to its own grid.

    Raises:
        ValueError: if `visual` is another kind of tower.
    """

    visual: Any
    faithful: bool = True

    def __post_init__(self) -> None:
        """Check that `visual` has the expected parts."""
        library = require("open_clip", "models").transformer
        visual = plain(self.visual) if isinstance(self.visual, nn.Module) else self.visual
        object.__setattr__(self, "visual", visual)
        if not isinstance(visual, library.VisionTransformer):
            raise ValueError(
                f"`model.visual` must be a VisionTransformer of open_clip; got "
                f"{type(visual).__name__}. SigLIP, PE, EVA and ResNet towers are not supported."
            )
        with undisturbed(visual):
            _check_blocks(visual)
        gh, gw = visual.grid_size
        if gh != gw:
            raise ValueError(f"`model.visual` must have a square native grid; got {gh} x {gw}.")

    @property
    def patch(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        height, width = self.visual.patch_size
        return height, width

    @property
    def layers(self) -> int:
        """Number of blocks, L."""
        return len(self.visual.transformer.resblocks)

    @property
    def heads(self) -> int:
        """Number of heads, A."""
        return int(self.visual.transformer.resblocks[0].attn.num_heads)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        device: torch.device = self.visual.conv1.weight.device
        return device

    def grid(self, H: int, W: int) -> tuple[int, int]:
        """Return the grid (h, w) of whole patches of an image of H x W pixels, at least one."""
        h, w = H // self.patch[0], W // self.patch[1]
        if h < 1 or w < 1:
            height, width = self.patch
            raise ValueError(
                f"`images` must be at least one patch of {height} x {width} pixels; got {H} x {W}."
            )
        return h, w

    def stem(self, pixels: Tensor, positions: Tensor | None = None) -> Tensor:
        """Cut into patches, add class token and positions, normalise: the input of block 0.

        [B, 3, H, W] pixels, normalised for the model, to [B, T, C] in the dtype of the weights.
        `positions` [T, C] replaces the tower's own table, resized as SCLIP's code does.
        """
        sizes = check_shape("pixels", pixels, "B C H W", C=3)
        grid = self.grid(sizes["H"], sizes["W"])
        visual = self.visual
        x = visual.conv1(pixels.to(visual.conv1.weight.dtype)).flatten(2).mT  # [B, N, C]
        first = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        if positions is None:
            skip: Skip = "count" if self.faithful else "count and square"
            positions = resize_positions(visual.positional_embedding, grid, skip=skip)
        x = torch.cat([first, x], dim=1) + positions.to(x.dtype)  # [B, T, C]
        normal: Tensor = visual.ln_pre(x)
        return normal

    def block(self, i: int, tokens: Tensor) -> Tensor:
        """Run block `i` (from 0) unchanged: [B, T, C] to [B, T, C]."""
        out: Tensor = self.visual.transformer.resblocks[i](tokens)
        return out

    def blocks(
        self, tokens: Tensor, start: int, stop: int, keep: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run blocks `start` to `stop` - 1 unchanged on [B, T, C] tokens.

        Returns:
            [B, T, C] output of the last one, and those of the blocks in `keep` by index.
        """
        kept = {}
        for i in range(start, stop):
            tokens = self.block(i, tokens)
            if i in keep:
                kept[i] = tokens
        return tokens, kept

    def attended(self, i: int, tokens: Tensor) -> Tensor:
        """Normalise what the attention of block `i` reads: [B, T, C] to [B, T, C]."""
        normal: Tensor = self.visual.transformer.resblocks[i].ln_1(tokens)
        return normal

    def qkv(self, i: int, tokens: Tensor, names: str = "qkv") -> tuple[Tensor, ...]:
        """Compute q, k, v of block `i`, or those named, from its input [B, T, C].

        [B, A, T, d] float32 each; the class token may be left out. What is not named is not
        computed.
        """
        attn = self.visual.transformer.resblocks[i].attn
        x, (B, T, _) = self.attended(i, tokens), tokens.shape
        joint = zip(attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True)
        layers = dict(zip("qkv", joint, strict=True))
        return tuple(
            F.linear(x, *layers[name]).float().view(B, T, self.heads, -1).transpose(1, 2)
            for name in names
        )

    def block_of(self, i: int, tokens: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Run block `i` unchanged, given its `qkv`: [B, T, C] to [B, T, C].

        With the queries [B, A, S, d] and the `tokens` [B, S, C] of some tokens only, the others are
        attended to, but not computed.
        """
        # In the dtype that they were computed in.
        q, k, v = (x.to(tokens.dtype) for x in (q, k, v))
        return self.after_attention(i, tokens, F.scaled_dot_product_attention(q, k, v))

    def after_attention(self, i: int, tokens: Tensor, heads: Tensor) -> Tensor:
        """Run what follows the attention in block `i`: [B, T, C] and [B, A, T, d] to [B, T, C]."""
        y = tokens + self.project(i, heads)
        return y + self.feed_forward(i, y)

    def class_token(self, i: int, tokens: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Run block `i` for the class token only, given its `qkv`: [B, T, C] to [B, 1, C]."""
        first = tokens[:, :1]
        (q,) = self.qkv(i, first, "q")
        return self.block_of(i, first, q, k, v)

    def project(self, i: int, heads: Tensor) -> Tensor:
        """Merge the heads by the output projection of block `i`: [B, A, T, d] to [B, T, C]."""
        block = self.visual.transformer.resblocks[i]
        joined = heads.transpose(1, 2).flatten(2)  # [B, T, C]
        out: Tensor = block.ls_1(block.attn.out_proj(joined.to(block.attn.out_proj.weight.dtype)))
        return out

    def fed(self, i: int, tokens: Tensor) -> Tensor:
        """Normalise what the feed-forward part of block `i` reads: [B, T, C] to [B, T, C]."""
        normal: Tensor = self.visual.transformer.resblocks[i].ln_2(tokens)
        return normal

    def feed_forward(self, i: int, tokens: Tensor) -> Tensor:
        """Compute what block `i` adds after its attention: [B, T, C] to [B, T, C]."""
        block = self.visual.transformer.resblocks[i]
        out: Tensor = block.ls_2(block.mlp(self.fed(i, tokens)))
        return out

    def head(self, tokens: Tensor) -> Tensor:
        """Normalise and project into the joint space: [B, T, C] to [B, T, D] float32."""
        out: Tensor = self.visual.ln_post(tokens)
        if self.visual.proj is not None:
            out = out @ self.visual.proj
        return out.float()


def _check_blocks(visual: Any) -> None:
    """Raise ValueError unless the blocks compute what `Tower` takes them for."""
    blocks = list(visual.transformer.resblocks)
    kinds = {type(block).__name__ for block in blocks}
    if kinds != {"ResidualAttentionBlock"} or visual.attn_pool is not None:
        raise ValueError(
            "`model.visual` must have plain attention blocks and no attention pooling; got "
            f"{sorted(kinds)}, pooling {visual.attn_pool is not None}."
        )
    for block in blocks:
        # A replacement may show the weights of PyTorch's, and add to them when it is called.
        forward = getattr(block.attn.forward, "__func__", None)
        if forward is not nn.MultiheadAttention.forward:
            raise ValueError(
                "`model.visual` must have PyTorch's MultiheadAttention in its blocks; got "
                f"{type(block.attn).__name__} with another `forward`. Merge adapters into the "
                "weights first."
            )


def self_similarity(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attend: softmax of x y^T / sqrt(d) + bias over the last axis.

    Queries [B, A, T, d] and keys [B, A, S, d] to [B, A, T, S] with rows that sum to one; the `bias`
    is broadcast to that.
    """
    logits = (x @ y.mT).mul(x.shape[-1] ** -0.5)
    return (logits if bias is None else logits + bias).softmax(dim=-1)


def to_map(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Arrange patches on their grid: [B, N, D] to [B, D, h, w]."""
    return patches.mT.reshape(len(patches), -1, *grid)
