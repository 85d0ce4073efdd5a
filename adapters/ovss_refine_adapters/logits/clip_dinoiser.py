"""CLIP-DINOiser: MaskCLIP's patches, averaged over those that a small trained head finds similar.

Source: M. Wysoczańska et al., "CLIP-DINOiser: Teaching CLIP a Few DINO Tricks for Open-Vocabulary
Semantic Segmentation", ECCV 2024. One 3 x 3 convolution on CLIP's third block from the end predicts
which patches DINO would find similar, one 1 x 1 convolution what FOUND would take for background.
No DINO runs.

Axes: B images, K prompts, A heads, T = 1 + N tokens (class token first), C channels, D channels of
the joint image-text space, (h, w) grid, N = h * w patches.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine.checks import check_flag, check_number
from ovss_refine.labels import LabelsLike
from ovss_refine_adapters.backbones.clip_tower import self_similarity, to_map
from ovss_refine_adapters.backbones.positions import resize_positions_to
from ovss_refine_adapters.backbones.weights import check_finite_weights, load_head
from ovss_refine_adapters.logits.dense import DenseClip
from ovss_refine_adapters.logits.windows import upsample

# The block whose feed-forward part reads what the heads read, from the end.
BLOCK = 3
# Added to the sum of the weights of a patch.
FLOOR = 1e-6


class DinoiserHeads(nn.Module):
    """The two trained convolutions, named as in the released file.

    Args:
        channels: C, the width of CLIP's image tower.
        hidden: channels in which patches are compared.
    """

    def __init__(self, channels: int, hidden: int = 256) -> None:
        """Make the layers."""
        super().__init__()
        self.obj_proj = nn.Conv2d(channels, hidden, 3, padding=1, padding_mode="replicate")
        self.bkg_decoder = nn.Conv2d(channels, 1, 1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Compute cosines between patches, [B, N, N], and logits of foreground, [B, h, w].

        Args:
            tokens: [B, C, h, w] what the feed-forward part of the block reads.
        """
        unit = F.normalize(self.obj_proj(tokens).flatten(2), dim=1)  # [B, hidden, N]
        return unit.mT @ unit, self.bkg_decoder(F.normalize(tokens, dim=1))[:, 0]


class ClipDinoiserLogits(DenseClip):
    """MaskCLIP's patches, averaged by the similarity that the heads predict.

    The released code averages probabilities over windows, so the logits are logarithms of
    probabilities: a softmax returns them. With windows they lie on the pixels of the images
    themselves, else on the grid of patches. Memory beyond the tower's: 2 * B * N * N floats.
    Further arguments and exceptions are those of `DenseClip`.

    Args:
        heads: weight file of the heads, such as the released "last.pt", a folder with it or with a
            single weight file, or ready `DinoiserHeads` on the model's device. Required.
        similarity_threshold: cosines below it, gamma, become 0; in [-1, 1].
        background: class 0 is the background, see `add_background`; the released code does so on
            PASCAL VOC and COCO-Object.
        confidence: probability from which on a patch is not background, delta, in [0, 1].
        options: fields of `ClipOptions`. `logit_scale` is the factor on the cosines before the
            softmax that makes the probabilities.

    Raises:
        ValueError: also without `heads`, or if the tower has fewer than three blocks, or another
            width than the heads.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "model": "ViT-B-16",
        "pretrained": "laion2b_s34b_b88k",
        "short_side": 448,
        "window": 448,
        "stride": 224,
        "logit_scale": 100.0,
    }
    rounds_statistics = False

    def __init__(
        self,
        classes: LabelsLike,
        *,
        heads: str | Path | nn.Module | None = None,
        similarity_threshold: float = 0.2,
        background: bool = False,
        confidence: float = 0.99,
        **options: Any,
    ) -> None:
        """Load the model and the heads, and embed the classes."""
        check_number("similarity_threshold", similarity_threshold, -1, 1)
        check_flag("background", background)
        check_number("confidence", confidence, 0, 1)
        loaded = as_heads(heads)
        if "model" in options:  # whose weights are not those of the default
            options = {"pretrained": None, **options}
        super().__init__(classes, **options)
        self.similarity_threshold = similarity_threshold
        self.background = background
        self.confidence = confidence
        self.heads = loaded if isinstance(heads, nn.Module) else loaded.to(self.device)
        _check_fit(self.heads, self.tower.visual.conv1.out_channels, self.tower.layers)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The image tower and the heads."""
        return (self.tower.visual, self.heads)

    @property
    def scale(self) -> float:
        """The logits are logarithms of probabilities."""
        return 1.0

    def features(self, pixels: Tensor) -> Tensor:
        """Compute averaged features: [B, 3, H, W] normalised pixels to [B, D, h, w] float32."""
        return self.encode(pixels)[0]

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute averaged features [B, D, h, w] and the logits of foreground [B, h, w]."""
        grid = self.tower.grid(*pixels.shape[-2:])
        patches, read = self.patches(pixels)
        cosines, foreground = self.heads(to_map(read, grid))
        return to_map(pool(patches, cosines, self.similarity_threshold), grid), foreground

    def patches(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Run the tower as MaskCLIP does.

        [B, 3, H, W] normalised pixels to projected patches [B, N, D], and to what the heads read
        [B, N, C].
        """
        tower = self.tower
        table = tower.visual.positional_embedding
        x = tower.stem(pixels, resize_positions_to(table, tower.grid(*pixels.shape[-2:])))
        chosen, last = tower.layers - BLOCK, tower.layers - 1
        x, _ = tower.blocks(x, 0, chosen)
        q, k, v = tower.qkv(chosen, x)
        x = x + tower.project(chosen, self_similarity(q, k) @ v)  # [B, T, C]
        read = tower.fed(chosen, x)[:, 1:].float()
        x, _ = tower.blocks(x + tower.feed_forward(chosen, x), chosen + 1, last)
        patches = x[:, 1:]
        (v,) = tower.qkv(last, patches, "v")
        return tower.head(tower.after_attention(last, patches, v)), read

    def values(self, pixels: Tensor, context: Any) -> Tensor:
        """Compute probabilities: [B, K, h, w], or on the pixels if they are not whole patches."""
        H, W = pixels.shape[-2:]
        padded = self.pad(pixels)
        features, foreground = self.encode(padded)
        unit = F.normalize(features, dim=1)
        cosines = torch.einsum("bdhw,kd->bkhw", unit, self.text)
        found = (self.options.logit_scale * cosines).softmax(dim=1)
        if self.background:
            found = add_background(found, foreground, self.confidence)
        if padded.shape == pixels.shape:
            return found
        return upsample(found, (padded.shape[-2], padded.shape[-1]))[..., :H, :W]

    def pad(self, pixels: Tensor) -> Tensor:
        """Pad normalised pixels with black to whole patches, at the right and the bottom."""
        (H, W), (height, width) = pixels.shape[-2:], self.tower.patch
        black = (-self._mean / self._std).expand_as(pixels[..., :1, :1])
        if W % width:
            column = black.expand(*pixels.shape[:3], -W % width)
            pixels = torch.cat([pixels, column], dim=3)
        if H % height:
            row = black.expand(*pixels.shape[:2], -H % height, pixels.shape[3])
            pixels = torch.cat([pixels, row], dim=2)
        return pixels

    def finish(self, values: Tensor, images: Tensor) -> Tensor:
        """Resize probabilities of windows to the images, then take logarithms."""
        if self.options.window is not None:
            values = upsample(values, (images.shape[2], images.shape[3]))
        return values.clamp(min=torch.finfo(values.dtype).tiny).log()


def pool(patches: Tensor, cosines: Tensor, threshold: float) -> Tensor:
    """Average patches over similar ones: [B, N, D] and [B, N, N] to [B, N, D].

    Cosines below `threshold` become 0; the others are the weights.
    """
    weights = cosines.masked_fill(cosines < threshold, 0.0)
    return (weights @ patches) / (weights.sum(dim=-1, keepdim=True) + FLOOR)


def add_background(probabilities: Tensor, foreground: Tensor, confidence: float) -> Tensor:
    """Set the first prompt to 1 where no prompt is confident and the head sees no foreground.

    The other prompts keep their probabilities, so that they no longer sum to one there.

    Args:
        probabilities: [B, K, h, w].
        foreground: [B, h, w] logits of the head.
        confidence: delta, below which the best prompt is not confident.
    """
    unsure = probabilities.amax(dim=1) < confidence  # [B, h, w]
    nothing = unsure & (foreground.sigmoid() <= 0.5)
    first = probabilities[:, :1].masked_fill(nothing[:, None], 1.0)
    return torch.cat([first, probabilities[:, 1:]], dim=1)


def as_heads(heads: str | Path | nn.Module | None) -> nn.Module:
    """Load the heads, or take ready ones."""
    if heads is None:
        raise ValueError(
            "`heads` must be a weight file or a module; got None. Pass the path of "
            "`checkpoints/last.pt` of https://github.com/wysoczanska/clip_dinoiser (Apache-2.0)."
        )
    if isinstance(heads, nn.Module):
        return check_finite_weights(heads, type(heads).__name__)
    return load_head(heads, "heads", "last.pt", heads_of)


def heads_of(state: Mapping[str, Tensor]) -> DinoiserHeads:
    """Make the heads, without their values, that have these tensors."""
    hidden, channels, *_ = state["obj_proj.weight"].shape
    return DinoiserHeads(channels, hidden)


def _check_fit(heads: nn.Module, width: int, layers: int) -> None:
    """Raise unless the tower has the blocks and the width that the heads were trained for."""
    if layers < BLOCK:
        raise ValueError(f"`model` must have at least {BLOCK} blocks; got {layers}.")
    own = getattr(getattr(heads, "bkg_decoder", None), "in_channels", width)
    if own != width:
        raise ValueError(
            f"`heads` must have been trained for the model's {width} channels; got {own}."
        )
