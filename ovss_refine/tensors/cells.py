"""How pixels fall into the cells of a coarse grid, and how near they are to the cells around.

Axes: B images, K maps, (gh, gw) coarse grid, (H, W) pixels, S1 = 2 * radius + 1 neighbours along
an axis, S = S1^2 of them; P places of a cell: as many as the fullest cell has pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ovss_refine.tensors.tracing import exporting


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """How the pixels of one axis fall into cells, padded to the P pixels of the fullest cell.

    Attributes:
        pixels: [g, P] pixel at each place; places past a cell's own pixels repeat others.
        place: [size] where each pixel stands in a flattened [g * P].
        even: whether every cell has P pixels: `pixels` and `place` then just count up.
        edges: g + 1 numbers; cell c owns the pixels [edges[c], edges[c + 1]). Empty in a graph.
        weights: [g, S1, P] spatial weight of each neighbour, or [1, S1, P] where they are the
            same in every cell.
        cells: [g, S1] neighbour cells, clamped at the border.
    """

    pixels: Tensor
    place: Tensor
    even: bool
    edges: list[int]
    weights: Tensor
    cells: Tensor


def axis(
    size: int, g: int, sigma: float, radius: int, device: torch.device, pieces: int = 1
) -> Axis:
    """Lay `size` pixels out over `g` cells.

    Args:
        size: pixels, any number >= 1.
        g: cells, any number >= 1.
        sigma: spatial spread in cells, > 0.
        radius: reach in cells, >= 0.
        device: where the result lies.
        pieces: divides each cell into that many, which then count as cells, with its neighbours.
    """
    pixel = torch.arange(size, device="cpu")
    # Nearest cell floor((p + 0.5) g / size), in whole numbers so that no rounding moves it; the
    # first pixel of a cell is the inverse, and the fullest cell has size / g pixels, rounded up.
    nearest = (2 * pixel + 1) * g // (2 * size)
    cell = torch.arange(g, device="cpu")
    starts = (2 * size * cell + g - 1) // (2 * g)
    P = (size + g * pieces - 1) // (g * pieces) * pieces
    pixels = (starts[:, None] + torch.arange(P, device="cpu")).clamp_max(size - 1)  # [g, P]
    place = nearest * P + pixel - starts[nearest]
    offset = torch.arange(-radius, radius + 1, device="cpu")
    position = (pixels.double() + 0.5) * g / size - 0.5 - cell[:, None]  # [g, P], in cells
    square = (position[:, None, :] - offset[:, None]) ** 2  # [g, S1, P]
    # A factor per pixel cancels in the mean; this one keeps a small sigma from underflowing.
    square -= square.amin(dim=1, keepdim=True)
    # A graph is for all sizes: it takes every cell for one of its own, and counts none out.
    even = not exporting() and size % g == 0 and pieces == 1
    if even:
        square = square[:1]
    if pieces > 1:
        ends = torch.cat([starts[1:], starts.new_tensor([size])])
        pixels = pixels.reshape(g * pieces, -1)
        square = square.view(g, -1, pieces, P // pieces).transpose(1, 2).flatten(0, 1)
        starts = starts[:, None] + torch.arange(pieces, device="cpu") * (P // pieces)
        starts = torch.minimum(starts, ends[:, None]).flatten()
        cell = cell.repeat_interleave(pieces)
    return Axis(
        pixels=pixels.to(device),
        place=place.to(device),
        even=even,
        edges=[] if exporting() else [*starts.tolist(), size],
        weights=(square / (-2 * sigma**2)).exp().float().to(device),
        cells=(cell[:, None] + offset).clamp(0, g - 1).to(device),
    )


def by_cell(image: Tensor, y: Axis, x: Axis, cells: slice) -> Tensor:
    """Order the pixels of some rows of cells by cell.

    Args:
        image: [B, K, H, gw * Px], its columns already at their places.
        y: the axis of the rows.
        x: the axis of the columns.
        cells: n rows of cells.

    Returns:
        [B, K, n, gw, P].
    """
    if y.even:
        rows = image[:, :, y.edges[cells.start] : y.edges[cells.stop]]
    else:
        rows = image.index_select(2, y.pixels[cells].flatten())
    B, K = image.shape[:2]
    Py, (gw, Px) = y.pixels.shape[1], x.pixels.shape
    return rows.reshape(B, K, -1, Py, gw, Px).transpose(3, 4).flatten(4)


def neighbour_index(y: Axis, x: Axis, cells: slice) -> Tensor:
    """Number the cells around n rows of cells: [n, gw, S] in [0, gh * gw)."""
    gw = x.cells.shape[0]
    rows, columns = y.cells[cells, None, :, None], x.cells[:, None, :]
    return (rows * gw + columns).flatten(2)


def neighbours(maps: Tensor, y: Axis, x: Axis, cells: slice) -> Tensor:
    """Gather maps [B, gh * gw, K] around n rows of cells: [B, n, gw, S, K].

    The maps come last because whole rows of memory are then copied, several times faster.
    """
    gw, S1 = x.cells.shape
    index = neighbour_index(y, x, cells).flatten()  # [n * gw * S]
    return maps.index_select(1, index).view(maps.shape[0], -1, gw, S1 * S1, maps.shape[2])


def spatial_axes(y: Axis, x: Axis, cells: slice) -> tuple[Tensor, Tensor]:
    """Spread the axes' weights over a cell: [n, S1, P], [gw, S1, P], or 1 where all agree."""
    own = y.weights if y.even else y.weights[cells]  # [n, S1, Py]
    Py, Px = own.shape[2], x.weights.shape[2]
    down = own[:, :, :, None].expand(-1, -1, -1, Px).flatten(2)  # [n, S1, P]
    return down, x.weights[:, :, None].expand(-1, -1, Py, -1).flatten(2)  # [gw, S1, P]


def spatial_weights(y: Axis, x: Axis, cells: slice) -> Tensor:
    """Multiply the two axes' weights: [n, gw, S, P], or [1, 1, S, P] where all cells agree."""
    down, across = spatial_axes(y, x, cells)
    return (down[:, None, :, None] * across[:, None]).flatten(2, 3)


def cell_means(image: Tensor, gh: int, gw: int) -> Tensor:
    """Average each cell of [B, K, H, W]: [B, K, gh, gw], what adaptive average pooling gives.

    As two matrix products, which a graph can do for any size; the pooling it cannot.
    """
    down, across = (
        _shares(size, g, image) for size, g in zip(image.shape[2:], (gh, gw), strict=True)
    )
    return down @ image @ across.mT


def _shares(size: int, g: int, like: Tensor) -> Tensor:
    """Return the share of each pixel in each cell's mean, [g, size]."""
    pixel, cell = torch.arange(size, device="cpu"), torch.arange(g, device="cpu")[:, None]
    # From the pixel that the cell begins in to the one that it ends in, both included.
    inside = (pixel >= cell * size // g) & (pixel < ((cell + 1) * size + g - 1) // g)
    inside = inside.to(like)
    return inside / inside.sum(dim=1, keepdim=True)


def resize(logits: Tensor, gh: int, gw: int, rows: slice = slice(None)) -> Tensor:
    """Resize [B, K, h, w] to [B, K, gh, gw], or to some rows of that, by matrix products.

    Bilinear, and antialiased: averages where the new grid is coarser. torch's own function gives
    wrong values if gw is 1 and gh is not (2.14), and ONNX's disagrees with it there.
    """
    down, across = (
        _hats(size, g, logits) for size, g in zip(logits.shape[2:], (gh, gw), strict=True)
    )
    return down[rows] @ logits @ across.mT


def _hats(size: int, g: int, like: Tensor) -> Tensor:
    """Return the weights of `size` old positions in `g` new ones, [g, size]."""
    step = torch.ones((), dtype=like.dtype, device="cpu") * size / g  # a tensor: sizes are symbols
    position = (torch.arange(g, dtype=like.dtype, device="cpu") + 0.5) * step - 0.5
    distance = (position[:, None] - torch.arange(size, device="cpu")).abs()
    hats = (1 - distance / step.clamp_min(1)).clamp_min(0)
    return (hats / hats.sum(dim=1, keepdim=True)).to(like)
