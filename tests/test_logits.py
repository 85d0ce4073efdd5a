"""`Logits`: what it accepts, what it makes of it, what it refuses."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from ovss_refine import Logits, LogitsSource, Refiner


def test_keeps_what_it_is_given():
    values = torch.randn(2, 3, 4, 5)
    logits = Logits(values, 40.0, [0, 0, 1], ["cat", "dog"])
    assert logits.values is values
    assert logits.scale == 40.0
    assert logits.prompt_index.tolist() == [0, 0, 1]
    assert logits.prompt_index.dtype == torch.int64
    assert logits.names == ("cat", "dog")
    with pytest.raises(dataclasses.FrozenInstanceError):
        logits.scale = 1.0


def test_defaults():
    logits = Logits(torch.zeros(3, 4, 5))
    assert (logits.scale, logits.prompt_index, logits.names) == (1.0, None, ())


@pytest.mark.parametrize(
    "index", [[1, 0], (1, 0), torch.tensor([1, 0]), torch.tensor([1, 0]).int()]
)
def test_prompt_index_in_any_form(index):
    assert Logits(torch.zeros(2, 1, 1), 1.0, index).prompt_index.tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type(dtype):
    assert Logits(torch.zeros(2, 1, 1, dtype=dtype)).values.dtype == dtype


def test_a_class_without_prompt_has_a_name():
    assert len(Logits(torch.zeros(2, 1, 1), 1.0, [1, 2], ["none", "a", "b"]).names) == 3


BAD = [
    ({"values": torch.zeros(2, 3)}, ValueError, r"`values` must have shape \[B, K, h, w\]"),
    ({"values": torch.zeros(0, 3, 3)}, ValueError, r"`values` must have shape .*none of them 0"),
    ({"values": [[[0.0]]]}, TypeError, r"`values` must be a torch.Tensor; got list"),
    ({"values": torch.zeros(2, 3, 3).long()}, TypeError, r"`values` must be a floating-point"),
    ({"values": torch.full((2, 1, 1), torch.nan)}, ValueError, r"`values` must be finite"),
    ({"scale": 0.0}, ValueError, r"`scale` must be in \[1e-06, 1e\+06\]; got 0.0"),
    ({"scale": float("inf")}, ValueError, r"`scale` must be in \[1e-06, 1e\+06\]; got inf"),
    ({"scale": "40"}, TypeError, r"`scale` must be a number; got '40'"),
    ({"prompt_index": [0]}, ValueError, r"`prompt_index` must have shape \[K=2\]; got \[1\]"),
    ({"prompt_index": [0, -1]}, ValueError, r"`prompt_index` must be >= 0; got -1"),
    ({"prompt_index": [0.0, 1.0]}, TypeError, r"`prompt_index` must hold whole numbers"),
    ({"prompt_index": [True, False]}, TypeError, r"`prompt_index` must hold whole numbers"),
    ({"names": ["a"]}, ValueError, r"`names` must name the M=2 classes; got 1 names"),
    ({"names": ["a", "a"]}, ValueError, r"`names` must be distinct; got 'a' twice"),
    ({"names": ["a", 2]}, TypeError, r"`names` must be strings; got 2"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD)
def test_refuses(given, error, message):
    with pytest.raises(error, match=message):
        Logits(**({"values": torch.zeros(2, 3, 3)} | given))


def test_refiner_reads_scale_and_prompts():
    values, image = torch.randn(3, 4, 4), torch.rand(3, 16, 16)
    attention = (torch.randn(16, 16)).softmax(dim=-1)
    plain = Refiner(logit_scale=6.0)(values, attention, image, prompt_index=[0, 1, 1])
    packed = Refiner(logit_scale=2.0)(Logits(values, 3.0, [0, 1, 1]), attention, image)
    assert_close(packed.discrepancy, plain.discrepancy)
    assert_close(packed.labels, plain.labels)


def test_protocol_is_about_the_method():
    class Good:
        def logits(self, images):
            return Logits(torch.zeros(len(images), 1, 1, 1))

    assert isinstance(Good(), LogitsSource)
    assert not isinstance(object(), LogitsSource)


def test_classes_are_bounded_by_the_prompts():
    assert Logits(torch.zeros(3, 2, 2), prompt_index=[0, 1, 258]).prompt_index.max() == 258
    for most in (259, 10**9):
        with pytest.raises(ValueError, match=f"`prompt_index` must be at most 258, .*; got {most}"):
            Logits(torch.zeros(3, 2, 2), prompt_index=[0, 1, most])
