"""The last step of a refinement by the upsampler of the options, in bands that fit into memory.

Axes: B images, K maps, (gh, gw) coarse grid, (H, W) pixels.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ovss_refine.checks import check_dense, check_finite
from ovss_refine.config import RefineConfig
from ovss_refine.method.upsample import Band, upsample_bands
from ovss_refine.method.upsample_compiled import CompiledBand
from ovss_refine.method.upsample_gpu import GpuBand
from ovss_refine.tensors.tracing import exporting
from ovss_refine.upsamplers.bilinear import bilinear_rows
from ovss_refine.upsamplers.guided import guided_rows
from ovss_refine.upsamplers.names import Upsampler, name_of, resolved
from ovss_refine.upsamplers.rows import Rows

BY_ROWS: dict[str, Callable[[Tensor, Tensor], Rows]] = {
    "bilinear": bilinear_rows,
    "guided": guided_rows,
}
# Upsamplers that a graph can hold.
EXPORTED = ("jbu", *BY_ROWS)
# Values of pixels held at a time: they stay in a CPU's cache, and a GPU wants few launches.
BAND, GPU_BAND = 1 << 20, 1 << 26


@dataclass(frozen=True, slots=True, eq=False)
class MapsBand:
    """Some rows of pixels.

    Attributes:
        rows: the pixel rows [start, stop).
        maps: [b, K, rows, W] float32 for some of the B images at a time, in order. Where it is an
            iterator, labels or means are had once.
    """

    rows: slice
    maps: Iterable[Tensor]

    def labels(self) -> Tensor:
        """Return the index of the largest map at every pixel, [B, rows, W] int64."""
        # On a CPU `max` is several times as fast as `argmax`; both take the first of equals.
        return torch.cat([x.argmax(1) if exporting() else x.max(1).indices for x in self.maps])

    def means(self) -> Tensor:
        """Return the upsampled maps, [B, K, rows, W] float32."""
        return torch.cat(list(self.maps))


def bands(
    low: Tensor,
    guide: Tensor,
    config: RefineConfig,
    divisor: int = 1,
    counts: Tensor | None = None,
) -> Iterator[Band | CompiledBand | GpuBand | MapsBand]:
    """Upsample by `config.upsampler`, one band of pixel rows after the other.

    An upsampler of the user's is given one image at a time, whole.

    Args:
        low: [B, K, gh, gw] float32, finite.
        guide: [B, 3, H, W] float32 in [0, 1].
        config: `upsampler`, what "jbu" reads, and `keep_scores`: whether means are wanted as well
            as labels.
        divisor: divides the size of a band.
        counts: [B] how many of its maps are an image's own; the rest repeat the first. None: all.

    Raises:
        TypeError: if the user's upsampler returns anything but a float32 tensor.
        ValueError: if it returns another shape, another device, or values that are not finite.
    """
    upsampler, (H, W) = config.upsampler, guide.shape[2:]
    if upsampler == "jbu":
        yield from upsample_bands(low, guide, config, divisor)
    elif isinstance(upsampler, str) and upsampler in BY_ROWS:
        rows = BY_ROWS[upsampler](low, guide)
        size = (BAND if low.device.type == "cpu" else GPU_BAND) // divisor
        for some in _row_bands(low.shape[0] * low.shape[1] * W, H, size):
            yield MapsBand(some, [rows(some)])
    else:
        images = _one_by_one(resolved(upsampler), low, guide, counts)
        yield MapsBand(slice(0, H), list(images) if config.keep_scores else images)


def _row_bands(row: int, H: int, size: int) -> Iterator[slice]:
    """Split H rows of `row` values into bands of `size`; a graph cannot count those of a symbol."""
    if exporting():
        yield slice(None)
        return
    step = max(1, size // row)
    for top in range(0, H, step):
        yield slice(top, min(top + step, H))


def _one_by_one(
    upsampler: Upsampler, low: Tensor, guide: Tensor, counts: Tensor | None
) -> Iterator[Tensor]:
    """Give [1, K, H, W] for every image by an upsampler of the user's, checked."""
    B, K = low.shape[:2]
    for b, count in enumerate([K] * B if counts is None else counts.tolist()):
        maps = upsampler(low[b : b + 1, :count], guide[b : b + 1])
        _check_maps(maps, (1, count, *guide.shape[2:]), low.device, name_of(upsampler))
        repeated = [*range(count), *[0] * (K - count)]
        yield maps if count == K else maps[:, repeated]


def _check_maps(maps: Tensor, shape: tuple[int, ...], device: torch.device, name: str) -> None:
    """Check what an upsampler of the user's returned."""
    check_dense(name, maps)
    if maps.dtype != torch.float32:
        raise TypeError(f"`{name}` must return float32; got {maps.dtype}.")
    if tuple(maps.shape) != shape or maps.device != device:
        raise ValueError(
            f"`{name}` must return shape {list(shape)} on {device}; got {list(maps.shape)} on "
            f"{maps.device}."
        )
    check_finite(name, maps)
