"""Changing classes on the same model: no copy, and the logits of a fresh source."""

import functools

import pytest
import torch
from torch.testing import assert_close

from adapters import tiny_models
from adapters.tiny_clip import halves, images, make, tiny_clip
from ovss_refine import load_logits
from ovss_refine.testing.logits import check_logits_source
from ovss_refine_adapters.logits.sc_clip import Calibration

OTHERS = ["lamp", "desk/table/bench", "cat", "wall/floor"]
CLIP = ("clip", "maskclip", "sclip", "clearclip", "naclip", "qq", "kk", "qq-mean", "kk-mean")
BLOCKS = Calibration(pre_adjust=1, post_adjust=0, multi_start=0, multi_end=2, class_weight=0.3)
# Prompts are so similar that the default distance groups all of them; this one does not.
GROUPS = {"cluster_distance": 0.02}
OWN = {
    "gem": {"blocks": 2},
    "clip-surgery": {"blocks": 2},
    "cliptrase": {"eps": 1.15, "min_samples": 2},
    "lavg": {"masks": halves},
    "clip-dinoiser": {"heads": tiny_models.tiny_heads()},
    "tcl": {"masker": tiny_models.tiny_masker()},
    "sc-clip": {"calibration": BLOCKS},
    "rf-clip": {"sink_channels": (1, 5), **GROUPS},
    "cass": {"proxy": functools.partial(tiny_models.tiny_vit, "dino"), **GROUPS},
    "proxyclip": {"proxy": functools.partial(tiny_models.tiny_vit, "dino")},
}


def source(name, model, **options):
    own = {k: v() if k == "proxy" else v for k, v in OWN.get(name, {}).items()}
    return make(functools.partial(load_logits, name), model=model, **(own | options))


@pytest.mark.parametrize("name", [*CLIP, *OWN])
def test_logits_equal_those_of_a_fresh_source(name):
    model = tiny_clip()
    first = source(name, model)
    before = first.logits(images())
    other = first.with_classes(OTHERS)
    got, wanted = other.logits(images()), source(name, model, classes=OTHERS).logits(images())
    assert torch.equal(got.values, wanted.values)
    assert torch.equal(got.prompt_index, wanted.prompt_index)
    assert (got.names, got.scale) == (wanted.names, wanted.scale)
    assert got.names == ("lamp", "desk", "cat", "wall")
    after = first.logits(images())  # which is unchanged
    assert torch.equal(after.values, before.values)
    assert after.names == before.names


@pytest.mark.parametrize("name", [*CLIP, *OWN])
def test_the_model_is_not_copied(name):
    first = source(name, tiny_clip())
    other = first.with_classes(OTHERS)
    assert other.tower is first.tower
    assert getattr(other, "proxy", None) is getattr(first, "proxy", None)
    assert other.text is not first.text


def test_prompts_are_grouped_again():
    first = source("rf-clip", tiny_clip())
    assert len(first.groups) == 4
    assert len(first.with_classes(OTHERS).groups) == 7


@pytest.mark.parametrize("name", ["kk-mean", "sclip", "cass"])
def test_conformance(name):
    model = tiny_clip()
    check_logits_source(lambda: source(name, model).with_classes(OTHERS))


def test_changing_classes_twice_equals_once():
    first = source("kk-mean", tiny_clip())
    twice = first.with_classes(["x", "y"]).with_classes(OTHERS)
    assert_close(twice.text, first.with_classes(OTHERS).text, rtol=0, atol=0)


def test_text_features_belong_to_their_classes():
    given = source("kk", tiny_clip(), text_features=torch.rand(4, 24))
    with pytest.raises(ValueError, match="`text_features` must be None to change the classes"):
        given.with_classes(OTHERS)


def test_classes_are_checked():
    first = source("kk", tiny_clip())
    with pytest.raises(ValueError, match="classes must have no name twice; got 'a' twice"):
        first.with_classes(["a", "a"])
    with pytest.raises(ValueError, match=r"must fit in the model's 77 tokens .* got 'cat cat "):
        first.with_classes(["a", " ".join(["cat"] * 80)])
