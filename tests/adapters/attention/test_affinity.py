"""Affinity as attention: of a function, of given features, of convolutional backbones."""

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from adapters.tiny_models import images
from ovss_refine import load_attention
from ovss_refine.testing import check_attention_source
from ovss_refine_adapters.attention.affinity import AffinityAttention, timm_affinity
from ovss_refine_adapters.backbones.timm import TimmBackbone

CONVOLUTIONS = ("resnet18", "convnext_atto", "mobilenetv3_small_050")


def network(name="resnet18"):
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=0)


def reference(features, temperature):
    x = features.double().flatten(2)
    x = x / x.norm(dim=1, keepdim=True)
    weights = torch.exp(x.mT @ x / temperature)
    return (weights / weights.sum(-1, keepdim=True)).float()


def dense(attention):
    return torch.cat([rows for _, rows in attention.blocks()], dim=1)


@pytest.mark.parametrize("factors", [False, True])
def test_equals_the_formula(factors):
    features = torch.randn(2, 7, 4, 6, generator=torch.Generator().manual_seed(0))
    for given in (features, lambda _: features):
        got = AffinityAttention(given, temperature=0.3, factors=factors).attention(images())
        assert got.grid == (4, 6)
        assert_close(dense(got), reference(features, 0.3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_equals_the_formula_on_a_backbone(name):
    model, x = network(name).eval(), images(2, 96, 160)
    backbone = TimmBackbone(model)
    for layer in (-1, -2):
        got = AffinityAttention(backbone, layer=layer).attention(x)
        features = backbone.features(x, layer)
        assert got.grid == tuple(features.shape[2:])
        assert_close(got.weights, reference(features, 0.1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conformance(name, factors):
    check_attention_source(lambda: timm_affinity(network(name), layer=1, factors=factors))


def test_conformance_on_a_custom_function():
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, 8, 8)
    check_attention_source(lambda: AffinityAttention(lambda x: convolution(x.float())))


def test_the_name_takes_the_options():
    source = load_attention("affinity", model=network(), layer=1, temperature=0.5, size=(64, 32))
    assert source.attention(images()).grid == (16, 8)
    assert source.temperature == 0.5


@pytest.mark.parametrize(
    ("features", "options", "error", "message"),
    [
        (3, {}, TypeError, "`features` must be a function .* got int"),
        (torch.zeros(2, 3, 4), {}, ValueError, r"`features` must have shape \[B, C, gh, gw\]"),
        (torch.ones(2, 3, 4, 4), {"temperature": 0}, ValueError, "`temperature` must be"),
        (torch.ones(2, 3, 4, 4), {"temperature": 1e-200}, ValueError, "`temperature` must be"),
        (None, {"layer": 5}, ValueError, r"`layers` must be in \[-5, 4\]; got 5"),
    ],
)
def test_bad_options(features, options, error, message):
    given = TimmBackbone(network()) if features is None else features
    with pytest.raises(error, match=message):
        AffinityAttention(given, **options)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.ones(1, 3, 4, 4), ValueError, r"`features` must have shape \[B=2, C, gh, gw\]"),
        (lambda x: x[0], ValueError, r"`features` must have shape \[B=2, C, gh, gw\]"),
        (lambda _: None, TypeError, "`features` must be a torch.Tensor; got NoneType"),
        (lambda x: x.long(), TypeError, "`features` must be a floating-point tensor"),
        (lambda x: x / 0, ValueError, "`features` must be finite"),
    ],
)
def test_bad_features(features, error, message):
    with pytest.raises(error, match=message):
        AffinityAttention(features).attention(images())
