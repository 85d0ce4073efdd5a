"""RF-CLIP: sinks, refocusing, the whole formula on grids of any shape, conformance."""

import functools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from adapters.tiny_clip import images, make, tiny_clip
from ovss_refine import load_logits
from ovss_refine.testing.logits import check_logits_source
from ovss_refine_adapters.logits.rf_clip import (
    SINK_CHANNELS,
    RfClipLogits,
    blend_sinks,
    known_channels,
    refocus,
)

# Of the tiny tower: some tokens are sinks, most are not.
CHANNELS = (5, 17, 40)


@functools.cache
def model():
    """A tower that writes strongly into one channel of some tokens, as CLIP does."""
    tiny = tiny_clip()
    with torch.no_grad():
        tiny.visual.transformer.resblocks[0].mlp.c_proj.weight[17] *= 40
    return tiny


def make_rf(**options):
    return make(RfClipLogits, **({"model": model(), "sink_channels": CHANNELS} | options))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def reference_sinks(x, channels):
    above = x - x.min(axis=1, keepdims=True)
    return (above / above.sum(axis=1, keepdims=True))[:, list(channels)].max(axis=1) > 5 / x.shape[
        1
    ]


def reference_blend(x, grid, channels, faithful):
    """[N, C] patches, one after another."""
    h, w = grid
    out, sinks = x.copy(), reference_sinks(x, channels)
    for p in np.flatnonzero(sinks):
        around = [
            y * w + u
            for y in range(p // w - 1, p // w + 2)
            for u in range(p % w - 1, p % w + 2)
            if 0 <= y < h and 0 <= u < w
        ]
        mean = x[around].sum(axis=0) / (9 if faithful else len(around))
        out[p] = 0.6 * x[p] + 0.4 * mean
    return out


def numpy(x):
    return x[0].double().numpy()


def torched(x):
    return torch.from_numpy(x).float()[None]


def reference(source, pixels):
    """The features [N, D] of one image, in float64 on the tower's parts, and its sinks."""
    tower, faithful = source.tower, source.options.faithful
    grid, L = tower.grid(*pixels.shape[-2:]), tower.layers
    states, keys, sinks = [], [], []

    def kk(i, x):
        k = numpy(tower.qkv(i, torched(x))[1])
        return np.stack([softmax(one @ one.T / np.sqrt(one.shape[1])) for one in k])

    def last_block(x, similarity):
        x = np.concatenate([x[:1], similarity @ x[1:]])
        attention = np.mean([*keys, kk(L - 1, x)], axis=0)[:, 1:, 1:]
        if not faithful:
            attention = attention / attention.sum(axis=-1, keepdims=True)
        v = numpy(tower.qkv(L - 1, torched(x))[2])[:, 1:]
        return numpy(tower.project(L - 1, torched(attention @ v)))

    with torch.no_grad():
        x = numpy(tower.stem(pixels))
        for i in range(L):
            if i < L - 1:
                keys.append(kk(i, x))
            x = numpy(tower.block(i, torched(x)))
            sinks.append(reference_sinks(x[1:], source.sink_channels).sum())
            blended = reference_blend(x[1:], grid, source.sink_channels, faithful)
            x = np.concatenate([x[:1], blended])
            states.append(x)
        mean = np.mean(states, axis=0)
        unit = mean[1:] / np.linalg.norm(mean[1:], axis=1, keepdims=True)
        similarity = unit @ unit.T
        similarity[similarity < 0.4] = 0
        y = (last_block(states[-2], similarity) + last_block(mean, similarity)) / 2
        return tower.head(torched(y))[0], tower.head(torched(states[-1]))[0, 0], sinks


@pytest.mark.parametrize("faithful", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (24, 56), (56, 24)])
def test_formula(size, faithful):
    source = make_rf(faithful=faithful)
    pixels = source.prepare(images(1, *size))
    wanted, embedding, sinks = reference(source, pixels)
    N = size[0] * size[1] // 64
    assert any(0 < n < N for n in sinks)
    with torch.no_grad():
        maps, own = source.encode(pixels)
        assert_close(source.class_embedding(pixels), own)
    assert maps.shape == (1, 24, size[0] // 8, size[1] // 8)
    assert_close(maps[0].flatten(1).mT, wanted, atol=2e-5, rtol=0)
    assert_close(own[0], embedding, atol=2e-5, rtol=0)


@pytest.mark.parametrize("faithful", [True, False])
@pytest.mark.parametrize("grid", [(3, 7), (7, 3), (1, 21)])
def test_blend(rng, grid, faithful):
    x = rng.normal(size=(2, 22, 16))
    x[:, ::3, 4] += 25
    got = blend_sinks(torch.from_numpy(x).float(), grid, [4, 9], faithful)
    for i in range(2):
        assert reference_sinks(x[i, 1:], [4, 9]).sum() == 7
        wanted = torch.from_numpy(reference_blend(x[i, 1:], grid, [4, 9], faithful)).float()
        assert_close(got[i, 1:], wanted)
    assert_close(got[:, 0], torch.from_numpy(x[:, 0]).float())


def test_nothing_to_blend():
    x = torch.randn(1, 7, 16)
    assert_close(blend_sinks(x, (2, 3), [], True), x)
    flat = torch.ones(1, 7, 16)  # no channel above another: 0 / 0
    assert_close(blend_sinks(flat, (2, 3), [1], True), flat)


def test_refocus():
    """By hand: patch 1 gets 0.45 of the attention on average, patches 2 and 3 less than 0.1."""
    row = torch.tensor([0.45, 0.45, 0.08, 0.02])  # the class token first
    out = refocus(row.expand(1, 1, 4, 4))[0, 0, 2]
    lost = 0.4 * 0.45
    assert_close(out, torch.tensor([0.45, 0.27, 0.08 + 0.8 * lost, 0.02 + 0.2 * lost]))


def test_refocus_keeps_row_sums_and_attention_without_sinks(rng):
    attention = torch.from_numpy(rng.dirichlet(np.full(15, 0.3), size=(2, 3, 15))).float()
    out = refocus(attention)
    assert_close(out.sum(dim=-1), torch.ones(2, 3, 15))
    assert bool((out >= 0).all())
    assert float((out - attention).abs().max()) > 1e-2
    even = torch.full((1, 1, 15, 15), 1 / 15)
    assert_close(refocus(even), even)
    all_sinks = torch.full((1, 1, 4, 4), 0.25)  # there is nowhere to go
    assert_close(refocus(all_sinks), all_sinks)


def test_refocus_is_off_unless_asked_for():
    plain = make_rf()
    assert plain.refocus is False
    gap = make_rf(refocus=True).logits(images(1, 16, 24)).values
    gap = gap - plain.logits(images(1, 16, 24)).values
    assert float(gap.abs().max()) > 1e-5


def test_refocused_block_without_sinks_is_unchanged(monkeypatch):
    monkeypatch.setattr("ovss_refine_adapters.logits.rf_clip.REFOCUS_THRESHOLD", 1.0)
    got = make_rf(refocus=True).logits(images(1)).values
    assert_close(got, make_rf().logits(images(1)).values, atol=1e-5, rtol=1e-5)


def test_every_option_makes_a_difference():
    wanted = make_rf().logits(images(1)).values
    for options in ({"sink_channels": []}, {"faithful": False}, {"global_weight": 0.9}):
        gap = float((make_rf(**options).logits(images(1)).values - wanted).abs().max())
        assert gap > 1e-4, options


@pytest.mark.parametrize(
    ("model", "pretrained", "channels"),
    [
        ("B/16", None, SINK_CHANNELS["B/16"]),
        ("B/16", "openai", SINK_CHANNELS["B/16"]),
        ("ViT-L-14-quickgelu", "openai", SINK_CHANNELS["L/14"]),
        ("L/14", None, (250, 261, 437, 650, 720, 779, 936, 1005)),
    ],
)
def test_known_channels(model, pretrained, channels):
    assert known_channels(model, pretrained) == channels


@pytest.mark.parametrize(
    ("model", "pretrained"),
    [("B/16", "laion2b_s34b_b88k"), ("ViT-B-16-quickgelu", "x.pt"), (tiny_clip(), None)],
)
def test_unknown_channels(model, pretrained):
    with pytest.raises(ValueError, match=r"`sink_channels` must be given for weights other"):
        known_channels(model, pretrained)


def test_published_constants():
    assert SINK_CHANNELS["B/16"] == (4, 162, 189, 326, 429, 474, 633, 713)
    source = make_rf(short_side=336, window=224)
    options = source.options
    got = (options.short_side, options.window, options.stride, options.logit_scale)
    assert got == (336, 224, 112, 40.0)
    assert source.linkage == "complete"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"faithful": False, "refocus": True},
        # Rounding images to half precision may turn a patch into a sink or back; not here.
        {"window": 32, "stride": 24, "short_side": 56},
        {"window": 32, "stride": 24, "global_from": "window"},
    ],
)
def test_conformance(options):
    check_logits_source(lambda: make_rf(**options))


def test_by_name():
    source = make(functools.partial(load_logits, "rf-clip"), model=model(), sink_channels=CHANNELS)
    assert_close(source.logits(images(1)).values, make_rf().logits(images(1)).values)


def test_half_precision_tower():
    wanted = make_rf(model=tiny_clip()).logits(images(1)).values
    got = make_rf(model=tiny_clip().to(torch.bfloat16)).logits(images(1)).values
    assert got.dtype == torch.float32
    assert float((got - wanted).abs().max()) < 0.15


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sink_channels": None}, ValueError, r"`sink_channels` must be given for weights other"),
        ({"sink_channels": [64]}, ValueError, r"`sink_channels` must be in \[0, 63\]; got 64"),
        ({"sink_channels": [-1]}, ValueError, r"`sink_channels` must be at least 0; got -1"),
        ({"sink_channels": [1.0]}, TypeError, r"`sink_channels` must be a whole number; got 1.0"),
        ({"refocuss": True}, TypeError, r"unexpected keyword argument 'refocuss'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        make_rf(**options)
