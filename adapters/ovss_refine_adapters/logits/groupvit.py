"""GroupViT: a vision transformer that groups patches, each group compared with the prompts.

Source: J. Xu et al., "GroupViT: Semantic Segmentation Emerges from Text Supervision", CVPR 2022.
This is the rule of its released evaluation; `segmentation_logits` of transformers is another one.

Axes: B images, K prompts, G groups, C channels of the joint image-text space, (H, W) pixels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine.checks import check_count, check_number
from ovss_refine.labels import LabelsLike
from ovss_refine.sources.device import DtypeLike
from ovss_refine_adapters.backbones.groupvit import (
    MEAN,
    STD,
    Groups,
    encode,
    group_maps,
    load_groupvit,
    text_side,
)
from ovss_refine_adapters.backbones.open_clip import Tokenizer
from ovss_refine_adapters.logits.windowed import WindowedLogits, WindowOptions
from ovss_refine_adapters.text import Templates, as_classes, raw_text_features

# The largest factor on cosines, whatever was learnt.
MOST = 100.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupVitOptions(WindowOptions):
    """Options of `GroupVitLogits`.

    Further arguments and exceptions are those of `WindowOptions`.

    Attributes:
        model: "owner/name" on the hub, a folder, or a ready `GroupViTModel` of transformers.
        tokenizer: texts to token ids, for a model whose vocabulary is not CLIP's.
        device: device to load onto; None: the CPU. A ready model stays where it is.
        dtype: as in `ClipOptions`.
        templates: as in `ClipOptions`; by default the single one.
        text_features: [K, C], one row per prompt, instead of the text tower's.
        cache_dir: as in `ClipOptions`.
        classes_kept: number of prompts, the most similar to the whole window, that groups may
            have, >= 1.
        background: None: class 0 is a class like any other. A number in [0, 1]: class 0 is the
            background, it has one prompt, which is not compared with the image, and it wins where
            no score reaches this number, nor the largest of the window (published: 0.95).
    """

    short_side: int | None = 448
    window: int | None = 448
    stride: int = 224
    # No softmax over the scores is published; this one leaves a score of 0.5 about 0.9 among 21.
    logit_scale: float = 10.0
    model: str | Path | nn.Module = "nvidia/groupvit-gcc-redcaps"
    tokenizer: Tokenizer | None = None
    device: str | torch.device | None = None
    dtype: DtypeLike = None
    templates: Templates = "single"
    text_features: Tensor | None = None
    cache_dir: str | Path | None = "default"
    classes_kept: int = 5
    background: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        WindowOptions.__post_init__(self)
        check_count("classes_kept", self.classes_kept, 1)
        if self.background is not None:
            check_number("background", self.background, 0, 1)


class GroupVitLogits(WindowedLogits):
    """Groups of patches, compared with the prompts.

    The logits are scores in [0, 1], on the pixels of the resized image, with and without windows:
    all pixels of a group have the same. No softmax over them is published, so that `logit_scale`
    is our choice. Memory beyond the model's: B * (G + K) * H * W floats.

    Attributes:
        options: all options.
        classes: the classes and their prompts.
        model: the GroupViT.
        text: [K, C] float32 unit rows; without the background's.

    Args:
        classes: as `DenseClip` takes them.
        options: fields of `GroupVitOptions`.

    Raises:
        TypeError, ValueError: on an option that does not exist, options of the wrong kind or out of
            range, invalid classes, or another model.
        ModuleNotFoundError, FileNotFoundError: if a library or weights are missing.
    """

    options: GroupVitOptions

    def __init__(self, classes: LabelsLike, **options: Any) -> None:
        """Load the model and embed the classes."""
        self.classes = as_classes(classes)
        self.options = how = GroupVitOptions(**options)
        self._check_classes()
        self.model: Any = load_groupvit(how.model, how.device, how.dtype)
        self._text_side = text_side(self.model, how.tokenizer)
        self._mean, self._std = (
            torch.tensor(row, device=self.device).view(1, 3, 1, 1) for row in (MEAN, STD)
        )
        self.text = self._text()

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The model."""
        return (self.model,)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        device: torch.device = self.model.logit_scale.device
        return device

    @property
    def patch(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        height, width = self.model.vision_model.embeddings.patch_embeddings.patch_size
        return int(height), int(width)

    def prepare(self, images: Tensor) -> Tensor:
        """Resize and normalise: [B, 3, H, W] in [0, 1] to [B, 3, H', W'] pixels, float32."""
        pixels = self.resized(images.to(self.device))
        self.grid(pixels)
        return (pixels - self._mean) / self._std

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Return the grid (h, w) of whole patches of [B, 3, H, W] pixels, at least one."""
        (H, W), (height, width) = pixels.shape[-2:], self.patch
        h, w = H // height, W // width
        if h < 1 or w < 1:
            raise ValueError(
                f"`images` must be at least one patch of {height} x {width} pixels; got {H} x {W}."
            )
        return h, w

    def values(self, pixels: Tensor, context: Any) -> Tensor:
        """Compute the scores of pixels: [B, K, H, W]."""
        groups = encode(self.model, pixels)
        size = (pixels.shape[2], pixels.shape[3])
        index = group_maps(groups, self.grid(pixels), size).argmax(dim=1)  # [B, H, W]
        scores = score(groups, self.text, self.factor, self.options.classes_kept)  # [B, K, G]
        B, K, _ = scores.shape
        maps = scores.gather(2, index.view(B, 1, -1).expand(-1, K, -1)).view(B, K, *size)
        if self.options.background is None:
            return maps
        return add_background(maps, scores, self.options.background)

    @property
    def factor(self) -> float:
        """Factor on the cosines of groups and prompts, as learnt, at most 100."""
        return min(float(self.model.logit_scale.detach().exp()), MOST)

    def _text(self) -> Tensor:
        how = self.options
        rows = raw_text_features(
            self._text_side, self.classes, how, "K C", background=how.background is not None
        )
        return F.normalize(rows.to(self.device), dim=-1)


def score(groups: Groups, text: Tensor, factor: float, kept: int) -> Tensor:
    """Compare groups with prompts, and keep the prompts that fit the whole image: [B, K, G].

    A score is the probability of a prompt among all, times that among the `kept` prompts most
    similar to the whole image; 0 for others.

    Args:
        groups: of B images.
        text: [K, C] unit rows.
        factor: on the cosines before a softmax.
        kept: number of prompts kept, at most K are.
    """
    logits = factor * (text @ F.normalize(groups.features, dim=-1).mT)  # [B, K, G]
    whole = F.normalize(groups.mean, dim=-1) @ text.T  # [B, K]
    best = whole.topk(min(kept, len(text)), dim=1).indices
    others = torch.ones_like(whole, dtype=torch.bool).scatter(1, best, False)[:, :, None]
    among = logits.masked_fill(others, -torch.inf).softmax(dim=1)
    return logits.softmax(dim=1) * among


def add_background(maps: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Put a background before the other maps: 1 where no score reaches the threshold, else 0.

    Args:
        maps: [B, K, H, W] scores of pixels.
        scores: [B, K, G] of groups; the threshold is at most the largest of an image.
        threshold: in [0, 1].
    """
    limit = scores.amax(dim=(1, 2)).clamp(max=threshold)[:, None, None, None]
    background = (maps.amax(dim=1, keepdim=True) < limit).to(maps.dtype)
    return torch.cat([background, maps], dim=1)
