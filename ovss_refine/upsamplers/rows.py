"""What upsamplers of ours share: some rows of pixels at a time, or all of them, checked.

Axes: B images, K maps, (gh, gw) coarse grid, (H, W) pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ovss_refine.checks import check_shape, check_values
from ovss_refine.images.convert import as_guide

# Gives the rows of pixels that it is asked for, [B, K, rows, W] float32.
Rows = Callable[[slice], Tensor]


def all_rows(prepare: Callable[[Tensor, Tensor], Rows], low: Tensor, image: Tensor) -> Tensor:
    """Check maps and images, and upsample: [B, K, H, W] in the dtype of the maps.

    Args:
        prepare: takes float32 maps and images, and gives their rows.
        low: [B, K, gh, gw] maps, floating-point, finite.
        image: [B, 3, H, W] images, float in [0, 1] or uint8.

    Raises:
        TypeError: if `low` or `image` is not a tensor of the dtypes above.
        ValueError: on shapes that do not fit, values that are not finite or out of range.
    """
    sizes = check_shape("low", low, "B K gh gw")
    check_values("low", low)
    guide = as_guide(image, B=sizes["B"])
    with torch.no_grad(), torch.autocast(low.device.type, enabled=False):
        return prepare(low.float(), guide.to(low.device))(slice(None)).to(low.dtype)
