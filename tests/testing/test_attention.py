"""The conformance suite accepts a good source, and rejects each way to be a bad one."""

from functools import partial
from itertools import count

import pytest
import torch
from torch import nn

from ovss_refine import Attention
from ovss_refine.testing import check_attention_source
from ovss_refine.testing.models import difference, modules_of, snapshot


class Good:
    """A source on a tiny model, as it should be."""

    def __init__(self):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 8, 1)
        self.model = nn.Sequential(*layers).train()
        for parameter in self.model.parameters():
            nn.init.normal_(parameter, std=0.3)

    def attention(self, images):
        self.check(images)
        modes = [(part, part.training) for part in self.model.modules()]
        self.model.eval()
        try:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                return self.map(self.model(images.float()))
        finally:
            for part, mode in modes:
                part.training = mode

    def check(self, images):
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError("`images` must be [B, 3, H, W] of floats.")
        if not (images.isfinite().all() and images.detach().max() <= 1):
            raise ValueError("`images` must be in [0, 1].")

    def map(self, features):
        x = features.flatten(2)  # [B, C, N]
        return Attention((x.mT @ x).softmax(-1), tuple(features.shape[2:]))


class Factored(Good):
    def map(self, features):
        x = features.flatten(2).mT[:, None]
        return Attention.from_factors(x, x, 1.0, tuple(features.shape[2:]))


class OneGrid(Good):
    def map(self, features):
        return super().map(nn.functional.adaptive_avg_pool2d(features, (4, 3)))


class WithoutModel:
    def attention(self, images):
        Good.check(self, images)
        with torch.autocast("cpu", enabled=False):
            pooled = nn.functional.adaptive_avg_pool2d(images.detach().float(), 4)
            return Good.map(self, 9 * pooled)


class Bytes(Good):
    """Takes uint8 images as well."""

    largest = 255

    def attention(self, images):
        images = images / self.largest if images.dtype == torch.uint8 else images
        return super().attention(images)


@pytest.mark.parametrize("kind", [Good, Factored, OneGrid, WithoutModel, Bytes])
def test_good_sources_pass(kind):
    check_attention_source(kind)


class NoMethod:
    pass


class BareTensor(Good):
    def map(self, features):
        return super().map(features).weights


class FirstImageOnly(Good):
    def map(self, features):
        return super().map(features[:1])


class Transposed(Good):
    def map(self, features):
        return super().map(features.mT)


class WithGradient(Good):
    def attention(self, images):
        found = super().attention(images)
        object.__setattr__(found, "weights", found.weights.clone().requires_grad_())
        return found


class Scribbler(Good):
    def attention(self, images):
        found = super().attention(images)
        images.detach().mul_(0.5)
        return found


class Unnormalised(Good):
    def map(self, features):
        found = super().map(features)
        object.__setattr__(found, "weights", 2 * found.weights)
        return found


class Restless(Good):
    calls = count()

    def map(self, features):
        seed = next(self.calls)
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(seed))
        return super().map(features + noise)


class RandomNumbers(Good):
    def map(self, features):
        torch.rand(1)
        return super().map(features)


class Seeds(Good):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)  # from here on, seeding anew changes nothing

    def map(self, features):
        torch.manual_seed(0)
        return super().map(features)


class GradientMode(Good):
    def attention(self, images):
        torch.set_grad_enabled(False)
        return super().attention(images)


class Autocast(Good):
    def attention(self, images):
        self.check(images)
        with torch.no_grad():
            x = nn.functional.adaptive_avg_pool2d(images.float(), (4, 4)).flatten(2)
            return Attention((9 * (x.mT @ x)).float().softmax(-1), (4, 4))


class AutocastToFloat16(Good):
    def attention(self, images):
        self.check(images)
        if torch.get_autocast_dtype("cpu") == torch.float16:
            return Autocast.attention(self, images)
        return WithoutModel.attention(self, images)


class Halves(Good):
    """Holds its maps in half precision."""

    def map(self, features):
        found = super().map(features)
        return Attention(found.weights.half(), found.grid)


class SaysHalf(Halves):
    dtype = torch.float16


class HalfUnderAutocast(Good):
    """Its maps are exact in bfloat16, so that only their dtype differs."""

    def attention(self, images):
        found = Good.attention(self, images)
        weights = found.weights.bfloat16()
        weights = weights if torch.is_autocast_enabled("cpu") else weights.float()
        return Attention(weights, found.grid)


def test_a_source_may_say_that_its_maps_are_half_precision():
    check_attention_source(SaysHalf)


class Company(Good):
    def map(self, features):
        return super().map(features - features.mean(0, keepdim=True) + features[:1])


class Constant(Good):
    def map(self, features):
        return super().map(torch.ones_like(features))


class HalfBlind(Good):
    def attention(self, images):
        return super().attention(images if images.dtype == torch.float32 else 0 * images)


class BytesOfAnotherRange(Bytes):
    largest = 256


class Permissive(Good):
    def check(self, images):
        if images.ndim != 4:
            raise ValueError


class AnyType(Good):
    def check(self, images):
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError


class AnyRange(Good):
    def check(self, images):
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError


class Hooked(Good):
    def map(self, features):
        self.model[0].register_forward_hook(lambda *_: None)
        return super().map(features)


class HookedOnFailure(Good):
    def attention(self, images):
        handle = self.model[0].register_forward_hook(lambda *_: None)
        found = Good.attention(self, images)
        handle.remove()
        return found


class HookedInside(Good):
    def attention(self, images):
        self.check(images)
        return HookedOnFailure.attention(self, images)


class LeftInEvaluation(Good):
    def attention(self, images):
        found = super().attention(images)
        self.model[2].eval()
        return found


class LeftInEvaluationOnFailure(Good):
    def attention(self, images):
        self.check(images)
        self.model.eval()
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            found = self.map(self.model(images.float()))
        self.model.train()
        return found


class Replaced(Good):
    def map(self, features):
        self.model[2].forward = torch.tanh
        return super().map(features)


class Processor(Good):
    def __init__(self):
        super().__init__()
        self.model[3].processor = max

    def map(self, features):
        self.model[3].processor = min
        return super().map(features)


class Flag(Good):
    def map(self, features):
        self.model[3].fused_attn = False
        return super().map(features)


class Weights(Good):
    def map(self, features):
        self.model[3].weight.data.mul_(1 + 1e-6)
        return super().map(features)


class Buffers(Good):
    def map(self, features):
        self.model[1].running_mean.add_(1e-7)
        return super().map(features)


class NewPart(Good):
    def map(self, features):
        if len(self.model) == 4:
            self.model.append(nn.Identity())
        return super().map(features)


class Swallows(Good):
    def attention(self, images):
        try:
            return super().attention(images)
        except ValueError:
            raise
        except Exception:  # as a bare `except` does
            return None


class Unused(Good):
    def attention(self, images):
        return WithoutModel.attention(self, images)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (NoMethod, "must have a method `attention`; NoMethod has none"),
        (BareTensor, "must return `Attention`; got Tensor"),
        (FirstImageOnly, r"one map for each image, \[B=2, N=64, N\]; got \[1, 64, 64\]"),
        (Transposed, r"grid must have the orientation of the image, .* got \(10, 6\) for 48 x 80"),
        (WithGradient, "must carry no gradient"),
        (Scribbler, "`images` must not be changed"),
        (Unnormalised, r"every row of the map must .* sums from 2 to 2"),
        (Restless, "must be the same in a second call"),
        (RandomNumbers, "random numbers alone; it did not"),
        (Seeds, "random numbers alone; it did not"),
        (GradientMode, "must leave gradient mode"),
        (Autocast, r"must not depend on autocast to torch.bfloat16; got a diff"),
        (AutocastToFloat16, r"must not depend on autocast to torch.float16; got a diff"),
        (HalfUnderAutocast, r"depend on autocast to torch.bfloat16; got torch.float32, torch.bf"),
        (Halves, r"must be torch.float32 or better, unless .* `dtype` .*; got torch.float16"),
        (Company, "must not depend on the rest of the batch"),
        (Constant, "maps of different images must differ"),
        (HalfBlind, r"not depend on the images' type, torch.float64"),
        (Permissive, "images with four channels must raise .* got RuntimeError"),
        (AnyType, "images of whole numbers must raise .* got a result"),
        (BytesOfAnotherRange, "must be those of the images / 255 where uint8 is accepted"),
        (AnyRange, r"images in \[0, 255\] must raise"),
        (Hooked, r"after its use `_forward_hooks` of 0 of Sequential"),
        (HookedOnFailure, "after its use `_forward_hooks` of 0"),  # an image was refused
        (HookedInside, "after an exception in the middle `_forward_hooks` of 0"),
        (LeftInEvaluation, r"after its use `training` of 2"),
        (LeftInEvaluationOnFailure, "after an exception in the middle `training` of"),
        (Replaced, "after its use `forward` of 2"),
        (Processor, "after its use `processor` of 3"),
        (Flag, "after its use `fused_attn` of 3"),
        (Weights, "after its use `parameter weight` of 3"),
        (Buffers, "after its use `buffer running_mean` of 1"),
        (NewPart, r"after its use parts .*'4'.* of Sequential"),
        (Swallows, "must not swallow an exception"),
        (Unused, "must use the model that it holds"),
    ],
)
def test_broken_sources_are_rejected(kind, says):
    try:
        with pytest.raises(AssertionError, match=says):
            check_attention_source(kind)
    finally:
        torch.set_grad_enabled(True)


class Slotted:
    __slots__ = ("held", "unset")

    def __init__(self, held):
        self.held = held


def test_models_are_found_wherever_a_source_keeps_them():
    model, other = nn.Sequential(nn.Linear(1, 1)), nn.Linear(1, 1)

    def closure():
        return model

    good = Good()
    good.model = model
    for holder in (
        model,
        good,
        {"a": [model, (model[0],)]},
        Slotted(model),
        partial(print, model, end=model),
        closure,
        model.forward,
        good.attention,
    ):
        assert modules_of(holder) == [model]
    assert {id(m) for m in modules_of([other, Slotted({1: model})])} == {id(model), id(other)}
    assert modules_of([1, "a", nn.Linear, torch.zeros(2), None]) == []


def test_a_snapshot_tells_what_changed():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert difference(snapshot(model), model) == ""
    for change, says in (
        (lambda: model[0].weight.requires_grad_(False), "`requires_grad of weight` of 0"),
        (lambda: setattr(model[0], "bias", nn.Parameter(model[0].bias.data)), "`parameter bias`"),
        (lambda: model.double(), "`parameter"),
        (lambda: setattr(model, "note", "x"), "`note` of the model"),
    ):
        before = snapshot(model)
        change()
        assert says in difference(before, model)
