"""Text-promptable segmenters and detectors of transformers as sources of logits.

Axes: B images, K prompts, (H, W) pixels, (h, w) grid.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine.checks import check_number
from ovss_refine.labels import LabelsLike
from ovss_refine.sources.device import DtypeLike
from ovss_refine_adapters.backbones.capture import check_size, dtype_of, resize, target_size
from ovss_refine_adapters.backbones.open_clip import (
    VOCABULARY,
    Clip,
    Tokenizer,
    own_tokenizer,
)
from ovss_refine_adapters.backbones.promptable import FAMILIES, Promptable, TextSide
from ovss_refine_adapters.backbones.transformers_model import load_transformers
from ovss_refine_adapters.backbones.weights import pixel_statistics
from ovss_refine_adapters.logits.windowed import WindowedLogits, WindowOptions
from ovss_refine_adapters.text import Templates, as_classes, as_templates, text_features


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptableOptions(WindowOptions):
    """Options of `PromptableLogits`.

    Further arguments and exceptions are those of `WindowOptions`.
    No oddities are reproduced: `faithful` has no effect.

    Attributes:
        model: "owner/name" on the hub, a folder with safetensors, or a ready model. Required.
        processor: the model's own, with `tokenizer` and `image_processor`; None: CLIP's tokenizer
            and the pixels that the family was trained on.
        size: side of the square that the model is given, or the shorter side for one that takes
            any shape; None: the family's.
        device: device to load onto; None: the CPU. A ready model stays where it is.
        dtype: as in `ClipOptions`, here of the text as well, which is embedded by the same model.
        templates: as in `ClipOptions`; None: the family's.
        cache_dir: as in `ClipOptions`.
        background: None: class 0 is a class like any other. A probability in (0, 1): class 0 is the
            background, it has one prompt, which is not compared with the image, and it wins where
            no prompt has this probability. Only for log-odds.
    """

    short_side: int | None = None
    window: int | None = None
    logit_scale: float = 1.0
    model: str | Path | nn.Module | None = None
    processor: Any = None
    size: int | None = None
    device: str | torch.device | None = None
    dtype: DtypeLike = None
    templates: Templates | None = None
    cache_dir: str | Path | None = "default"
    background: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        WindowOptions.__post_init__(self)
        if self.model is None:
            raise ValueError(
                "`model` must be a name on the hub, a folder or a ready model; got None."
            )
        if self.background is not None:
            check_number("background", self.background, 0, 1, open_ends=True)


class PromptableLogits(WindowedLogits):
    """A model of transformers that gives a map for each text.

    Which models, and what their values are: `FAMILIES` of the backbones, by the `model_type` of the
    configuration. Values are log-odds, log(p / (1 - p)), of each prompt alone, except TIPSv2's,
    which are cosines divided by the temperature; `logit_scale` is 1. A softmax over log-odds weighs
    prompts by their odds, and one of them always wins: name a background, or give `background`.
    Values are [B, K, h, w], which may be the pixels of the square that the model sees.

    Attributes:
        options: all options.
        classes: the classes and their prompts.
        family: the model, and how it is prompted.
        text: [K, D] embedded prompts; without the background's.

    Args:
        classes: as `DenseClip` takes them.
        options: fields of `PromptableOptions`.

    Raises:
        TypeError, ValueError: on an option that does not exist, options of the wrong kind or out of
            range, invalid classes, or an unsupported model.
        ModuleNotFoundError, FileNotFoundError: if a library or weights are missing.
    """

    options: PromptableOptions
    in_mmseg = False

    def __init__(self, classes: LabelsLike, **options: Any) -> None:
        """Load the model and embed the classes."""
        self.classes = as_classes(classes)
        self.options = how = PromptableOptions(**options)
        assert how.model is not None  # noqa: S101 - checked by the options
        names = {kind: name for kind, (name, _) in FAMILIES.items()}
        model = load_transformers(how.model, names, how.device, safe=True, dtype=how.dtype)
        self.family = _family(model)
        self._side = _side(self.family, how.size)
        self._mean, self._std = (
            torch.tensor(row, device=self.device).view(1, 3, 1, 1)
            for row in _statistics(self.family, how.processor)
        )
        self._check_classes()
        self.text = self._text()

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The model."""
        return (self.family.model,)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        device: torch.device = next(self.family.model.parameters()).device
        return device

    def prepare(self, images: Tensor) -> Tensor:
        """Resize: [B, 3, H, W] in [0, 1] to [B, 3, H', W']."""
        return self.resized(images.to(self.device))

    def values(self, pixels: Tensor, context: Any) -> Tensor:
        """Compute the maps of pixels in [0, 1]: [B, K, h, w]."""
        size = (pixels.shape[2], pixels.shape[3])
        fitted = (self._fitted(pixels) - self._mean) / self._std
        maps = self.family.maps(fitted.to(dtype_of(self.family.model)), self.text).float()
        if self.family.fit == "pad":
            maps = without_padding(maps, size)
        if self.options.background is None:
            return maps
        p = self.options.background
        constant = torch.full_like(maps[:, :1], math.log(p / (1 - p)))
        return torch.cat([constant, maps], dim=1)

    def _fitted(self, pixels: Tensor) -> Tensor:
        """Give the pixels the model's size and shape."""
        side, (H, W) = self._side, pixels.shape[-2:]
        if self.family.fit == "keep":
            patch = (self.family.multiple, self.family.multiple)
            return resize(pixels, target_size(side, pixels, patch))
        if self.family.fit == "pad":
            pixels = F.pad(pixels, (0, max(H - W, 0), 0, max(W - H, 0)))
        return resize(pixels, (side, side))

    def _check_classes(self) -> None:
        super()._check_classes()
        if self.options.background is not None and not self.family.log_odds:
            raise ValueError(
                "`background` must be None for a model whose values are not log-odds; got "
                f"{self.options.background!r}."
            )

    def _text(self) -> Tensor:
        how, family = self.options, self.family
        templates = as_templates(family.templates if how.templates is None else how.templates)
        if len(templates) > 1 and not family.average:
            raise ValueError(
                f"`templates` must be a single one for {type(family.model).__name__}; got "
                f"{len(templates)}."
            )
        clip = Clip(TextSide(family), _tokenizer(family, how.processor), *family.pixels)
        rows = text_features(clip, self.classes, templates, how.cache_dir, unit=family.unit)
        return rows[0 if how.background is None else 1 :].to(dtype_of(family.model))


def without_padding(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the image out of maps of the square that it was padded to, at the right and the bottom.

    Args:
        maps: [B, K, g, g] of the square.
        size: (height, width) of the image in pixels; the larger is the square's side.

    Returns:
        [B, K, h, w] of the image alone, bilinear where its edge is inside a cell.
    """
    shares = [side / max(size) for side in size]
    h, w = (max(1, round(g * share)) for g, share in zip(maps.shape[2:], shares, strict=True))
    if all(n == g * share for n, g, share in zip((h, w), maps.shape[2:], shares, strict=True)):
        return maps[:, :, :h, :w]
    # Coordinates are -1 and 1 at the square's edges.
    y, x = (
        (2 * torch.arange(n, device=maps.device) + 1) / n * share - 1
        for n, share in zip((h, w), shares, strict=True)
    )
    points = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=-1)
    return F.grid_sample(
        maps,
        points.expand(len(maps), -1, -1, -1).to(maps.dtype),
        padding_mode="border",
        align_corners=False,
    )


def _family(model: Any) -> Promptable:
    """Return the model with how it is prompted."""
    for name, family in FAMILIES.values():
        if any(kind.__name__ == name for kind in type(model).__mro__):
            return family(model)
    raise AssertionError(type(model).__name__)  # `load_transformers` takes no other


def _side(family: Promptable, size: int | None) -> int:
    """Return the side of the model's images, or raise ValueError if it does not take `size`."""
    check_size("size", size, (family.multiple, family.multiple))
    if size not in (None, family.side) and not family.any_size:
        raise ValueError(
            f"`size` must be None or {family.side} for {type(family.model).__name__}, which takes "
            f"no other; got {size}."
        )
    return size or family.side


def _statistics(family: Promptable, processor: Any) -> tuple[tuple[float, ...], ...]:
    images = getattr(processor, "image_processor", None)
    if images is None:
        return family.pixels
    if not getattr(images, "do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return pixel_statistics({"mean": images.image_mean, "std": images.image_std})


def _tokenizer(family: Promptable, processor: Any) -> Tokenizer:
    """Return a function from texts to padded token ids."""
    config = family.model.config.text_config
    context, own = config.max_position_embeddings, getattr(processor, "tokenizer", None)
    if own is None and config.vocab_size != VOCABULARY:
        raise ValueError(
            "`processor` must be given for a model whose texts are not CLIP's tokens; got None for "
            f"{type(family.model).__name__} with {config.vocab_size} of them."
        )
    if own is None:
        return own_tokenizer(context, VOCABULARY)

    def tokenize(texts: list[str]) -> Tensor:
        found = own(texts).input_ids
        for text, ids in zip(texts, found, strict=True):
            if len(ids) > context:
                raise ValueError(
                    f"`classes` must fit in the model's {context} tokens in every template; got "
                    f"{len(ids)} for {text!r}. Shorten it."
                )
        padded: Tensor = own(
            texts, padding="max_length", max_length=context, return_tensors="pt"
        ).input_ids
        return padded

    return tokenize
