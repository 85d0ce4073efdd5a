"""The graph of pixels that LPOSS+ propagates over: a window of neighbours, by their colours.

Source: V. Stojnić et al., CVPR 2025, as in `label_propagation`. Everything is float64: a colour's
distance is divided by a `tau` of 0.01.

Axes: K maps, (H, W) pixels.
"""

import torch
from torch import Tensor

# Linear sRGB to CIE XYZ, a row for each of X, Y, Z, and the white point D65.
XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)
# What L, a and b are divided by before colours are compared.
LAB_RANGE = (100.0, 128.0, 128.0)


def lab(image: Tensor) -> Tensor:
    """Convert [3, H, W] sRGB in [0, 1] to CIE L, a, b: L in [0, 100], a and b about [-128, 128]."""
    linear = torch.where(image > 0.04045, ((image + 0.055) / 1.055) ** 2.4, image / 12.92)
    to_xyz, white = image.new_tensor(XYZ), image.new_tensor(WHITE)
    t = torch.einsum("ij,jhw->ihw", to_xyz / white[:, None], linear)
    x, y, z = torch.where(t > 0.008856, t ** (1 / 3), 7.787 * t + 4 / 29)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


class PixelGraph:
    """The weights of pixels with those in a window around them: exp(-colour distance / tau).

    Colours are L / 100, a / 128 and b / 128; windows end at the border. A pair of pixels is held
    once: (window^2 - 1) / 2 * H * W numbers and no indices.

    Args:
        image: [3, H, W] float64 RGB in [0, 1].
        window: side of the window in pixels, >= 1; an even one counts as the next odd one.
        tau: the distance at which a weight has fallen to 1 / e, > 0.
    """

    def __init__(self, image: Tensor, window: int, tau: float) -> None:
        """Weigh all pairs."""
        colours = lab(image) / image.new_tensor(LAB_RANGE)[:, None, None]
        self._pairs = []
        for there in _offsets(window // 2, *image.shape[1:]):
            a, b = _overlap(*there)
            # In place, because `norm` takes twenty times as long.
            apart = (colours[(..., *a)] - colours[(..., *b)]).square_().sum(dim=0).sqrt_()
            self._pairs.append((a, b, (apart / -tau).exp_()))

    def times(self, x: Tensor) -> Tensor:
        """Multiply [K, H, W] maps with the weights: what each pixel's neighbours sum to."""
        out = torch.zeros_like(x)
        for a, b, weight in self._pairs:
            out[(..., *a)].addcmul_(weight, x[(..., *b)])
            out[(..., *b)].addcmul_(weight, x[(..., *a)])
        return out


def _offsets(reach: int, H: int, W: int) -> list[tuple[int, int]]:
    """List the offsets (down, right) in the half window after the centre that fit in the image."""
    rows, columns = range(min(reach, H - 1) + 1), min(reach, W - 1)
    return [(y, x) for y in rows for x in range(-columns, columns + 1) if y or x > 0]


def _overlap(y: int, x: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Select the pixels with a neighbour at offset (y >= 0, x), and these neighbours."""
    first, second = slice(0, -y or None), slice(y, None)
    left, right = slice(0, -abs(x) or None), slice(abs(x), None)
    return ((first, left), (second, right)) if x >= 0 else ((first, right), (second, left))
