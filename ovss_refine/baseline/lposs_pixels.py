"""The second step of LPOSS+, propagation over pixels, as an upsampler of any coarse maps.

Source: V. Stojnić et al., CVPR 2025, as in `lposs`.

Axes: B images, K maps, (gh, gw) coarse grid, (H, W) pixels.
"""

import torch
from torch import Tensor

from ovss_refine.baseline.label_propagation import propagate
from ovss_refine.baseline.lposs import DOUBLE, Lposs
from ovss_refine.baseline.pixel_graph import PixelGraph
from ovss_refine.baseline.resize import resize, resized_size
from ovss_refine.checks import check_shape, check_values
from ovss_refine.images.convert import as_guide

PUBLISHED, SHORT_SIDE = Lposs(pixels=True), 448


def propagation_upsample(low: Tensor, image: Tensor) -> Tensor:
    """Upsample coarse maps to the image's size as LPOSS+ does, with its published options.

    Bilinearly to a short side of 448, propagated there along similar colours, and bilinearly to the
    image's size. An upsampler: `Refiner(upsampler=propagation_upsample)`. Slow: on a CPU a quarter
    of a second for each map. Values may grow by up to 20 times; only their order means anything.

    Args:
        low: [B, K, gh, gw] maps of any range, floating-point, finite.
        image: [B, 3, H, W] images, float in [0, 1] or uint8.

    Returns:
        [B, K, H, W] in `low`'s dtype, computed in float64. No gradient.

    Raises:
        TypeError: if `low` or `image` is not a tensor of the dtypes above.
        ValueError: on shapes that do not fit, values that are not finite or out of range.

    Example:
        >>> import torch
        >>> propagation_upsample(torch.rand(1, 1, 2, 3), torch.rand(1, 3, 6, 9)).shape
        torch.Size([1, 1, 6, 9])
    """
    sizes = check_shape("low", low, "B K gh gw")
    check_values("low", low)
    guide = as_guide(image, B=sizes["B"])
    device = low.device if low.device.type in DOUBLE else torch.device("cpu")
    H, W = guide.shape[2:]
    work = resized_size(H, W, SHORT_SIDE)
    found = []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for maps, rgb in zip(low, guide, strict=True):
            colours, y = (resize(x[None].to(device, torch.float64), work)[0] for x in (rgb, maps))
            graph = PixelGraph(colours, PUBLISHED.pixel_window, PUBLISHED.tau)
            x = propagate(y, graph.times, PUBLISHED.alpha, PUBLISHED.steps)
            found.append(resize(x[None], (H, W)))
        return torch.cat(found).to(low)
