"""RF-CLIP: attention of all blocks on patches from which attention sinks have been removed.

Source: J. Li et al., "Target Refocusing via Attention Redistribution for Open-Vocabulary Semantic
Segmentation: An Explainability Perspective", AAAI 2026. After every block, tokens dominated by a
few known channels are blended with their neighbours; similar patches are aggregated; and the last
block's values are averaged by k-k attention of all blocks, once from the last block's input and
once from the mean of all blocks.

Axes: B images, A heads, T = 1 + N tokens (class token first), N = h * w patches, C channels,
L blocks.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine.checks import check_count, check_number
from ovss_refine.labels import LabelsLike
from ovss_refine_adapters.backbones.clip_tower import self_similarity, to_map
from ovss_refine_adapters.backbones.open_clip import PRESETS
from ovss_refine_adapters.logits.global_text import GlobalTextClip

# Channels between blocks in which sinks are large: for OpenAI's weights only.
SINK_CHANNELS = {
    "B/16": (4, 162, 189, 326, 429, 474, 633, 713),
    "L/14": (250, 261, 437, 650, 720, 779, 936, 1005),
}
# A token is a sink if one of these channels has more than SINK_SHARE / C of its sum ...
SINK_SHARE = 5.0
# ... and then keeps 1 - SINK_BLEND of itself; the rest is the mean of its neighbourhood.
SINK_BLEND = 0.4
# Cosines below this count as 0 when patches are aggregated.
SIMILARITY_THRESHOLD = 0.4
# A patch is refocused if it gets more than this share of the mean attention, and keeps this part of
# it.
REFOCUS_THRESHOLD = 0.1
REFOCUS_DECAY = 0.6


class RfClipLogits(GlobalTextClip):
    """CLIP without attention sinks, and text moved towards the image.

    Memory beyond the tower's: a few times B * A * T * T floats.
    Further arguments and exceptions are those of `DenseClip`.

    Args:
        sink_channels: indices of the channels that identify sinks, >= 0 and below the tower's
            width, specific to the weights. None: the published ones of OpenAI's B/16 and L/14.
        refocus: move attention away from patches that attract it, see `refocus`. The paper
            describes something similar; its published code never runs it.
        options: `global_weight`, `patch_weight`, `cluster_distance` and `global_from` of
            `GlobalTextClip`, and fields of `ClipOptions`. `faithful` pads the image with
            zeros when sinks are blended, and does not renormalise attention rows without the
            class token; otherwise the mean is over existing patches, and rows are divided by
            their sum.

    Raises:
        ValueError: also without `sink_channels` for other weights.
    """

    linkage = "complete"

    def __init__(
        self,
        classes: LabelsLike,
        *,
        sink_channels: Sequence[int] | None = None,
        refocus: bool = False,
        **options: Any,
    ) -> None:
        """Load the model, embed the classes and group the prompts."""
        super().__init__(classes, **options)
        if sink_channels is None:
            sink_channels = known_channels(self.options.model, self.options.pretrained)
        width = int(self.tower.visual.class_embedding.shape[-1])
        for channel in sink_channels:
            check_count("sink_channels", channel, 0)
            check_number("sink_channels", channel, 0, width - 1)
        self.sink_channels = tuple(sink_channels)
        self.refocus = refocus

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute patch features [B, D, h, w] and the class embedding [B, D], both float32."""
        tower = self.tower
        grid = tower.grid(*pixels.shape[-2:])
        last = tower.layers - 1
        total, keys = (torch.zeros((), device=tower.device) for _ in range(2))
        states = self._run_blocks(tower.stem(pixels), grid, tower.layers)
        for i, (x, k, out) in enumerate(states):  # noqa: B007 - x is used after the loop
            total = total + out.float()
            if i < last:
                keys = keys + self_similarity(k, k)  # [B, A, T, T]
        mean = total / tower.layers  # [B, T, C]
        unit = F.normalize(mean[:, 1:], dim=-1)
        similarity = unit @ unit.mT  # [B, N, N]
        similarity = similarity.masked_fill(similarity < SIMILARITY_THRESHOLD, 0.0)
        one, two = (self._last_block(y, similarity, keys).float() for y in (x.float(), mean))
        patches = tower.head(((one + two) / 2).to(out.dtype))
        return to_map(patches, grid), tower.head(out[:, :1])[:, 0]

    def class_embedding(self, pixels: Tensor) -> Tensor:
        """Compute the class embedding alone: [B, 3, H, W] normalised pixels to [B, D]."""
        tower = self.tower
        last = tower.layers - 1
        x = tower.stem(pixels)
        grid = tower.grid(*pixels.shape[-2:])
        for *_, out in self._run_blocks(x, grid, last):
            x = out
        return tower.head(tower.class_token(last, x, *tower.qkv(last, x, "kv")))[:, 0]

    def _run_blocks(
        self, x: Tensor, grid: tuple[int, int], stop: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Run blocks 0 to `stop` - 1 on the output of the stem, blending sinks after each.

        Yields of each its input [B, T, C], keys [B, A, T, d] and output [B, T, C].
        """
        tower = self.tower
        for i in range(stop):
            q, k, v = tower.qkv(i, x)
            if self.refocus and i < tower.layers - 1:
                out = tower.after_attention(i, x, refocus(self_similarity(q, k)) @ v)
            else:
                out = tower.block_of(i, x, q, k, v)
            out = blend_sinks(out, grid, self.sink_channels, self.options.faithful)
            yield x, k, out
            x = out

    def _last_block(self, tokens: Tensor, similarity: Tensor, keys: Tensor) -> Tensor:
        """Aggregate patches by [B, N, N] `similarity`, then attend: [B, T, C] to [B, N, C]."""
        tower = self.tower
        last = tower.layers - 1
        gathered = torch.cat([tokens[:, :1], similarity @ tokens[:, 1:]], dim=1)
        k, v = tower.qkv(last, gathered.to(tower.visual.conv1.weight.dtype), "kv")
        attention = ((keys + self_similarity(k, k)) / tower.layers)[:, :, 1:, 1:]
        if not self.options.faithful:
            attention = attention / attention.sum(dim=-1, keepdim=True)
        return tower.project(last, attention @ v[:, :, 1:])


def known_channels(model: str | Path | nn.Module, pretrained: str | Path | None) -> tuple[int, ...]:
    """Return the published sink channels of OpenAI's weights, or raise ValueError for others."""
    name, tag = PRESETS.get(str(model), (model, None))
    for preset, channels in SINK_CHANNELS.items():
        if (name, pretrained or tag) == PRESETS[preset]:
            return channels
    raise ValueError(
        "`sink_channels` must be given for weights other than OpenAI's B/16 and L/14: channel "
        "indices are specific to the weights."
    )


def blend_sinks(
    tokens: Tensor, grid: tuple[int, int], channels: Sequence[int], faithful: bool
) -> Tensor:
    """Blend those of [B, T, C] tokens, class token first, that are sinks with their neighbourhood.

    Args:
        tokens: of any float dtype, which is kept.
        grid: (h, w).
        channels: those that identify a sink: one of them has more than 5 / C of the token's sum,
            after the least channel is subtracted from all.
        faithful: True: the mean of the 3 x 3 patches counts zeros outside the image. False: it is
            over existing patches.
    """
    if not channels:
        return tokens
    patches = tokens[:, 1:].float()
    above = patches - patches.amin(dim=-1, keepdim=True)
    share = above[..., list(channels)].amax(dim=-1) / above.sum(dim=-1)  # [B, N]
    sinks = (share > SINK_SHARE / tokens.shape[-1])[..., None]
    around = F.avg_pool2d(to_map(patches, grid), 3, stride=1, padding=1, count_include_pad=faithful)
    blended = (1 - SINK_BLEND) * patches + SINK_BLEND * around.flatten(2).mT
    return torch.cat([tokens[:, :1], torch.where(sinks, blended, patches).to(tokens.dtype)], dim=1)


def refocus(attention: Tensor) -> Tensor:
    """Move [B, A, T, T] attention from patches that attract much of it to all other patches.

    The published constants, in the plainest reading: a patch that gets more than 0.1 of a head's
    attention, averaged over patches, keeps 0.6 of it; the rest goes to the other patches in
    proportion to theirs. Rows still sum to one; attention to the class token, the first, is
    unchanged.
    """
    patches = attention[..., 1:]  # [B, A, T, N]
    sinks = patches[:, :, 1:].mean(dim=2, keepdim=True) > REFOCUS_THRESHOLD
    kept = torch.where(sinks, REFOCUS_DECAY * patches, patches)
    others = patches.masked_fill(sinks, 0.0)
    total = others.sum(dim=-1, keepdim=True)
    lost = (patches - kept).sum(dim=-1, keepdim=True)
    # If every patch is a sink, there is nowhere to move it.
    tiny = torch.finfo(total.dtype).tiny
    moved = torch.where(total > 0, kept + lost * others / total.clamp(min=tiny), patches)
    return torch.cat([attention[..., :1], moved], dim=-1)
