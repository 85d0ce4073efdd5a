"""Attention of CLIP's tower: q-k, q-q and k-k, layers, sizes, loading."""

import open_clip
import pytest
import torch
from torch.testing import assert_close

from adapters.tiny_clip import images, tiny_clip
from ovss_refine import load_attention
from ovss_refine.testing import check_attention_source
from ovss_refine_adapters.attention.clip import CLIPAttention
from ovss_refine_adapters.backbones.clip_tower import Tower


def attention_inputs(model, x):
    """The input of every block's attention, as the tower computes it at its native size."""
    seen, handles = [], []
    for block in model.visual.transformer.resblocks:
        handles.append(block.ln_1.register_forward_hook(lambda _m, _a, out: seen.append(out)))
    with torch.no_grad():
        model.encode_image(x)
    for handle in handles:
        handle.remove()
    return seen


def normalised(x):
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def reference(model, x, similarity, layer):
    """Mean over heads, class token dropped, rows renormalised, in float64."""
    z = attention_inputs(model, normalised(x))[layer]
    attn = model.visual.transformer.resblocks[layer].attn
    with torch.no_grad():
        if similarity == "qk":
            whole = attn(z, z, z, average_attn_weights=False)[1].double()
        else:
            joint = torch.nn.functional.linear(z, attn.in_proj_weight, attn.in_proj_bias)
            q, k, _ = joint.double().chunk(3, dim=-1)
            one = (q if similarity == "qq" else k).unflatten(-1, (attn.num_heads, -1))
            products = torch.einsum("bnad,bmad->banm", one, one) / attn.head_dim**0.5
            whole = products.softmax(-1)
    mean = whole.mean(1)[:, 1:, 1:]
    return (mean / mean.sum(-1, keepdim=True)).float()


@pytest.mark.parametrize("similarity", ["qk", "qq", "kk"])
@pytest.mark.parametrize("layer", [0, -1])
def test_equals_the_softmax_of_the_module(similarity, layer):
    model, x = tiny_clip(), images(2, 32, 32)
    wanted = reference(model, x, similarity, layer)
    got = CLIPAttention(model, similarity=similarity, layers=[layer]).attention(x)
    assert got.grid == (4, 4)
    assert got.weights.std() > 1e-3  # a hundred times the tolerance
    assert_close(got.weights, wanted, atol=1e-5, rtol=0)


def test_layers_are_averaged_by_their_weights():
    model, x = tiny_clip(), images(2, 32, 32)
    own = [reference(model, x, "kk", layer) for layer in range(3)]
    assert (own[0] - own[1]).abs().max() > 1e-2
    for layers, weights, wanted in (
        ("all", None, sum(own) / 3),
        ([0, 2], None, (own[0] + own[2]) / 2),
        ([-1, 0], [3, 1], (own[0] + 3 * own[2]) / 4),
    ):
        got = CLIPAttention(model, similarity="kk", layers=layers, layer_weights=weights)
        assert_close(got.attention(x).weights, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"similarity": "kk", "layers": "all", "factors": True},
        {"size": (32, 48), "layers": [0, 1], "layer_weights": [1, 2]},
    ],
    ids=str,
)
def test_conformance(options):
    check_attention_source(lambda: CLIPAttention(tiny_clip().train(), **options))


def test_factors_exclude_the_class_token_in_every_head():
    model, x = tiny_clip(), images()
    factored = CLIPAttention(model, factors=True, layers=[0, 1]).attention(x)
    tower, maps = Tower(model.visual), []
    with torch.no_grad():
        tokens = tower.stem(normalised(x))
        for i in range(2):
            q, k, _ = (y[:, :, 1:].double() for y in tower.qkv(i, tokens))
            maps.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1))
            tokens = tower.block(i, tokens)
    dense = torch.cat([rows for _, rows in factored.blocks()], dim=1)
    assert factored.grid == (6, 10)
    assert_close(dense, torch.cat(maps, dim=1).mean(1).float(), atol=1e-5, rtol=0)


def test_faithful_selects_the_position_rule():
    model, x = tiny_clip(), images(1, 16, 64)  # 2 x 8 patches, as many as the table has
    faithful = CLIPAttention(model).attention(x).weights
    strict = CLIPAttention(model, faithful=False).attention(x).weights
    assert (faithful - strict).abs().max() > 1e-3


def test_names_load_with_their_options():
    model, x = tiny_clip(), images()
    for name in ("clip-b16", "clip-l14"):
        source = load_attention(name, model=model, similarity="qq", size=40)
        assert source.attention(x).grid == (5, 8)  # 40 x 66.7 pixels
        assert load_attention(name, model=model).size == 448


def test_a_mismatched_activation_is_refused():
    with pytest.raises(ValueError, match=r"activation .* 'openai' has QuickGELU; got 'ViT-B-16'"):
        CLIPAttention("ViT-B-16", "openai")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"similarity": "vv"}, ValueError, "`similarity` must be one of"),
        ({"layers": [3]}, ValueError, r"`layers` must be in \[-3, 2\]; got 3"),
        ({"layers": [-4]}, ValueError, "`layers` must be at least -3; got -4"),
        ({"layers": []}, ValueError, r"at least one layer; got \[\]"),
        ({"layers": "last"}, ValueError, "must name at least one layer; got 'last'"),
        ({"layers": [0.0]}, TypeError, "`layers` must be a whole number"),
        ({"layer_weights": [0.0]}, ValueError, "must not be all zero"),
        ({"size": 30}, ValueError, "`size` must be a positive multiple of the patch size 8"),
        ({"heads": "max"}, TypeError, "unexpected keyword argument 'heads'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        CLIPAttention(tiny_clip(), **options)
