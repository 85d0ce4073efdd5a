"""A segmenter without models: classes are grades of red, without refinement of green."""

import numpy as np
import torch

from ovss_refine.segmentation import Segmentation


def grades(channel, M):
    """Classes of a [H, W] uint8 channel: M equal steps of brightness."""
    return channel.astype(np.int64) * M // 256


class FakeSegmenter:
    """Does what `Segmenter` is asked to do.

    Attributes:
        calls: for each call, the shapes of its images.
        events: "load" and "segment", in order.
    """

    def __init__(self, fails=lambda image: None, sizes=None):
        self.fails, self.sizes = fails, sizes or {}
        self.calls, self.events = [], []

    def to_load(self):
        return {} if "load" in self.events else self.sizes

    def prepare(self, labels=None, on_stage=None):
        self.events.append("load")

    def __call__(self, images, labels, *, baseline=False):
        self.calls.append([image.shape for image in images])
        self.events.append("segment")
        for image in images:
            if error := self.fails(image):
                raise error
        return [self.segment(image, labels.names, baseline) for image in images]

    def segment(self, image, names, baseline):
        M = len(names)
        return Segmentation(
            image=image,
            names=names,
            labels=torch.from_numpy(grades(image[..., 0], M)),
            discrepancy=torch.arange(4.0 * M).reshape(M, 2, 2),
            kept=torch.ones(M, dtype=torch.bool),
            baseline=torch.from_numpy(grades(image[..., 1], M)) if baseline else None,
            seconds={"logits": 1.0, "refinement": 0.25},
        )
