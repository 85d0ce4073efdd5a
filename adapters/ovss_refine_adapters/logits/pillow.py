"""Images prepared as by Pillow, for methods whose released code is not in MMSegmentation.

Axes: B images, (H, W) pixels before, (H', W') after.
"""

from typing import ClassVar

from torch import Tensor

from ovss_refine.baseline.resize import resized_size
from ovss_refine_adapters.backbones.resize import resize_like_pillow
from ovss_refine_adapters.logits.dense import DenseClip


class PillowClip(DenseClip):
    """A source whose released code prepares images by Pillow.

    With `faithful` images are resized in 8 bits by Pillow's bicubic filter, to within one grey
    level, else as `DenseClip` does. Mean and deviation are never rounded.
    """

    in_mmseg = False
    # Whether `faithful` resizes to `short_side` x `short_side`, whatever the image's shape.
    square: ClassVar[bool] = True

    def resized(self, images: Tensor) -> Tensor:
        """Resize [B, 3, H, W] images in [0, 1] to the working size [B, 3, H', W']."""
        side = self.options.short_side
        if side is None or not self.options.faithful:
            return super().resized(images)
        H, W = images.shape[-2:]
        size = (side, side) if self.square else resized_size(H, W, side)
        return resize_like_pillow((images.float() * 255).round(), size) / 255
