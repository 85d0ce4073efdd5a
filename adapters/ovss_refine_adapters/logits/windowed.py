"""Shared by all producers of logits from images: sizes, sliding windows, the result.

A producer adds `values`: the pixels of an image, or of one window, to one map for each prompt.

Axes: B images, K prompts, (H, W) pixels, (h, w) grid.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ovss_refine.baseline.resize import resized_size
from ovss_refine.checks import check_count, check_number
from ovss_refine.images.convert import ImagesLike
from ovss_refine.labels import Labels, LabelsLike
from ovss_refine.logits import Logits
from ovss_refine_adapters.backbones.capture import check_images, resize
from ovss_refine_adapters.backbones.plain import undisturbed
from ovss_refine_adapters.backbones.resize import resize_8bit
from ovss_refine_adapters.logits.windows import slide
from ovss_refine_adapters.text import as_classes


def check_background(classes: Labels) -> None:
    """Raise ValueError unless class 0 can be a background that is not compared with images."""
    prompts = classes.synonyms[0]
    if len(prompts) > 1 or len(classes) < 2:
        raise ValueError(
            "`classes` must begin with the background, with a single prompt, and have others after "
            f"it, if `background` is given; got {list(prompts)} of {len(classes)} classes."
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowOptions:
    """Options of all producers.

    Attributes:
        short_side: shorter side to resize images to, > 0; None: images keep their size.
        window: side of the sliding windows in pixels of the resized image; None: whole image.
        stride: step between windows in pixels, in [1, window].
        logit_scale: factor on the logits before a softmax over prompts, > 0.
        faithful: reproduce the oddities of the released code: for most, resize like OpenCV, in 8
            bits and without antialiasing; and those that a producer names. False: none of these.

    Raises:
        TypeError, ValueError: if a numeric option is not a number or out of range.
    """

    short_side: int | None = 336
    window: int | None = 224
    stride: int = 112
    logit_scale: float = 40.0
    faithful: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.short_side is not None:
            check_count("short_side", self.short_side, 1)
        check_count("stride", self.stride, 1)
        if self.window is not None:
            check_count("window", self.window, 1)
            if self.stride > self.window:
                raise ValueError(
                    f"`stride` must be at most `window` = {self.window}, or pixels between the "
                    f"windows get no logits; got {self.stride}."
                )
        check_number("logit_scale", self.logit_scale, 0, open_ends=True)


class WindowedLogits(ABC):
    """A source of logits that takes whole images or averages over sliding windows.

    Attributes:
        options: at least those of `WindowOptions`.
        classes: the classes and their prompts.
        text: [K, D] the embedded prompts that are compared with images.
    """

    options: WindowOptions
    classes: Labels
    text: Tensor
    # Whether the released code prepares images in MMSegmentation, which resizes by OpenCV.
    # Reproduced if `faithful`.
    in_mmseg: ClassVar[bool] = True
    # Windows are padded with zeros to a multiple of this many pixels.
    window_multiple: int = 1

    def logits(self, images: ImagesLike) -> Logits:
        """Compute the logits, [B, K, h, w] float32 on the device of `images`.

        They are cosines in [-1, 1] unless the producer says otherwise. Images and exceptions are
        those of `LogitsSource`; images smaller than a patch raise too. On whole images the grid is
        the producer's own. With windows it is the pixels of the resized image, over which the
        windows were averaged: B * K * H' * W' floats.
        """
        images = check_images(images)
        with undisturbed(*self.modules):
            values = self.finish(self._values(self.prepare(images)), images)
        return self._result(values, images)

    def with_classes(self, classes: LabelsLike) -> Self:
        """Return a source of the same kind for other classes, on the same models.

        Nothing is loaded or copied; this source is unchanged. Given `text_features` belong to the
        first classes and raise ValueError.

        Args:
            classes: as the constructor takes them.
        """
        if getattr(self.options, "text_features", None) is not None:
            raise ValueError("`text_features` must be None to change the classes; got a tensor.")
        other = copy.copy(self)
        other.classes = as_classes(classes)
        other._check_classes()
        other.text = other._text()
        return other

    def _check_classes(self) -> None:
        """Raise ValueError on classes without a background, where the options have one."""
        if getattr(self.options, "background", None) is not None:
            check_background(self.classes)

    @abstractmethod
    def _text(self) -> Tensor:
        """Embed the prompts of the classes."""

    @property
    def scale(self) -> float:
        """Factor on the logits before a softmax over prompts."""
        return self.options.logit_scale

    @property
    @abstractmethod
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that are run."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the model that is given the images."""

    @abstractmethod
    def prepare(self, images: Tensor) -> Tensor:
        """Make the pixels that `values` takes of [B, 3, H, W] images in [0, 1]."""

    def context(self, pixels: Tensor) -> Any:
        """Return what `values` needs from the whole resized images; nothing by default."""
        return None

    @abstractmethod
    def values(self, pixels: Tensor, context: Any) -> Tensor:
        """Compute the maps, [B, K, h, w] float32 on the producer's grid.

        Args:
            pixels: [B, 3, H, W] prepared pixels of whole images, or of a window of each.
            context: what `context` returned for the whole images.
        """

    def finish(self, values: Tensor, images: Tensor) -> Tensor:
        """Make the logits of the maps of whole `images`; they are the same by default."""
        return values

    def resized(self, images: Tensor) -> Tensor:
        """Resize [B, 3, H, W] images in [0, 1] to the working size [B, 3, H', W']."""
        if self.options.short_side is None:
            return images
        size = resized_size(images.shape[2], images.shape[3], self.options.short_side)
        if self.options.faithful and self.in_mmseg and images.shape[-2:] != size:
            return resize_8bit(images, size)
        return resize(images, size).clamp(0, 1)

    def _values(self, pixels: Tensor) -> Tensor:
        how, score = self.options, partial(self.values, context=self.context(pixels))
        if how.window is None:
            return score(pixels)
        multiple = self.window_multiple
        return slide(pixels, score, window=how.window, stride=how.stride, multiple=multiple)

    def _result(self, values: Tensor, images: Tensor) -> Logits:
        return Logits(
            values.to(images.device),
            self.scale,
            self.classes.prompt_index,
            self.classes.names,
        )
