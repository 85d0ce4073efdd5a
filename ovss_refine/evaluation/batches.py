"""Batches of images of one size, in the order in which they are read.

Axes: B images, K prompts, N patches, (H, W) pixels.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ovss_refine.attention import Attention
from ovss_refine.logits import Logits
from ovss_refine.refiner import as_attention

# How many batches' worth of images may wait for others of their size.
WAITING = 4


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Everything about an image that is read from files."""

    id: str
    image: NDArray[np.uint8]  # [H, W, 3] uint8 RGB
    truth: NDArray[np.uint8]  # [H, W] uint8 classes
    logits: Logits | None  # [K, h, w], if they are read from files
    # One map without a batch axis, if it is read from a file; a tensor if that names no grid.
    attention: Attention | Tensor | None
    # Whether the image has an EXIF orientation that its mask does not confirm: see `reading.Truth`.
    unclear: bool = False

    def shapes(self) -> tuple[object, ...]:
        """Return what the samples of a batch must agree on."""
        logits, attention = self.logits, self.attention
        index = None if logits is None else logits.prompt_index
        return (
            self.image.shape,
            None if logits is None else (logits.values.shape, logits.scale),
            None if index is None else tuple(torch.as_tensor(index).tolist()),
            attention.grid
            if isinstance(attention, Attention)
            else getattr(attention, "shape", None),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B samples with the same shapes."""

    samples: tuple[Sample, ...]

    def images(self, device: torch.device) -> Tensor:
        """Return [B, 3, H, W] float32 in [0, 1]."""
        stacked = torch.from_numpy(np.stack([sample.image for sample in self.samples]))
        return stacked.to(device).permute(0, 3, 1, 2).contiguous().float() / 255

    def logits(self, device: torch.device) -> Logits:
        """Stack the logits that were read from files."""
        read = [sample.logits for sample in self.samples if sample.logits is not None]
        values = torch.stack([one.values for one in read]).to(device)
        return Logits(values, read[0].scale, read[0].prompt_index, read[0].names)

    def attention(self, device: torch.device, logits_size: tuple[int, int]) -> Attention:
        """Stack the attention that was read from files, on grids that suit logits of (h, w)."""
        H, W = self.samples[0].image.shape[:2]
        read = [sample.attention for sample in self.samples if sample.attention is not None]
        return Attention.stack([as_attention(x, logits_size, (H, W)) for x in read]).to(device)


def batches(samples: Iterable[Sample], size: int) -> Iterator[Batch]:
    """Yield batches of up to `size` samples with the same shapes; every sample is in one."""
    waiting: dict[tuple[object, ...], list[Sample]] = {}
    for sample in samples:
        shapes = sample.shapes()
        group = waiting.setdefault(shapes, [])
        group.append(sample)
        if len(group) == size:
            yield Batch(tuple(waiting.pop(shapes)))
        elif sum(map(len, waiting.values())) >= WAITING * size:
            yield Batch(tuple(waiting.pop(next(iter(waiting)))))  # the oldest
    for rest in waiting.values():
        yield Batch(tuple(rest))
