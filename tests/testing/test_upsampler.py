"""The conformance suite of upsamplers: it accepts good ones and rejects every bad one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ovss_refine.testing import check_upsampler
from ovss_refine.upsamplers.names import BUILT_IN, load_upsampler


@pytest.mark.parametrize("name", BUILT_IN)
def test_accepts_those_of_the_library(name):
    before = torch.get_rng_state()
    check_upsampler(lambda: load_upsampler(name), constants=True)
    assert torch.equal(torch.get_rng_state(), before)


class Good:
    """Bilinear, and a little of what a convolution sees in the image; mixes the maps."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), nn.Tanh()).eval()

    def __call__(self, low, image):
        return self.result(F.interpolate(low, image.shape[2:], mode="bilinear"), image)

    def result(self, large, image):
        return large + 0.1 * self.net(image) * large.softmax(dim=1)


def test_accepts_a_model():
    check_upsampler(Good)


class NotATensor(Good):
    def result(self, large, image):
        return large.numpy()


class TheGridsSize(Good):
    def __call__(self, low, image):
        return low + 0 * self.net(image).mean()


class Transposed(Good):
    def result(self, large, image):
        return super().result(large, image).mT


class OneMap(Good):
    def result(self, large, image):
        return super().result(large, image).amax(dim=1, keepdim=True)


class Half(Good):
    def result(self, large, image):
        return super().result(large, image).half()


class NotFinite(Good):
    def result(self, large, image):
        return super().result(large, image).log()


class ChangesTheMaps(Good):
    def __call__(self, low, image):
        return super().__call__(low.sub_(low.mean()), image)


class ChangesTheImage(Good):
    def __call__(self, low, image):
        return super().__call__(low, image.sub_(0.5))


class Random(Good):
    def result(self, large, image):
        with torch.random.fork_rng(devices=[]):
            return super().result(large, image) + torch.rand(())


class Seeds(Good):
    def result(self, large, image):
        torch.manual_seed(0)
        return super().result(large, image)


class Counts(Good):
    calls = 0

    def result(self, large, image):
        self.calls += 1
        return super().result(large, image) + 0.01 * self.calls


class OverTheBatch(Good):
    def result(self, large, image):
        return super().result(large, image) - large.mean()


class TheSameMap(Good):
    def result(self, large, image):
        return self.net(image).expand_as(large)


class Trains(Good):
    def result(self, large, image):
        return super().result(large, image) if self.net.train() else None


class LeavesAHookOnError(Good):
    def result(self, large, image):
        hook = self.net.register_forward_hook(lambda *_: None)
        found = super().result(large, image)
        hook.remove()
        return found


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: 3, "must be a function; got int"),
        (NotATensor, "must be a tensor; got ndarray"),
        (TheGridsSize, r"of the image's size, \[2, 3, 64, 64\]; got \[2, 3, 8, 8\]"),
        (Transposed, r"of the image's size, \[2, 3, 48, 80\]; got \[2, 3, 80, 48\]"),
        (OneMap, r"one map for each of `low`.*; got \[2, 1, 64, 64\]"),
        (Half, "must be float32; got torch.float16"),
        (NotFinite, "must be finite"),
        (ChangesTheMaps, "`low` must not be changed"),
        (ChangesTheImage, "`image` must not be changed"),
        (Random, "must (be the same in a second call|not depend on random numbers)"),
        (Seeds, "leave gradient mode, .* alone"),
        (Counts, "must be the same in a second call"),
        (OverTheBatch, "must not depend on the rest of the batch"),
        (TheSameMap, "of different maps must differ"),
        (Trains, "must leave its model as it was found; after its use `training`"),
        (LeavesAHookOnError, "after an exception in the middle"),
    ],
)
def test_rejects(make, match):
    with pytest.raises(AssertionError, match=match):
        check_upsampler(make)


def test_constants_are_checked_on_request():
    with pytest.raises(AssertionError, match="must keep constant maps as they are"):
        check_upsampler(Good, constants=True)
