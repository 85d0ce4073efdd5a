"""Logits and attention of one pass: for sources of logits whose image model computes both.

Axes: B images, K prompts, A heads, T tokens (those before the patches first), N patches on a grid
(h, w), d channels per head.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ovss_refine.attention import Attention
from ovss_refine.images.convert import ImagesLike
from ovss_refine.logits import Logits
from ovss_refine_adapters.backbones.capture import check_images, mix_attention
from ovss_refine_adapters.backbones.plain import undisturbed
from ovss_refine_adapters.logits.windowed import WindowedLogits


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """What the attention of a block compares, of whole images.

    Attributes:
        q: [B, A, T, d] queries.
        k: [B, A, T, d] keys.
        scale: factor on their products.
        prefix: number of tokens before the patches.
        grid: (h, w) of the patches.
    """

    q: Tensor
    k: Tensor
    scale: float
    prefix: int
    grid: tuple[int, int]

    def attention(self, device: torch.device) -> Attention:
        """Average the heads: B float32 maps on a device."""
        return mix_attention(
            [(self.q, self.k, self.scale)],
            (1.0,),
            self.grid,
            prefix=self.prefix,
            factors=False,
            device=device,
        )


class AttendingLogits(WindowedLogits):
    """A source of logits that is a source of attention too.

    The attention is that of the last block of the image model, on the whole image as the source
    resizes it: mean over heads, tokens before the patches dropped, rows renormalised. A subclass
    defines `compared` and `values_and_compared`.
    """

    @abstractmethod
    def compared(self, pixels: Tensor) -> Compared:
        """Run the model on prepared pixels [B, 3, H, W], up to the last queries and keys."""

    @abstractmethod
    def values_and_compared(self, pixels: Tensor, context: Any) -> tuple[Tensor, Compared]:
        """Return what `values` and `compared` return for whole images, from one pass."""

    def attention(self, images: ImagesLike) -> Attention:
        """Compute B float32 maps over the grid of patches, on the device of `images`.

        Images and exceptions are those of `AttentionSource`. Memory beyond the model and its
        activations: B * N * N floats.
        """
        images = check_images(images)
        with undisturbed(*self.modules):
            found = self.compared(self.prepare(images))
        return found.attention(images.device)

    def logits_and_attention(self, images: ImagesLike) -> tuple[Logits, Attention]:
        """Compute both; for whole images (`window=None`), in one pass of the model.

        With windows, the attention takes one more pass, of the whole images. Images and exceptions
        are those of `AttentionSource`.
        """
        images = check_images(images)
        if self.options.window is not None:
            return self.logits(images), self.attention(images)
        with undisturbed(*self.modules):
            pixels = self.prepare(images)
            values, found = self.values_and_compared(pixels, self.context(pixels))
            values = self.finish(values, images)
        return self._result(values, images), found.attention(images.device)
