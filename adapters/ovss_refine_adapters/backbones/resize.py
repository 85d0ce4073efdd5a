"""Resizing of 8-bit images as other libraries do it: OpenCV (bilinear) and Pillow (bicubic).

Bilinear: most published data pipelines resize with `cv2.resize(..., INTER_LINEAR)`. Its weights are
multiples of 1/2048 and its products are truncated twice, so that a tenth of its values differ from
rounded exact interpolation by one grey level. Bit-identical to OpenCV 5.0.0.

Axes: B images, (H, W) pixels before, (h, w) after.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Weights have 11 bits. Sums along rows, of 8 + 11 bits, drop 4, so that the columns' products have
# 16-bit operands; those drop 16; the 2 bits that remain are rounded away.
WEIGHT_BITS = 11


def resize_8bit(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [B, 3, H, W] images in [0, 1] like OpenCV to float32 multiples of 1/255.

    They are rounded to multiples of 1/255 first; `size` is (h, w).
    """
    levels = (images.float() * 255).round().long()
    (H, W), (h, w), device = images.shape[-2:], size, images.device
    left, right, near, far = _weights(W, w, device, clamp=True)
    rows = levels[..., left] * near + levels[..., right] * far  # [B, 3, H, w]
    rows = rows >> 4
    top, bottom, near, far = _weights(H, h, device, clamp=False)
    upper = (rows[..., top, :] * near[:, None]) >> 16
    lower = (rows[..., bottom, :] * far[:, None]) >> 16
    return ((upper + lower + 2) >> 2).float() / 255


def resize_like_pillow(levels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [B, 3, H, W] whole grey levels of 0 to 255, float32, like Pillow's bicubic filter.

    The filter widens as the image shrinks. Columns are resized first and rounded, then rows. Equal
    to within one level; `size` is (h, w).
    """
    for between in ((levels.shape[-2], size[1]), size):
        if levels.shape[-2:] != between:
            levels = F.interpolate(levels, between, mode="bicubic", antialias=True)
            levels = levels.round().clamp(0, 255)
    return levels


def _weights(
    before: int, after: int, device: torch.device, *, clamp: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the two neighbours of each new pixel along one axis and their weights, [after] int64.

    With `clamp`, one neighbour gets all the weight beyond the border. Otherwise both neighbours are
    the border pixel and share it, which rounds differently: OpenCV does so for rows.
    """
    # On the CPU, as not every device has float64.
    steps = torch.arange(after, dtype=torch.float64, device="cpu")
    position = ((steps + 0.5) * (1 / (after / before)) - 0.5).float().to(device)
    first = position.floor()
    fraction = position - first
    if clamp:
        fraction = fraction.masked_fill((first < 0) | (first >= before - 1), 0.0)
        first = first.clamp(0, before - 1)
    near = ((1 - fraction) * (1 << WEIGHT_BITS)).round().long()
    far = (fraction * (1 << WEIGHT_BITS)).round().long()
    one = first.long()
    return one.clamp(0, before - 1), (one + 1).clamp(0, before - 1), near, far
