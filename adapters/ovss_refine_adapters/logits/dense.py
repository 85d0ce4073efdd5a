"""Shared by all producers of logits on CLIP: text, normalisation, cosines.

A producer adds `features`: normalised pixels to patch features in the joint space with text.

Axes: B images, K prompts, D channels, (H, W) pixels, (h, w) grid.
"""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine.checks import check_finite, check_float, check_shape
from ovss_refine.labels import LabelsLike
from ovss_refine.sources.device import DtypeLike
from ovss_refine_adapters.backbones.clip_tower import Tower
from ovss_refine_adapters.backbones.open_clip import Clip, Tokenizer, load_clip
from ovss_refine_adapters.logits.windowed import WindowedLogits, WindowOptions
from ovss_refine_adapters.text import Templates, as_classes, text_features


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClipOptions(WindowOptions):
    """Options of all producers on CLIP.

    Further arguments and exceptions are those of `WindowOptions`.
    `faithful` also rounds mean and deviation to 0.001 of a grey level, and adds the position table
    unchanged to any grid with as many patches.

    Attributes:
        model: "B/16", "L/14" (OpenAI's weights), an open_clip name, "hf-hub:owner/name", a folder
            ("local-dir:PATH" or a path), or a ready model.
        pretrained: tag or file of the weights, for an open_clip name.
        tokenizer: texts to token ids, for a ready model whose vocabulary is not CLIP's.
        device: device to load onto; None: the CPU. A ready model stays where it is.
        dtype: what image models that are loaded compute in: None: the dtype of their weights;
            "float32", "bfloat16", "float16" or a dtype of torch; "auto": float16 on a GPU, bfloat16
            on a CPU with instructions for it, else float32. Text, attention maps and logits are
            float32 in any case.
        templates: "imagenet" (80), "imagenet-scene" (85), "single" ("a photo of a {}."), or a list
            with "{}" in each.
        text_features: [K, D], one row per prompt, instead of the text tower's.
        cache_dir: folder that caches text features; "default": ovss_refine in the user's cache
            folder; None: no cache.
    """

    model: str | Path | nn.Module = "B/16"
    pretrained: str | Path | None = None
    tokenizer: Tokenizer | None = None
    device: str | torch.device | None = None
    dtype: DtypeLike = None
    templates: Templates = "imagenet"
    text_features: Tensor | None = None
    cache_dir: str | Path | None = "default"


class DenseClip(WindowedLogits):
    """A source of logits on CLIP's image tower.

    A subclass defines `features`, or `cosines` if the text depends on the image, and the options
    that differ in its publication, as `defaults`.

    Attributes:
        options: all options.
        classes: the classes and their prompts.
        tower: the image tower.
        text: [K, D] float32 unit rows on the tower's device.

    Args:
        classes: names, "/" between the synonyms of one; the path of a file for `read_labels`; or
            `Labels`.
        options: fields of `ClipOptions`.

    Raises:
        TypeError, ValueError: on an option that does not exist, options of the wrong kind or out of
            range, invalid classes, or an unsupported model.
        ModuleNotFoundError, FileNotFoundError: if a library or weights are missing.
    """

    defaults: ClassVar[dict[str, Any]] = {}
    # Whether the released code rounds mean and deviation; reproduced if `faithful`.
    rounds_statistics: ClassVar[bool] = True
    options: ClipOptions

    def __init__(self, classes: LabelsLike, **options: Any) -> None:
        """Load the model and embed the classes."""
        self.classes = as_classes(classes)
        self.options = ClipOptions(**{**self.defaults, **options})
        self._clip = clip = load_clip(
            self.options.model,
            self.options.pretrained,
            tokenizer=self.options.tokenizer,
            device=self.options.device,
            dtype=self.options.dtype,
        )
        self.tower = Tower(getattr(clip.model, "visual", None), self.options.faithful)
        self.text = self._text()
        rounded = self.options.faithful and self.in_mmseg and self.rounds_statistics
        self._mean, self._std = _statistics(clip, rounded, self.tower.device)
        if self.options.window is not None:
            self.tower.grid(self.options.window, self.options.window)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The image tower."""
        return (self.tower.visual,)

    @property
    def device(self) -> torch.device:
        """Device of the image tower."""
        return self.tower.device

    def prepare(self, images: Tensor) -> Tensor:
        """Resize and normalise: [B, 3, H, W] in [0, 1] to [B, 3, H', W'] pixels, float32."""
        pixels = self.resized(images.to(self.tower.device))
        self.tower.grid(*pixels.shape[-2:])
        return (pixels * 255 - self._mean) / self._std

    def values(self, pixels: Tensor, context: Any) -> Tensor:
        """Return the cosines."""
        return self.cosines(pixels, context)

    def cosines(self, pixels: Tensor, context: Any) -> Tensor:
        """Compare patches with prompts: [B, K, h, w] float32 in [-1, 1], on the producer's grid.

        Args:
            pixels: [B, 3, H, W] normalised pixels of whole images, or of a window of each.
            context: what `context` returned for the whole images.
        """
        return self.compare(self.features(pixels))

    def compare(self, features: Tensor) -> Tensor:
        """Compare [B, D, h, w] features with prompts: [B, K, h, w] cosines."""
        return torch.einsum("bdhw,kd->bkhw", F.normalize(features, dim=1), self.text)

    @abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """Compute patch features in the joint space with text, not of unit length.

        `pixels` [B, 3, H, W], normalised, to [B, D, h, w] float32.
        """

    def _text(self) -> Tensor:
        given = self.options.text_features
        if given is None:
            how = self.options
            return text_features(self._clip, self.classes, how.templates, how.cache_dir)
        check_shape("text_features", given, "K D", K=len(self.classes.all_prompts))
        check_float("text_features", given)
        check_finite("text_features", given)
        return F.normalize(given.detach().to(self.tower.device).float(), dim=-1)


def _statistics(clip: Clip, rounded: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pixels in grey levels of 0 to 255, [1, 3, 1, 1] each."""
    mean, std = (
        torch.tensor(
            [round(255 * x, 3) if rounded else 255 * x for x in row],
            dtype=torch.float32,
            device=device,
        )
        for row in (clip.mean, clip.std)
    )
    return mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
