"""CLIP's patches as a segmenter, and the methods that only rewire the last block.

Sources: A. Radford et al., ICML 2021 (`clip`); C. Zhou et al., "Extract Free Dense Labels from
CLIP", ECCV 2022 (`maskclip`); F. Wang et al., "SCLIP", ECCV 2024; M. Lan et al., "ClearCLIP", ECCV
2024; S. Hajimiri et al., "Pay Attention to Your Neighbours", WACV 2025 (`naclip`). `qq`, `kk` and
their means over the blocks are the logits that J. Li et al., CVPR 2026, refine.

With z = ln_1(x) the input of the last block's attention, q, k, v its heads and O the output
projection, all of them compute y = O(A v), optionally add x and the feed-forward part, and project
the patches. They differ in A and in the two options.

Axes: B images, A heads, T = 1 + N tokens (class token first), D channels, (h, w) grid, N = h * w.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.checks import check_choice, check_number
from ovss_refine.labels import LabelsLike
from ovss_refine_adapters.backbones.clip_tower import self_similarity, to_map
from ovss_refine_adapters.logits.attending import AttendingLogits, Compared
from ovss_refine_adapters.logits.dense import DenseClip

Similarity = Literal["qk", "qq", "kk", "qq + kk", "own"]
_LARGE_WINDOWS = {"short_side": 448, "window": 448, "stride": 224}


@dataclass(frozen=True, slots=True, kw_only=True)
class LastBlock:
    """What the last block does.

    Attributes:
        similarity: what the attention compares: "qk", "qq", "kk", softmax each over all tokens;
            "qq + kk": the sum of both maps, whose rows sum to two; "own": every token attends
            only to itself.
        residual: add the input of the block.
        feed_forward: add the feed-forward part.
        over_blocks: average the attention over all blocks, head by head, each block's from its
            own input; the values remain the last block's.
        gaussian_std: standard deviation, in patches, of a Gaussian of the distance between two
            patches, with peak 1, added before the softmax of the last block; None: not added.

    Raises:
        ValueError: on an unknown similarity, a standard deviation that is not > 0, or
            `gaussian_std` with `over_blocks` or "own".
    """

    similarity: Similarity
    residual: bool = False
    feed_forward: bool = False
    over_blocks: bool = False
    gaussian_std: float | None = None

    def __post_init__(self) -> None:
        """Check the combination."""
        check_choice("similarity", self.similarity, get_args(Similarity))
        if self.gaussian_std is not None:
            check_number("gaussian_std", self.gaussian_std, 0, open_ends=True)
            if self.over_blocks or self.similarity == "own":
                raise ValueError("`gaussian_std` must be None with `over_blocks` or 'own'.")

    @property
    def names(self) -> str:
        """Which of q, k, v the block needs."""
        return "".join(name for name in "qk" if name in self.similarity) + "v"


class ClipLogits(AttendingLogits, DenseClip):
    """CLIP with a rewired last block. Also a source of CLIP's own attention there.

    Memory beyond the tower's: a few times B * A * T * T floats, for attention.
    Further arguments and exceptions are those of `DenseClip`.

    Args:
        last_block: what the last block does.
        pad_windows: pad windows with zeros to whole patches.
    """

    def __init__(
        self,
        classes: LabelsLike,
        last_block: LastBlock,
        *,
        pad_windows: bool = False,
        **options: Any,
    ) -> None:
        """Load the model and embed the classes."""
        super().__init__(classes, **options)
        self.last_block = last_block
        if pad_windows:
            self.window_multiple = self.tower.patch[0]

    def features(self, pixels: Tensor) -> Tensor:
        """Compute patch features: [B, 3, H, W] normalised pixels to [B, D, h, w] float32."""
        return self._run(pixels, self.last_block.names)[0]

    def compared(self, pixels: Tensor) -> Compared:
        """Run the tower up to the last queries and keys."""
        last = self.tower.layers - 1
        x, _ = self.tower.blocks(self.tower.stem(pixels), 0, last)
        q, k = self.tower.qkv(last, x, "qk")
        return self._compared(q, k, pixels)

    def values_and_compared(self, pixels: Tensor, context: Any) -> tuple[Tensor, Compared]:
        """Return cosines, and what CLIP itself would compare in the last block."""
        features, parts = self._run(pixels, "qkv")
        return self.compare(features), self._compared(parts["q"], parts["k"], pixels)

    def _compared(self, q: Tensor, k: Tensor, pixels: Tensor) -> Compared:
        grid = self.tower.grid(*pixels.shape[-2:])
        return Compared(q, k, q.shape[-1] ** -0.5, prefix=1, grid=grid)

    def _run(self, pixels: Tensor, names: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute features [B, D, h, w], and those of the last q, k, v that are named."""
        tower, how = self.tower, self.last_block
        grid = tower.grid(*pixels.shape[-2:])
        last = tower.layers - 1
        x = tower.stem(pixels)  # [B, T, C]
        others = torch.zeros((), device=x.device)
        for i in range(last):
            if how.over_blocks:
                q, k, v = tower.qkv(i, x)
                others = others + _attend(how.similarity, {"q": q, "k": k})
                x = tower.block_of(i, x, q, k, v)
            else:
                x = tower.block(i, x)
        parts = dict(zip(names, tower.qkv(last, x, names), strict=True))
        v = parts["v"]
        if how.similarity != "own":
            bias = None if how.gaussian_std is None else gaussian(grid, how.gaussian_std, x.device)
            attention = _attend(how.similarity, parts, bias)  # [B, A, T, T]
            if how.over_blocks:
                attention = (others + attention) / tower.layers
            v = attention @ v
        y = tower.project(last, v)  # [B, T, C]
        if how.residual:
            y = x + y
        if how.feed_forward:
            y = y + tower.feed_forward(last, y)
        return to_map(tower.head(y)[:, 1:], grid), parts


def _attend(
    similarity: Similarity, parts: Mapping[str, Tensor], bias: Tensor | None = None
) -> Tensor:
    """Add the maps of a similarity, of the `parts` q and k that it compares: [B, A, T, T]."""
    pairs = ((parts[pair[0]], parts[pair[1]]) for pair in similarity.split(" + "))
    first, *others = (self_similarity(x, y, bias) for x, y in pairs)
    return sum(others, start=first)


def gaussian(grid: tuple[int, int], std: float, device: torch.device | None = None) -> Tensor:
    """Compute NACLIP's additive map, exp(-distance^2 / (2 std^2)) between patches.

    [1 + N, 1 + N] float32 for N patches on the `grid`, with `std` in patches; 0 in the row and the
    column of the class token, which comes first.
    """
    rows, columns = (torch.arange(n, device=device, dtype=torch.float32) for n in grid)
    y = (rows[:, None] - rows) ** 2  # [h, h]
    x = (columns[:, None] - columns) ** 2  # [w, w]
    squared = y[:, None, :, None] + x[None, :, None, :]  # [h, w, h, w]
    N = grid[0] * grid[1]
    patches = (squared / (-2 * std**2)).exp().reshape(N, N)
    return F.pad(patches, (1, 0, 1, 0))


def clip(classes: LabelsLike, **options: Any) -> ClipLogits:
    """Plain CLIP: the last block unchanged, its patches projected like the class token."""
    block = LastBlock(similarity="qk", residual=True, feed_forward=True)
    return ClipLogits(classes, block, **options)


def maskclip(
    classes: LabelsLike, *, reading: Literal["a", "b"] = "a", **options: Any
) -> ClipLogits:
    """MaskCLIP: no attention in the last block, only the values.

    Both readings are published as MaskCLIP: "a" keeps residual and feed-forward part
    (CLIP-DINOiser, LPOSS), "b" drops both (ClearCLIP's comparison).
    """
    check_choice("reading", reading, ("a", "b"))
    kept = reading == "a"
    block = LastBlock(similarity="own", residual=kept, feed_forward=kept)
    scale = {"logit_scale": 100.0 if kept else 50.0}
    return ClipLogits(classes, block, **{**_LARGE_WINDOWS, **scale, **options})


def sclip(classes: LabelsLike, **options: Any) -> ClipLogits:
    """SCLIP: q-q plus k-k attention, rows summing to two, residual and feed-forward part kept."""
    block = LastBlock(similarity="qq + kk", residual=True, feed_forward=True)
    return ClipLogits(classes, block, **options)


def clearclip(classes: LabelsLike, **options: Any) -> ClipLogits:
    """ClearCLIP: q-q attention, no residual, no feed-forward part; windows padded to patches."""
    published = {**_LARGE_WINDOWS, "logit_scale": 50.0, **options}
    return ClipLogits(classes, LastBlock(similarity="qq"), pad_windows=True, **published)


def naclip(classes: LabelsLike, *, gaussian_std: float = 5.0, **options: Any) -> ClipLogits:
    """NACLIP: k-k attention plus a Gaussian of the distance, no residual, no feed-forward part."""
    return ClipLogits(classes, LastBlock(similarity="kk", gaussian_std=gaussian_std), **options)


def qq(classes: LabelsLike, **options: Any) -> ClipLogits:
    """q-q attention of the last block, no residual, no feed-forward part; the whole image."""
    return ClipLogits(classes, LastBlock(similarity="qq"), **{"window": None, **options})


def kk(classes: LabelsLike, **options: Any) -> ClipLogits:
    """k-k attention of the last block, no residual, no feed-forward part; the whole image."""
    return ClipLogits(classes, LastBlock(similarity="kk"), **{"window": None, **options})


def qq_mean(classes: LabelsLike, **options: Any) -> ClipLogits:
    """q-q attention averaged over all blocks, otherwise as `qq`."""
    block = LastBlock(similarity="qq", over_blocks=True)
    return ClipLogits(classes, block, **{"window": None, **options})


def kk_mean(classes: LabelsLike, **options: Any) -> ClipLogits:
    """k-k attention averaged over all blocks, otherwise as `kk`: the default of J. Li et al."""
    block = LastBlock(similarity="kk", over_blocks=True)
    return ClipLogits(classes, block, **{"window": None, **options})
