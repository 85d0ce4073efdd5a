"""Resizing like OpenCV: its own output, and properties of any interpolation."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ovss_refine_adapters.backbones.resize import resize_8bit

# cv2.resize(x, (w, h), interpolation=cv2.INTER_LINEAR)[..., 0] of OpenCV 5.0.0, for
# x = np.random.default_rng(7).integers(0, 256, (4, 5, 3), dtype=np.uint8).
OPENCV = {
    (3, 7): [
        [154, 182, 150, 19, 76, 139, 192],
        [198, 111, 67, 120, 85, 140, 232],
        [69, 91, 139, 219, 125, 70, 47],
    ],
    # The first and the last row depend on how the border is treated.
    (7, 7): [
        [139, 197, 174, 6, 77, 141, 188],
        [171, 164, 123, 34, 75, 137, 197],
        [222, 110, 42, 80, 72, 130, 211],
        [198, 111, 67, 120, 85, 140, 232],
        [159, 115, 105, 159, 100, 144, 232],
        [92, 97, 130, 204, 118, 88, 93],
        [50, 85, 146, 233, 130, 53, 6],
    ],
    (9, 3): [
        [173, 6, 161],
        [170, 19, 161],
        [162, 55, 162],
        [155, 90, 165],
        [147, 120, 178],
        [139, 149, 190],
        [112, 184, 130],
        [82, 219, 60],
        [71, 233, 34],
    ],
}


def levels(images):
    return (images * 255).round().long()


@pytest.mark.parametrize("size", OPENCV)
def test_equals_opencv(size):
    x = np.random.default_rng(7).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    images = torch.from_numpy(x).permute(2, 0, 1)[None] / 255
    assert levels(resize_8bit(images, size))[0, 0].tolist() == OPENCV[size]


def test_equals_interpolation_within_a_grey_level():
    images = levels(torch.rand(2, 3, 40, 61)) / 255
    for size in [(20, 30), (97, 13), (80, 122)]:
        wanted = torch.nn.functional.interpolate(images, size, mode="bilinear")
        assert float((resize_8bit(images, size) - wanted).abs().max()) * 255 < 1.01


def test_constants_and_images_of_that_size_are_unchanged():
    for level in (0, 1, 127, 255):
        images = torch.full((1, 3, 7, 9), level / 255)
        assert set(levels(resize_8bit(images, (23, 4))).unique().tolist()) == {level}
    images = levels(torch.rand(1, 3, 7, 9)) / 255
    assert_close(resize_8bit(images, (7, 9)), images)


def test_other_values_are_rounded_first():
    images = torch.rand(1, 3, 7, 9)
    assert_close(resize_8bit(images, (5, 5)), resize_8bit(levels(images) / 255, (5, 5)))
