"""Joint bilateral upsampling: coarse maps to pixels, along the edges of an image.

Sources: J. Kopf et al., "Joint Bilateral Upsampling", SIGGRAPH 2007; J. Li et al., CVPR 2026,
Eq. 23. Here the spatial distance is in cells of the coarse grid.

All pixels of one cell have the same neighbours, so per cell the weighted mean is a matrix
product: [K, neighbours] values times [neighbours, pixels of the cell] weights.

Axes: B images, K maps, (gh, gw) coarse grid, (H, W) pixels, S = (2 * radius + 1)^2 neighbours.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.checks import check_shape, check_values
from ovss_refine.config import RefineConfig
from ovss_refine.images.convert import as_guide
from ovss_refine.method.upsample_compiled import CompiledBand, can_compile, compiled_bands
from ovss_refine.method.upsample_gpu import GpuBand, can_upsample, gpu_bands
from ovss_refine.tensors.cells import Axis, axis, by_cell, cell_means, neighbours, spatial_weights
from ovss_refine.tensors.tracing import exporting

# Weights held at a time. On a CPU a band has to stay in the cache between the few passes over
# it; a GPU wants few large launches.
CPU_BAND = 1 << 19
GPU_BAND = 1 << 26
# Share of the spatial weight that decides where every range weight vanishes.
SPATIAL_FLOOR = 1e-12


def joint_bilateral_upsample(
    low: Tensor,
    image: Tensor,
    sigma_spatial: float = 1.0,
    sigma_range: float = 0.1,
    radius: int = 2,
) -> Tensor:
    """Upsample coarse maps to the image's size along the image's edges.

    Every pixel is a mean of the (2 * radius + 1)^2 cells around its own, weighted by distance
    in cells and by the difference between the pixel's colour and the cell's mean colour.
    Constants are preserved and the output stays within the input's range.

    Args:
        low: [B, K, gh, gw] maps of any range, floating-point, finite.
        image: [B, 3, H, W] the same images; float in [0, 1] or uint8. H and W need not be
            multiples of gh and gw, nor larger.
        sigma_spatial: spatial spread in cells, in the range that `RefineConfig` has for it.
        sigma_range: colour spread, likewise; RGB in [0, 1], Euclidean over the channels.
        radius: reach in cells, likewise.

    Returns:
        [B, K, H, W] in `low`'s dtype. No gradient.

    Raises:
        TypeError: if `low` or `image` is not a tensor of the dtypes above.
        ValueError: on shapes that do not fit, values that are not finite or out of range.

    Example:
        >>> import torch
        >>> joint_bilateral_upsample(torch.rand(1, 2, 4, 4), torch.rand(1, 3, 9, 16)).shape
        torch.Size([1, 2, 9, 16])
    """
    sizes = check_shape("low", low, "B K gh gw")
    check_values("low", low)
    guide = as_guide(image, B=sizes["B"])
    spread = RefineConfig(sigma_spatial=sigma_spatial, sigma_range=sigma_range, radius=radius)
    with torch.no_grad(), torch.autocast(low.device.type, enabled=False):
        out = low.new_empty(*low.shape[:2], *image.shape[2:])
        guide = guide.to(low.device)
        for band in upsample_bands(low.float(), guide, spread):
            out[:, :, band.rows] = band.means()
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """Some rows of cells, upsampled, still ordered by cell. Valid until the next is drawn.

    Attributes:
        rows: the pixel rows [start, stop) that the band covers.
        sums: [B, n, gw, K + 1, P] weighted sums of the K maps, last the sum of the weights, at
            the P places of each cell.
        y: the axis of the rows.
        x: the axis of the columns.
        top: first row of cells.
    """

    rows: slice
    sums: Tensor
    y: Axis
    x: Axis
    top: int

    def labels(self) -> Tensor:
        """Return the index of the largest map at every pixel, [B, rows, W] int64."""
        # The sums share a positive divisor at each pixel, which changes no order.
        sums = self.sums[:, :, :, :-1]  # [B, n, gw, K, P]
        if exporting():  # to where argmax is fast
            return self._to_pixels(sums.argmax(dim=3, keepdim=True))[:, 0]
        K, P = sums.shape[3:]
        # argmax over any axis but the last is not vectorised on a CPU: these three passes give
        # the same first index of the maximum in a twentieth of the time.
        countdown = torch.arange(K, 0, -1, dtype=sums.dtype, device=sums.device)
        largest = torch.ge(sums, sums.amax(dim=3, keepdim=True), out=torch.empty_like(sums))
        first = largest.mul_(countdown[:, None].expand(K, P).contiguous()).amax(dim=3, keepdim=True)
        return K - self._to_pixels(first)[:, 0].long()

    def means(self) -> Tensor:
        """Return the upsampled maps, [B, K, rows, W] float32."""
        return self._to_pixels(self.sums[:, :, :, :-1] / self.sums[:, :, :, -1:])

    def _to_pixels(self, maps: Tensor) -> Tensor:
        B, n, gw, K, _ = maps.shape
        Py, Px = self.y.pixels.shape[1], self.x.pixels.shape[1]
        maps = maps.reshape(B, n, gw, K, Py, Px).permute(0, 3, 1, 4, 2, 5)
        maps = maps.reshape(B, K, n * Py, gw * Px)
        if not self.y.even:
            maps = maps.index_select(2, self.y.place[self.rows] - self.top * Py)
        return maps if self.x.even else maps.index_select(3, self.x.place)


def upsample_bands(
    low: Tensor, guide: Tensor, spread: RefineConfig, divisor: int = 1
) -> Iterator[Band | CompiledBand | GpuBand]:
    """Upsample one band of pixel rows after the other, so that [B, K, H, W] need not be held.

    A band holds 2 * S + K + 1 floats for every place of its cells; all bands use the same memory.
    On a CPU the compiled loop does the same, where numba is installed, and on a GPU a kernel, where
    Triton compiles it. They hold what they return.

    Args:
        low: [B, K, gh, gw] float32.
        guide: [B, 3, H, W] float32 in [0, 1].
        spread: `sigma_spatial`, `sigma_range` and `radius`.
        divisor: divides the size of a band.
    """
    if can_compile(low, guide):
        return compiled_bands(low, guide, spread, divisor)
    if can_upsample(low, guide):
        return gpu_bands(low, guide, spread, SPATIAL_FLOOR, divisor)
    return _torch_bands(low, guide, spread, divisor)


def _torch_bands(low: Tensor, guide: Tensor, spread: RefineConfig, divisor: int) -> Iterator[Band]:
    B, K, gh, gw = low.shape
    y = axis(guide.shape[2], gh, spread.sigma_spatial, spread.radius, low.device)
    x = axis(guide.shape[3], gw, spread.sigma_spatial, spread.radius, low.device)
    S, P = x.cells.shape[1] ** 2, y.pixels.shape[1] * x.pixels.shape[1]
    size = (CPU_BAND if low.device.type == "cpu" else GPU_BAND) // divisor
    if not exporting() and B * gw * S * P > size:  # less than a row of cells is held
        pieces = min(y.pixels.shape[1], -(-B * gw * S * P // size))
        y = axis(guide.shape[2], gh, spread.sigma_spatial, spread.radius, low.device, pieces)
        P = y.pixels.shape[1] * x.pixels.shape[1]
    fill = _filler(low, guide, y, x, spread.sigma_range)
    if exporting():  # which cannot count bands of a symbol
        w, s = low.new_empty(B, gh, gw, S, P), low.new_empty(B, gh, gw, K + 1, P)
        fill(slice(None), w, torch.empty_like(w), s)
        yield Band(slice(None), s, y, x, 0)
        return
    n = y.cells.shape[0]
    step = min(n, max(1, size // (B * gw * S * P)))
    # Made once: on a CPU new memory costs more than what is written to it here.
    weights, works = low.new_empty(2, step * B * gw * S * P)
    sums = low.new_empty(step * B * gw * (K + 1) * P)
    for top in range(0, n, step):
        cells = slice(top, min(top + step, n))
        rows = slice(y.edges[cells.start], y.edges[cells.stop])
        if rows.start == rows.stop:  # fewer pixels than cells: nobody is nearest to these
            continue
        shape = (B, cells.stop - top, gw)
        w, work = (_first(t, *shape, S, P) for t in (weights, works))
        s = _first(sums, *shape, K + 1, P)
        fill(cells, w, work, s)
        yield Band(rows, s, y, x, top)


def _filler(
    low: Tensor, guide: Tensor, y: Axis, x: Axis, sigma_range: float
) -> Callable[[slice, Tensor, Tensor, Tensor], None]:
    """Prepare what all bands share; return what fills in the weights and sums of one.

    That takes the rows of cells, two tensors [B, n, gw, S, P], for the weights and to work with,
    and one for the sums, [B, n, gw, K + 1, P].
    """
    gh, gw = low.shape[2:]
    means = cell_means(guide, gh, gw) if exporting() else F.adaptive_avg_pool2d(guide, (gh, gw))
    colours = means.flatten(2).mT.contiguous()  # [B, gh * gw, 3]
    values = torch.cat([low, torch.ones_like(low[:, :1])], dim=1)  # the ones sum the weights
    values = values.flatten(2).mT.contiguous()  # [B, gh * gw, K + 1]
    image = guide if x.even else guide.index_select(3, x.pixels.flatten())  # [B, 3, H, gw * Px]

    def fill(cells: slice, w: Tensor, work: Tensor, sums: Tensor) -> None:
        pixels = by_cell(image, y, x, cells)  # [B, 3, n, gw, P]
        _range_weights(pixels, neighbours(colours, y, x, cells), sigma_range, w, work)
        spatial = spatial_weights(y, x, cells)
        torch.addcmul(SPATIAL_FLOOR * spatial, w, spatial, out=w)
        torch.matmul(neighbours(values, y, x, cells).mT, w, out=sums)

    return fill


def _first(buffer: Tensor, *shape: int) -> Tensor:
    """View the beginning of a flat `buffer` in a `shape`."""
    return buffer[: math.prod(shape)].view(shape)


def _range_weights(
    pixels: Tensor, colours: Tensor, sigma: float, out: Tensor, work: Tensor
) -> None:
    """Weigh neighbours by colour.

    Args:
        pixels: [B, 3, n, gw, P] colours of the pixels of each cell.
        colours: [B, n, gw, S, 3] colours of the neighbours of each cell.
        sigma: colour spread.
        out: [B, n, gw, S, P], takes the weights.
        work: as `out`, overwritten.
    """
    scale = (2 * sigma**2) ** -0.5
    pixels, colours = pixels * scale, colours * scale
    for channel in range(3):
        torch.sub(pixels[:, channel, :, :, None, :], colours[..., channel, None], out=work)
        if channel == 0:
            torch.mul(work, work, out=out)
        else:
            out.addcmul_(work, work)
    out.neg_().exp_()
