"""Joint bilateral upsampling: coarse maps to pixels, along the edges of an image.

Sources: J. Kopf et al., "Joint Bilateral Upsampling", SIGGRAPH 2007; J. Li et al., CVPR 2026,
Eq. 23. Here the spatial distance is in cells of the coarse grid.

All pixels of one cell have the same neighbours, so per cell the weighted mean is a matrix
product: [K, neighbours] values times [neighbours, pixels of the cell] weights.

Axes: B images, K maps, (gh, gw) coarse grid, (H, W) pixels, S = (2 * radius + 1)^2 neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine._checks import check_count, check_finite, check_float, check_number, check_shape

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
        sigma_spatial: spatial spread in cells, > 0.
        sigma_range: colour spread, > 0; RGB in [0, 1], Euclidean over the channels.
        radius: reach in cells, >= 0.

    Returns:
        [B, K, H, W] in `low`'s dtype. No gradient.

    Raises:
        TypeError: if `low` or `image` is not a tensor of the dtypes above.
        ValueError: on shapes that do not fit, values that are not finite or out of range.
    """
    sizes = check_shape("low", low, "B K gh gw")
    check_float("low", low)
    check_finite("low", low)
    guide = as_guide(image, B=sizes["B"])
    check_number("sigma_spatial", sigma_spatial, 0, open_ends=True)
    check_number("sigma_range", sigma_range, 0, open_ends=True)
    check_count("radius", radius, 0)
    with torch.no_grad(), torch.autocast(low.device.type, enabled=False):
        out = low.new_empty(*low.shape[:2], *image.shape[2:])
        guide = guide.to(low.device)
        for band in upsample_bands(low.float(), guide, sigma_spatial, sigma_range, radius):
            out[:, :, band.rows] = band.means()
    return out


def as_guide(image: Tensor, **known: int) -> Tensor:
    """Check an image [B, 3, H, W], uint8 or float in [0, 1], and return it as float32.

    Raises:
        TypeError: if it is neither uint8 nor floating-point.
        ValueError: on a wrong shape or values out of range.
    """
    known["C"] = 3
    check_shape("image", image, "B C H W", **known)
    if image.dtype == torch.uint8:
        if int(image.max()) == 1:
            raise ValueError(
                "`image` must be uint8 in [0, 255] or float in [0, 1]; got uint8 with values 0 and "
                "1 only, like a float image cast to uint8. Multiply by 255 before the cast."
            )
        return image.float() / 255
    if not image.is_floating_point():
        raise TypeError(f"`image` must be uint8 or floating-point; got {image.dtype}.")
    low, high = (float(x) for x in image.aminmax())
    # bfloat16 and float16 cannot hold every value, but they do hold 0 and 1.
    if not (low >= 0 and high <= 1):
        fix = "divide by 255" if low >= 0 and high > 1 else "undo the model's normalisation"
        raise ValueError(
            f"`image` must be finite and in [0, 1] when floating-point; got values from {low:.4g} "
            f"to {high:.4g}. If it is 8-bit or normalised, {fix} first."
        )
    return image.float()


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """Some rows of cells, upsampled, still ordered by cell.

    Attributes:
        rows: the pixel rows [start, stop) that the band covers.
        sums: [B, n, gw, K + 1, P] weighted sums of the K maps, last the sum of the weights, at
            the P places of each cell.
        place_y: [rows] where each pixel row stands among the n * Py places of the band.
        place_x: [W] where each pixel column stands among the gw * Px places.
        places: (Py, Px), P = Py * Px.
    """

    rows: slice
    sums: Tensor
    place_y: Tensor
    place_x: Tensor
    places: tuple[int, int]

    def labels(self) -> Tensor:
        """Return the index of the largest map at every pixel, [B, rows, W] int64."""
        # The sums share a positive divisor at each pixel, which changes no order.
        sums = self.sums[:, :, :, :-1]  # [B, n, gw, K, P]
        # argmax over any axis but the last is not vectorised on a CPU: these three passes give
        # the same first index of the largest in a quarter of its time.
        index = torch.arange(sums.shape[3], device=sums.device, dtype=sums.dtype)[:, None]
        first = torch.where(sums == sums.amax(dim=3, keepdim=True), index, torch.inf)
        return self._to_pixels(first.amin(dim=3, keepdim=True))[:, 0].long()

    def means(self) -> Tensor:
        """Return the upsampled maps, [B, K, rows, W] float32."""
        return self._to_pixels(self.sums[:, :, :, :-1] / self.sums[:, :, :, -1:])

    def _to_pixels(self, x: Tensor) -> Tensor:
        B, n, gw, K, _ = x.shape
        x = x.reshape(B, n, gw, K, *self.places).permute(0, 3, 1, 4, 2, 5)  # [B, K, n, Py, gw, Px]
        x = x.flatten(4).flatten(2, 3)  # [B, K, n * Py, gw * Px]
        return x[:, :, self.place_y][..., self.place_x]


def upsample_bands(
    low: Tensor, guide: Tensor, sigma_spatial: float, sigma_range: float, radius: int
) -> Iterator[Band]:
    """Upsample one band of pixel rows after the other, so that [B, K, H, W] need not be held.

    Args:
        low: [B, K, gh, gw] float32.
        guide: [B, 3, H, W] float32 in [0, 1].
        sigma_spatial: spatial spread in cells, > 0.
        sigma_range: colour spread, > 0.
        radius: reach in cells, >= 0.
    """
    B, _, gh, gw = low.shape
    y = _axis(guide.shape[2], gh, sigma_spatial, radius, low.device)
    x = _axis(guide.shape[3], gw, sigma_spatial, radius, low.device)
    colours = F.adaptive_avg_pool2d(guide, (gh, gw))  # [B, 3, gh, gw]
    values = torch.cat([low, torch.ones_like(low[:, :1])], dim=1)  # the ones sum the weights
    columns = guide[..., x.pixels]  # [B, 3, H, gw, Px]
    places = (y.pixels.shape[1], x.pixels.shape[1])

    per_row = B * gw * x.cells.shape[1] ** 2 * places[0] * places[1]
    step = max(1, (CPU_BAND if low.device.type == "cpu" else GPU_BAND) // per_row)
    for top in range(0, gh, step):
        cells = slice(top, min(top + step, gh))
        rows = slice(y.edges[cells.start], y.edges[cells.stop])
        if rows.start == rows.stop:  # fewer pixels than cells: nobody is nearest to these
            continue
        pixels = columns[:, :, y.pixels[cells]].transpose(3, 4).flatten(4)  # [B, 3, n, gw, P]
        weights = _range_weights(pixels, _neighbours(colours, y, x, cells), sigma_range)
        weights *= _spatial_weights(y, x, cells)
        sums = _neighbours(values, y, x, cells).movedim(1, 3) @ weights  # [B, n, gw, K + 1, P]
        yield Band(rows, sums, y.place[rows] - top * places[0], x.place, places)


@dataclass(frozen=True, slots=True, eq=False)
class _Axis:
    """How the pixels of one axis fall into cells, padded to the P pixels of the fullest cell.

    Attributes:
        pixels: [g, P] pixel at each place; places past a cell's own pixels repeat others.
        place: [size] where each pixel stands in a flattened [g * P].
        edges: g + 1 numbers; cell c owns the pixels [edges[c], edges[c + 1]).
        weights: [g, S1, P] spatial weight of each of the S1 = 2 * radius + 1 neighbours, or
            [1, S1, P] where they are the same in every cell.
        cells: [g, S1] neighbour cells, clamped at the border.
    """

    pixels: Tensor
    place: Tensor
    edges: list[int]
    weights: Tensor
    cells: Tensor


def _axis(size: int, g: int, sigma: float, radius: int, device: torch.device) -> _Axis:
    pixel = torch.arange(size)
    # Nearest cell floor((p + 0.5) g / size), in whole numbers so that no rounding moves it.
    nearest = (2 * pixel + 1) * g // (2 * size)
    counts = torch.bincount(nearest, minlength=g)
    edges = F.pad(counts.cumsum(0), (1, 0))  # [g + 1]
    place_in_cell = torch.arange(int(counts.max()))
    pixels = (edges[:-1, None] + place_in_cell).clamp_max(size - 1)  # [g, P]
    cell = torch.arange(g)
    offset = torch.arange(-radius, radius + 1)
    position = (pixels.double() + 0.5) * g / size - 0.5 - cell[:, None]  # [g, P], in cells
    square = (position[:, None, :] - offset[:, None]) ** 2  # [g, S1, P]
    # A factor per pixel cancels in the mean; this one keeps a small sigma from underflowing.
    square -= square.amin(dim=1, keepdim=True)
    if size % g == 0:
        square = square[:1]
    return _Axis(
        pixels=pixels.to(device),
        place=(nearest * len(place_in_cell) + pixel - edges[nearest]).to(device),
        edges=edges.tolist(),
        weights=(square / (-2 * sigma**2)).exp().float().to(device),
        cells=(cell[:, None] + offset).clamp(0, g - 1).to(device),
    )


def _neighbours(maps: Tensor, y: _Axis, x: _Axis, cells: slice) -> Tensor:
    """Gather [B, K, gh, gw] `maps` around the band's cells: [B, K, n, gw, S]."""
    around = maps[:, :, y.cells[cells]][..., x.cells]  # [B, K, n, S1, gw, S1]
    return around.transpose(3, 4).flatten(4)


def _spatial_weights(y: _Axis, x: _Axis, cells: slice) -> Tensor:
    """Multiply the two axes' weights: [n, gw, S, P], or [1, 1, S, P] where all cells agree."""
    own = y.weights if len(y.weights) == 1 else y.weights[cells]  # [n, S1, Py]
    both = own[:, None, :, None, :, None] * x.weights[:, None, :, None, :]
    return both.flatten(4).flatten(2, 3)


def _range_weights(pixels: Tensor, colours: Tensor, sigma: float) -> Tensor:
    """Weigh neighbours by colour, with the floor.

    Args:
        pixels: [B, 3, n, gw, P] colours of the pixels of each cell.
        colours: [B, 3, n, gw, S] colours of the neighbours of each cell.
        sigma: colour spread.

    Returns:
        [B, n, gw, S, P].
    """
    scale = (2 * sigma**2) ** -0.5
    pixels, colours = pixels * scale, colours * scale
    square: Tensor | float = 0.0
    for channel in range(3):
        step = pixels[:, channel, :, :, None, :] - colours[:, channel, :, :, :, None]
        square = square + step.square_()
    return torch.as_tensor(square).neg_().exp_().add_(SPATIAL_FLOOR)
