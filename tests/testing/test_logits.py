"""The conformance suite of logits sources: it accepts a good fake and rejects every bad one."""

import pytest
import torch
from torch import nn

from ovss_refine import Logits
from ovss_refine.testing.logits import check_logits_source


class Good:
    """Three prompts on a small convolution, kept from every outside influence."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()

    def logits(self, images):
        if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError("`images` must have shape [B, 3, H, W].")
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise ValueError("`images` must be in [0, 1].")
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return self.result(self.run(images.float()))

    def run(self, images):
        return self.net(images)

    def result(self, values):
        return Logits(values, 2.0, [0, 0, 1], ["a", "b"])


def test_accepts_a_good_source_and_leaves_random_numbers_alone():
    source = Good()
    before = torch.get_rng_state()
    check_logits_source(lambda: source)
    assert torch.equal(torch.get_rng_state(), before)


class NoMethod:
    pass


class BareTensor(Good):
    def result(self, values):
        return values


class Unbatched(Good):
    def result(self, values):
        return Logits(values[0])


class Transposed(Good):
    def result(self, values):
        return Logits(values.mT, 2.0)


class Half(Good):
    def result(self, values):
        return Logits(values.half())


class ScaleOfTheImage(Good):
    def result(self, values):
        return Logits(values, float(values.shape[-1]))


class NamesOfTheImage(Good):
    def result(self, values):
        return Logits(values, 1.0, None, [f"{i} of {values.shape[-1]}" for i in range(3)])


class BatchMean(Good):
    def result(self, values):
        return Logits(values - values.mean())


class Constant(Good):
    def result(self, values):
        return Logits(torch.arange(3.0).view(1, 3, 1, 1).expand_as(values))


class OnePrompt(Good):
    def result(self, values):
        return Logits(values[:, :1])


class EqualPrompts(Good):
    def result(self, values):
        return Logits(values[:, :1].expand(-1, 3, -1, -1))


class Noisy(Good):
    def result(self, values):
        return Logits(values + 0.1 * torch.rand_like(values))


class Counting(Good):
    calls = 0

    def result(self, values):
        self.calls += 1
        return Logits(values + self.calls)


class WithGradient(Good):
    def logits(self, images):
        super().logits(images)
        return Logits(self.net(images.float()))


class UnderAutocast(Good):
    def logits(self, images):
        super().logits(images)
        with torch.no_grad():
            return Logits(self.net(images.float()).float())


class Overwrites(Good):
    def logits(self, images):
        out = super().logits(images)
        images.data.mul_(0.5)
        return out


class Seeds(Good):
    def result(self, values):
        torch.manual_seed(1)
        return Logits(values)


class TakesAnything(Good):
    def logits(self, images):
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            images = images if images.ndim == 4 else images[None]
            return Logits(self.net(images[:, :3].float().nan_to_num()))


class Bytes(Good):
    """Takes uint8 images as well."""

    largest = 255

    def logits(self, images):
        return super().logits(images / self.largest if images.dtype == torch.uint8 else images)


class BytesOfAnotherRange(Bytes):
    largest = 256


def test_accepts_a_source_that_takes_uint8_images():
    check_logits_source(Bytes)


class LeavesAHook(Good):
    def logits(self, images):
        self.net[0].register_forward_hook(lambda *_: None)
        return super().logits(images)


class LeavesTrainingMode(Good):
    def logits(self, images):
        out = super().logits(images)
        self.net.train()
        return out


class LeavesAHookWhenItFails(Good):
    def run(self, images):
        handle = self.net[0].register_forward_hook(lambda *_: None)
        out = self.net(images)
        handle.remove()
        return out


class Swallows(Good):
    def logits(self, images):
        try:
            return super().logits(images)
        except ValueError:
            raise
        except Exception:
            return Logits(torch.zeros(1, 3, 2, 2))


REJECTED = {
    NoMethod: r"must have a method `logits`; NoMethod has none",
    BareTensor: r"must return `Logits`; got Tensor",
    Unbatched: r"one map for each image and prompt",
    Transposed: r"the grid must have the orientation of the image",
    Half: r"must be float32",
    ScaleOfTheImage: r"must be the same for all images",
    NamesOfTheImage: r"must be the same for all images",
    BatchMean: r"not depend on the rest of the batch",
    Constant: r"logits of different images must differ",
    OnePrompt: r"logits of different prompts must differ",
    EqualPrompts: r"logits of different prompts must differ",
    Noisy: r"leave .* random numbers alone",
    Counting: r"be the same in a second call",
    WithGradient: r"must carry no gradient",
    UnderAutocast: r"not depend on autocast",
    Overwrites: r"`images` must not be changed",
    Seeds: r"leave .* random numbers alone",
    TakesAnything: r"must raise ValueError or TypeError",
    BytesOfAnotherRange: r"must be those of the images / 255",
    LeavesAHook: r"leave its model as it was found",
    LeavesTrainingMode: r"leave its model as it was found",
    LeavesAHookWhenItFails: r"after an exception in the middle",
    Swallows: r"must not swallow an exception",
}


@pytest.mark.parametrize("bad", REJECTED, ids=lambda kind: kind.__name__)
def test_rejects(bad):
    with pytest.raises(AssertionError, match=REJECTED[bad]):
        check_logits_source(bad)
