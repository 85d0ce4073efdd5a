"""The fast guided filter, as an upsampler: within a window, a map is a linear function of colour.

Sources: K. He, J. Sun and X. Tang, "Guided Image Filtering", TPAMI 2013, section 3.5 (colour
guides); K. He and J. Sun, "Fast Guided Filter", arXiv 1505.00996, 2015, Algorithm 2. There the
guide is subsampled; here it is averaged over the cells of the coarse grid, where the maps already
are, and windows are cut at its border.

Axes: B images, K maps, (gh, gw) coarse grid, (H, W) pixels.
"""

import torch
from torch import Tensor

from ovss_refine.checks import check_count, check_number
from ovss_refine.config import MOST_RADIUS
from ovss_refine.tensors.cells import cell_means, resize
from ovss_refine.upsamplers.rows import Rows, all_rows

RADIUS, EPS = 1, 1e-4
# The inverse of a covariance in [0, 1]^3 times this is still well within float64.
LEAST_EPS = 1e-8


def guided_upsample(low: Tensor, image: Tensor, radius: int = RADIUS, eps: float = EPS) -> Tensor:
    """Upsample coarse maps to the image's size by a guided filter.

    In every window of (2 * radius + 1)^2 cells a map is fitted by a linear function of colour; the
    functions of the windows around a pixel, averaged and interpolated, are applied to its colour.
    Constants are preserved; the output may leave the input's range.

    Args:
        low: [B, K, gh, gw] maps of any range, floating-point, finite.
        image: [B, 3, H, W] the same images; float in [0, 1] or uint8.
        radius: of a window, in cells, in [0, 32].
        eps: variance of colour below which a window counts as flat, RGB in [0, 1]; in [1e-8, 1e6].

    Returns:
        [B, K, H, W] in `low`'s dtype. No gradient.

    Raises:
        TypeError: if `low` or `image` is not a tensor of the dtypes above, or on an option of the
            wrong kind.
        ValueError: on shapes that do not fit, values that are not finite or out of range.

    Example:
        >>> import torch
        >>> guided_upsample(torch.rand(1, 2, 4, 4), torch.rand(1, 3, 9, 16)).shape
        torch.Size([1, 2, 9, 16])
    """
    radius = check_count("radius", radius, 0, MOST_RADIUS)
    eps = check_number("eps", eps, LEAST_EPS, 1e6)
    return all_rows(lambda low, guide: guided_rows(low, guide, radius, eps), low, image)


def guided_rows(low: Tensor, guide: Tensor, radius: int = RADIUS, eps: float = EPS) -> Rows:
    """Give rows of `guided_upsample`; takes float32."""
    H, W = guide.shape[2:]
    *slopes, offsets = _linear_functions(low.double(), guide, radius, eps)

    def rows(wanted: slice) -> Tensor:
        out = resize(offsets, H, W, wanted)
        for channel, slope in enumerate(slopes):
            out.addcmul_(resize(slope, H, W, wanted), guide[:, channel, None, wanted])
        return out

    return rows


def _linear_functions(low: Tensor, guide: Tensor, radius: int, eps: float) -> tuple[Tensor, ...]:
    """Fit maps [B, K, gh, gw]: slopes for red, green and blue, and offsets, each of that shape.

    In float64, as covariances are small differences of products; float32 is returned.
    """
    gh, gw = low.shape[2:]
    down, across = (_box(g, radius, low) for g in (gh, gw))

    def mean(x: Tensor) -> Tensor:
        return down @ x @ across.mT

    colour = cell_means(guide, gh, gw).to(low.dtype)  # [B, 3, gh, gw]
    m_colour, m_low = mean(colour), mean(low)
    products = colour[:, :, None] * colour[:, None]  # [B, 3, 3, gh, gw]
    spread = mean(products) - m_colour[:, :, None] * m_colour[:, None]
    joint = mean(colour[:, :, None] * low[:, None]) - m_colour[:, :, None] * m_low[:, None]
    flat = eps * torch.eye(3, dtype=low.dtype, device=low.device)[:, :, None, None]
    slopes = torch.einsum("bijyx,bjkyx->bikyx", _inverse(spread + flat), joint)  # [B, 3, K, gh, gw]
    offsets = m_low - (slopes * m_colour[:, :, None]).sum(dim=1)
    return mean(torch.cat([slopes, offsets[:, None]], dim=1)).float().unbind(dim=1)


def _box(g: int, radius: int, like: Tensor) -> Tensor:
    """Return the weights of the cells of an axis in the means of windows, [g, g]."""
    cell = torch.arange(g, device="cpu")
    inside = ((cell[:, None] - cell).abs() <= radius).to(like)
    return inside / inside.sum(dim=1, keepdim=True)


def _inverse(matrices: Tensor) -> Tensor:
    """Invert symmetric [B, 3, 3, gh, gw] by cofactors, which a graph can do as well."""
    first, second, third = matrices.unbind(dim=1)  # [B, 3, gh, gw] each
    pairs = ((second, third), (third, first), (first, second))
    cofactors = torch.stack([torch.linalg.cross(a, b, dim=1) for a, b in pairs], dim=1)
    return cofactors / (first * cofactors[:, 0]).sum(dim=1)[:, None, None]
