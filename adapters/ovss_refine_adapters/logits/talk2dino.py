"""Talk2DINO: CLIP's text, mapped by a small network into the space of DINOv2's patches.

Source: L. Barsellotti et al., "Talking to DINO: Bridging Self-Supervised Vision Backbones with
Language for Open-Vocabulary Segmentation", ICCV 2025. A map is the sigmoid of the cosines of
DINOv2's patches with a prompt. Where there is a background, the maps are pulled towards what the
class token of the last block attends to (`clean`), and the background is a constant map.

Axes: B images, K prompts, S templates, A heads of d channels, C channels of DINOv2, D channels of
CLIP's text, (h, w) grid, N = h * w patches.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine.baseline.pamr import pamr
from ovss_refine.checks import (
    check_count,
    check_flag,
    check_number,
    check_shape,
)
from ovss_refine.labels import LabelsLike
from ovss_refine.sources.device import DtypeLike
from ovss_refine_adapters.backbones.open_clip import Tokenizer, load_clip
from ovss_refine_adapters.backbones.timm import TimmBackbone
from ovss_refine_adapters.backbones.timm_attention import Projections
from ovss_refine_adapters.logits.attending import AttendingLogits, Compared
from ovss_refine_adapters.logits.talk2dino_maps import class_attention, clean, similarity
from ovss_refine_adapters.logits.talk2dino_projection import as_projection
from ovss_refine_adapters.logits.windowed import WindowOptions
from ovss_refine_adapters.text import Templates, as_classes, raw_text_features

BACKBONE = "vit_base_patch14_reg4_dinov2.lvd142m"
TEMPLATES = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
PAMR_DILATIONS = (1, 2, 4, 8, 12, 24)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Talk2DinoOptions(WindowOptions):
    """Options of `Talk2DinoLogits`.

    Further arguments and exceptions are those of `WindowOptions`.

    Attributes:
        projection: weight file of the network from text to patches, such as the released
            "vitb_mlp_infonce.pth", a folder with it or with a single weight file, or a ready
            `TextProjection` or other module. Required.
        model: DINOv2 with registers, as `TimmBackbone` takes it.
        weights: weight file for `model`, as there.
        clip: the CLIP whose text tower is used, as `model` of `ClipOptions`.
        clip_pretrained: as `pretrained` of `ClipOptions`.
        tokenizer: as in `ClipOptions`.
        device: device to load onto; None: the CPU. Ready models stay where they are.
        dtype: as in `ClipOptions`, of `model`.
        templates: as in `ClipOptions`; by default the seven of the release.
        text_features: [K, D], one row per prompt, before the projection, instead of the text
            tower's; not of unit length.
        cache_dir: as in `ClipOptions`.
        background: None: class 0 is a class like any other. A number in [0, 1]: class 0 is the
            background, it has one prompt, which is not compared with the image, and its map is
            this constant (published: 0.55).
        clean_background: pull the maps towards what the class token attends to, see `clean`.
        clean_weight: weight of that, lambda, >= 0.
        pamr_steps: iterations of PAMR on the pixels of each window, dilations 1 to 24; 0:
            none.
    """

    short_side: int | None = 448
    window: int | None = 448
    stride: int = 224
    # No softmax is published. The sigmoid's slope is at most 1/4, so that this is 40 on cosines.
    logit_scale: float = 160.0
    projection: str | Path | nn.Module | None = None
    model: str | Path | nn.Module = BACKBONE
    weights: str | Path | None = None
    clip: str | Path | nn.Module = "B/16"
    clip_pretrained: str | Path | None = None
    tokenizer: Tokenizer | None = None
    device: str | torch.device | None = None
    dtype: DtypeLike = None
    templates: Templates = TEMPLATES
    text_features: Tensor | None = None
    cache_dir: str | Path | None = "default"
    background: float | None = None
    clean_background: bool = False
    clean_weight: float = 0.2
    pamr_steps: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        WindowOptions.__post_init__(self)
        if self.background is not None:
            check_number("background", self.background, 0, 1)
        check_flag("clean_background", self.clean_background)
        check_number("clean_weight", self.clean_weight, 0)
        check_count("pamr_steps", self.pamr_steps, 0)


class Talk2DinoLogits(AttendingLogits):
    """DINOv2's patches, compared with CLIP's text in DINOv2's space. Also a source of attention.

    The logits are sigmoids of cosines, in [0.26, 0.74] without cleaning: no softmax is published,
    and `logit_scale` is our choice. On whole images they lie on the grid of patches. The attention
    is that of DINOv2's last block on the whole image.

    Attributes:
        options: all options.
        classes: the classes and their prompts.
        backbone: DINOv2.
        text: [K, C] float32 unit rows; without the background's.

    Args:
        classes: as `DenseClip` takes them.
        options: fields of `Talk2DinoOptions`. `faithful` also divides by the maximum instead of
            the range in `clean`, and upsamples windows with the centres of the corner patches on
            the corners of the window.

    Raises:
        TypeError, ValueError: on an option that does not exist, options of the wrong kind or out of
            range, invalid classes, or models that do not fit each other.
        ModuleNotFoundError, FileNotFoundError: if a library or weights are missing.
    """

    options: Talk2DinoOptions

    def __init__(self, classes: LabelsLike, **options: Any) -> None:
        """Load the models and embed the classes."""
        self.classes = as_classes(classes)
        self.options = how = Talk2DinoOptions(**options)
        self._check_classes()
        self.projection = as_projection(how.projection)
        self._clip = load_clip(
            how.clip, how.clip_pretrained, tokenizer=how.tokenizer, device=how.device
        )
        device = None if isinstance(how.model, nn.Module) else how.device
        self.backbone = TimmBackbone(how.model, weights=how.weights, device=device, dtype=how.dtype)
        self._last = self.backbone.check_layers([-1])
        self.backbone.check_attention(self._last)
        self.text = self._text()

    def compared(self, pixels: Tensor) -> Compared:
        """Run DINOv2 up to the last queries and keys."""
        return self._compared(self.backbone.projections(pixels, self._last)[0], pixels)

    def values_and_compared(self, pixels: Tensor, context: Any) -> tuple[Tensor, Compared]:
        """Return what `values` and `compared` return, from one pass of DINOv2."""
        features, found = self.backbone.features_and_projections(pixels)
        return self._maps(pixels, features, found), self._compared(found, pixels)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """DINOv2."""
        return (self.backbone.model,)

    @property
    def device(self) -> torch.device:
        """Device of DINOv2."""
        device: torch.device = next(self.backbone.model.parameters()).device
        return device

    def prepare(self, images: Tensor) -> Tensor:
        """Resize [B, 3, H, W] images in [0, 1]; the backbone normalises."""
        return self.resized(images.to(self.device))

    def values(self, pixels: Tensor, context: Any) -> Tensor:
        """Compute the maps of all prompts but the background's: [B, K, h, w], or on pixels."""
        if self.options.clean_background:
            return self._maps(pixels, *self.backbone.features_and_projections(pixels))
        return self._maps(pixels, self.backbone.features(pixels), None)

    def finish(self, values: Tensor, images: Tensor) -> Tensor:
        """Add the map of the background."""
        if self.options.background is None:
            return values
        return torch.cat([torch.full_like(values[:, :1], self.options.background), values], dim=1)

    def _maps(self, pixels: Tensor, features: Tensor, found: Projections | None) -> Tensor:
        how = self.options
        maps = similarity(features, self.text).sigmoid()
        if how.clean_background and found is not None:
            attention = class_attention(found, self.backbone.prefix)
            maps = clean(
                maps, attention, features, self.text, how.clean_weight, faithful=how.faithful
            )
        if how.window is None and not how.pamr_steps:
            return maps
        size = tuple(pixels.shape[-2:])
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=how.faithful)
        if not how.pamr_steps:
            return maps
        return pamr(maps, pixels, iterations=how.pamr_steps, dilations=PAMR_DILATIONS)

    def _compared(self, found: Projections, pixels: Tensor) -> Compared:
        backbone = self.backbone
        return Compared(found.q, found.k, found.scale, backbone.prefix, backbone.grid(pixels))

    def _text(self) -> Tensor:
        how = self.options
        rows = raw_text_features(
            self._clip, self.classes, how, "K D", background=how.background is not None
        )
        weight = next(self.projection.parameters())
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            text = F.normalize(self.projection(rows.to(weight.device)).float(), dim=-1)
        check_shape("projection", text, "K C", C=int(self.backbone.model.num_features))
        return text.to(self.device)
