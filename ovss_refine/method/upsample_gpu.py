"""Joint bilateral upsampling by one kernel, on a GPU for which Triton compiles it.

Where it does not, `upsample.py` does the same in torch.

Axes: as in `upsample.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.config import RefineConfig
from ovss_refine.tensors.cells import axis
from ovss_refine.tensors.compiled import load_loops
from ovss_refine.tensors.gpu_device import available, current

KERNEL = "ovss_refine.method.upsample_triton"
# Means held at a time; maps and pixels that a program holds.
BAND, MAPS, PIXELS = 1 << 26, 16, 128


def can_upsample(low: Tensor, guide: Tensor) -> bool:
    """Whether the kernel can upsample these tensors."""
    return low.dtype == guide.dtype == torch.float32 and available(KERNEL, low, guide)


@dataclass(frozen=True, slots=True, eq=False)
class GpuBand:
    """Some rows of pixels to upsample.

    Attributes:
        rows: the pixel rows [start, stop) that the band covers.
        low: [B, K, gh, gw] maps.
        image: [B, 3, H, W].
        tables: what the kernel takes from `means` to `x_weights`.
        numbers: its `scale`, `floor` and `S1`.
    """

    rows: slice
    low: Tensor
    image: Tensor
    tables: tuple[Tensor, ...]
    numbers: tuple[float, float, int]

    def labels(self) -> Tensor:
        """Return the index of the largest map at every pixel, [B, rows, W] int64."""
        return self._fill(True)

    def means(self) -> Tensor:
        """Return the upsampled maps, [B, K, rows, W] float32."""
        return self._fill(False)

    def _fill(self, labels: bool) -> Tensor:
        B, K, gh, gw = self.low.shape
        H, W = self.image.shape[2:]
        rows = self.rows.stop - self.rows.start
        shape = (B, rows, W) if labels else (B, K, rows, W)
        out = self.low.new_empty(shape, dtype=torch.int64 if labels else torch.float32)
        maps = min(MAPS, 1 << (K - 1).bit_length())
        kernel = cast(Any, load_loops(KERNEL, "triton")).upsample_pixels
        with current(self.low.device):
            kernel[-(-rows * W // PIXELS), B](
                *(self.low, self.image, *self.tables, out),
                *(K, gh, gw, H, W, self.rows.start, rows),
                *self.numbers,
                LABELS=labels,
                MAPS=maps,
                PIXELS=PIXELS,
            )
        return out


def gpu_bands(
    low: Tensor, guide: Tensor, spread: RefineConfig, floor: float, divisor: int = 1
) -> Iterator[GpuBand]:
    """Do what `upsample_bands` does; see there. A band's means are all that it holds.

    `floor` is the share of the spatial weight that decides where every range weight vanishes.
    """
    B, K, gh, gw = low.shape
    H, W = guide.shape[2:]
    means = F.adaptive_avg_pool2d(guide, (gh, gw)).contiguous()
    (y_cell, y_weights), (x_cell, x_weights) = (
        pixel_table(size, g, spread.sigma_spatial, spread.radius, low.device)
        for size, g in ((H, gh), (W, gw))
    )
    tables = means, y_cell, x_cell, y_weights, x_weights
    numbers = -0.5 / spread.sigma_range**2, floor, 2 * spread.radius + 1
    low, guide = low.contiguous(), guide.contiguous()
    step = max(1, BAND // divisor // (B * K * W))
    for top in range(0, H, step):
        yield GpuBand(slice(top, min(top + step, H)), low, guide, tables, numbers)


# Made on a CPU and copied. The sizes are an image's and a grid's: the last 256 are some 4 MB.
@lru_cache(maxsize=256)
def pixel_table(
    size: int, g: int, sigma: float, radius: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Say for each pixel of an axis what `axis` says for each place of a cell.

    Args:
        size: pixels, as are the other arguments those of `axis`.
        g: cells.
        sigma: spatial spread in cells.
        radius: reach in cells.
        device: where the result lies.

    Returns:
        [size] int32 the cell that a pixel is in; [S1, size] float32 spatial weights of its
        neighbours. Both are kept for the next call and must not be changed.
    """
    with torch.inference_mode(False):  # so that they can be used outside of it as well
        places = axis(size, g, sigma, radius, torch.device("cpu"))
        P = places.pixels.shape[1]
        weights = places.weights.expand(g, -1, -1).transpose(0, 1).flatten(1)  # [S1, g * P]
        cell = (places.place // P).int()
        return cell.to(device), weights[:, places.place].contiguous().to(device)
