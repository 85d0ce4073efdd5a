"""Attention of vision transformers: the formula, layers, factors, every kind of model."""

import pytest
import torch
from torch.testing import assert_close

from adapters.tiny_models import FAMILIES, images, tiny_vit
from ovss_refine import AttentionSource, Refiner
from ovss_refine.attention import affinity
from ovss_refine.testing import check_attention_source
from ovss_refine_adapters.attention.vit import ViTAttention
from ovss_refine_adapters.backbones.timm import TimmBackbone


def reference(model, x, layers, weights):
    """The map from the softmax that the unfused module itself computes."""
    seen = {}
    handles = []
    for layer in layers:
        attn = model.blocks[layer].attn
        attn.fused_attn = False
        note = lambda _m, _a, out, layer=layer: seen.__setitem__(layer, out)  # noqa: E731
        handles.append(attn.attn_drop.register_forward_hook(note))
    backbone = TimmBackbone(model)
    backbone.features(x)
    for handle in handles:
        handle.remove()
    P = backbone.prefix
    mixed = 0
    for layer, weight in zip(layers, weights, strict=True):
        own = seen[layer].double().mean(1)[:, P:, P:]  # heads, then prefix tokens
        mixed = mixed + weight * own / own.sum(-1, keepdim=True)
    return mixed.float()


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_softmax_of_the_module(family):
    model, x = tiny_vit(family), images()
    got = ViTAttention(model).attention(x)
    assert got.grid == TimmBackbone(model).grid(x)
    assert_close(got.weights, reference(model, x, [-1], [1]), atol=1e-5, rtol=0)


NAFLEX = {
    "radio": ("naflexvit_base_patch16_radio_v3", {}),
    "siglip": ("naflexvit_base_patch16_siglip", {}),
    "factorized": ("naflexvit_base_patch16_parfac_gap", {}),
    "dinov2": ("vit_base_patch14_reg4_dinov2", {"use_naflex": True}),
    "dinov3": ("vit_base_patch16_dinov3", {"use_naflex": True}),
    "mixed": ("naflexvit_base_patch16_gap", {"rope_type": "mixed"}),
    "grouped": (
        "naflexvit_base_patch16_gap",
        {"num_heads": 4, "num_kv_heads": 2, "qkv_fused": False, "attn_type": "rope"},
    ),
}


@pytest.mark.parametrize("name", NAFLEX)
def test_naflex_models_have_the_grid_of_the_resized_image(name):
    model, options = NAFLEX[name]
    model = tiny_vit(model, dynamic_img_size=None, **options)
    assert type(model).__name__ == "NaFlexVit"
    side = model.embeds.patch_size[0]
    for x in (images(), images(1, 140, 61)):
        got = ViTAttention(model).attention(x)
        assert got.grid == tuple(round(n / side) for n in x.shape[2:])
        assert_close(got.weights, reference(model, x, [-1], [1]), atol=1e-5, rtol=0)
    check_attention_source(lambda: ViTAttention(model, factors=name == "grouped"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("factors", [False, True])
def test_conformance(family, factors):
    check_attention_source(lambda: ViTAttention(tiny_vit(family), factors=factors))


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "affinity"},
        {"kind": "affinity", "factors": True, "layers": [0]},
        {"layers": [0, 2], "layer_weights": [1, 3], "size": 32},
        {"size": (48, 32), "positions": "reference"},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [False, True])
def test_conformance_with_every_option(options, training):
    check_attention_source(lambda: ViTAttention(tiny_vit().train(training), **options))


def test_layers_are_averaged_by_their_weights():
    model, x = tiny_vit("registers"), images()
    for weights, shares in ((None, [0.5, 0.5]), ([1, 3], [0.25, 0.75]), ([0, 2], [0, 1])):
        got = ViTAttention(model, layers=[0, 2], layer_weights=weights).attention(x)
        assert_close(got.weights, reference(model, x, [0, 2], shares), atol=1e-5, rtol=0)
    one = ViTAttention(model, layers=[0]).attention(x).weights
    assert (got.weights - one).abs().max() > 0.01


def dense(attention):
    return torch.cat([rows for _, rows in attention.blocks()], dim=1)


@pytest.mark.parametrize("weights", [None, [2, 2], [0, 1]])
def test_factors_give_the_same_map_without_prefix_tokens(weights):
    options = {"layers": [0, 2], "layer_weights": weights}
    model, x = tiny_vit("siglip"), images()
    factored = ViTAttention(model, factors=True, **options).attention(x)
    assert factored.weights is None
    wanted = ViTAttention(model, **options).attention(x).weights
    assert_close(dense(factored), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["dino", "registers", "dinov3"])
def test_factors_exclude_prefix_tokens_in_every_head(family):
    model, x = tiny_vit(family), images()
    factored = ViTAttention(model, factors=True).attention(x)
    backbone = TimmBackbone(model)
    (one,) = backbone.projections(x, [-1])
    q, k = (y[:, :, backbone.prefix :].double() for y in (one.q, one.k))
    wanted = (one.scale * q @ k.mT).softmax(-1).mean(1).float()
    assert_close(dense(factored), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("factors", [False, True])
def test_affinity_equals_that_of_the_features(factors):
    model, x = tiny_vit("registers"), images()
    source = ViTAttention(model, kind="affinity", temperature=0.3, layers=[1], factors=factors)
    wanted = affinity(TimmBackbone(model).features(x, 1), 0.3)
    got = source.attention(x)
    assert got.grid == wanted.grid
    assert_close(dense(got), wanted.weights, atol=1e-5, rtol=0)


def test_reference_positions_change_the_map():
    model, x = tiny_vit(), images()
    by_rule = [
        ViTAttention(model, positions=rule).attention(x).weights for rule in ("timm", "reference")
    ]
    assert (by_rule[0] - by_rule[1]).abs().max() > 1e-4


def test_many_tokens_are_processed_in_blocks(monkeypatch):
    from ovss_refine_adapters.backbones import capture as _capture

    model, x = tiny_vit("registers"), images()
    wanted = ViTAttention(model).attention(x).weights
    monkeypatch.setattr(_capture, "BLOCK_ELEMENTS", 2 * 25 * 7)  # 7 rows of 2 images' 25 tokens
    assert_close(ViTAttention(model).attention(x).weights, wanted, atol=1e-6, rtol=0)


def test_half_precision_weights_give_a_float32_map():
    wanted = ViTAttention(tiny_vit()).attention(images()).weights
    got = ViTAttention(tiny_vit().half()).attention(images()).weights
    assert got.dtype == torch.float32
    assert 0 < (got - wanted).abs().max() < 0.1 * wanted.max()


def test_a_refiner_takes_the_source_itself():
    source, x = ViTAttention(tiny_vit()), images()
    assert isinstance(source, AttentionSource)
    logits = 4 * torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    by_source = Refiner()(logits, source, x)
    by_map = Refiner()(logits, source.attention(x), x)
    assert by_source.discrepancy.shape[2:] == (8, 12)
    assert by_source.labels.equal(by_map.labels)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "map"}, ValueError, "`kind` must be one of"),
        ({"layers": [3]}, ValueError, r"`layers` must be in \[-3, 2\]; got 3"),
        ({"layers": []}, ValueError, "`layers` must name at least one"),
        ({"layers": [0, 1], "kind": "affinity"}, ValueError, "one layer for an affinity"),
        ({"layer_weights": [1, 2]}, ValueError, "one weight per layer, 1; got 2"),
        ({"layer_weights": [0]}, ValueError, r"must not be all zero; got \[0\]"),
        ({"layer_weights": [-1]}, ValueError, "`layer_weights` must be a finite number >= 0"),
        ({"layer_weights": ["a"]}, TypeError, "`layer_weights` must be a number"),
        ({"temperature": 0, "kind": "affinity"}, ValueError, "`temperature` must be"),
        ({"size": 20}, ValueError, "`size` must be a positive multiple of the patch size 8"),
        ({"depth": 3}, TypeError, "unexpected keyword argument 'depth'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        ViTAttention(tiny_vit(), **options)


def test_unequal_weights_are_refused_with_factors():
    with pytest.raises(ValueError, match=r"must be equal with `factors`.* got \[1, 2\]"):
        ViTAttention(tiny_vit(), layers=[0, 1], layer_weights=[1, 2], factors=True)


def test_other_architectures_are_refused_on_construction():
    import timm

    model = timm.create_model("resnet18", pretrained=False, num_classes=0)
    with pytest.raises(ValueError, match="`model` must be a vision transformer"):
        ViTAttention(model)
