"""Bilinear upsampling: what everybody does, without a look at the image."""

from torch import Tensor

from ovss_refine.tensors.cells import resize
from ovss_refine.upsamplers.rows import Rows, all_rows


def bilinear_upsample(low: Tensor, image: Tensor) -> Tensor:
    """Upsample coarse maps to the image's size bilinearly, with half-pixel centres.

    Constants are preserved and the output stays within the input's range. Where the image has
    fewer pixels than the grid has cells, they are averaged.

    Args:
        low: [B, K, gh, gw] maps of any range, floating-point, finite.
        image: [B, 3, H, W] images, float in [0, 1] or uint8; only their size matters.

    Returns:
        [B, K, H, W] in `low`'s dtype. No gradient.

    Raises:
        TypeError: if `low` or `image` is not a tensor of the dtypes above.
        ValueError: on shapes that do not fit, values that are not finite or out of range.

    Example:
        >>> import torch
        >>> low = torch.tensor([[[[0.0, 1.0]]]])
        >>> bilinear_upsample(low, torch.zeros(1, 3, 1, 4)).tolist()
        [[[[0.0, 0.25, 0.75, 1.0]]]]
    """
    return all_rows(bilinear_rows, low, image)


def bilinear_rows(low: Tensor, guide: Tensor) -> Rows:
    """Give rows of `bilinear_upsample`; takes float32."""
    H, W = guide.shape[2:]
    return lambda rows: resize(low, H, W, rows)
