"""ProxyCLIP: formula, kinds of proxies, grids, windows, conformance."""

import functools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from adapters import tiny_models
from adapters.bilinear import resized
from adapters.tiny_clip import CLASSES, images, make, tiny_clip
from ovss_refine import Attention, load_logits
from ovss_refine.testing.logits import check_logits_source
from ovss_refine_adapters.attention.vit import ViTAttention
from ovss_refine_adapters.backbones.timm import TimmBackbone
from ovss_refine_adapters.logits import clip, proxyclip
from ovss_refine_adapters.logits.proxyclip import ProxyClipLogits, masked_softmax, proxy_attention


def smooth(batch, size=(6, 16)):
    """Features of 4 channels that vary from patch to patch and point in all directions."""
    coarse = torch.nn.functional.adaptive_avg_pool2d(batch, size)
    return torch.cat([coarse, coarse.square().sum(dim=1, keepdim=True)], dim=1) - 0.5


def reference(source, pixels, features, beta, gamma):
    """[N, D] features of one image, in float64 loops on the tower's values."""
    tower = source.tower
    last = tower.layers - 1
    with torch.no_grad():
        x, _ = tower.blocks(tower.stem(pixels), 0, last)
        v = tower.qkv(last, x)[2][0, :, 1:].double().numpy()  # [A, N, d]
    A, _, d = v.shape
    C, gh, gw = features.shape
    e = features.reshape(C, -1).T
    e = e / np.linalg.norm(e, axis=1, keepdims=True)
    S = e @ e.T
    scaled = gamma * (S - beta * S.mean())
    out = np.zeros((A, gh * gw, d))
    for head in range(A):
        values = resized(v[head].T.reshape(d, *tower.grid(*pixels.shape[-2:])), (gh, gw))
        values = values.reshape(d, -1).T
        for p in range(gh * gw):
            weight = np.where(scaled[p] < 0, 0, np.exp(scaled[p]))
            out[head, p] = weight @ values / weight.sum()
    with torch.no_grad():
        y = tower.project(last, torch.from_numpy(out).float()[None])
        return tower.head(y)[0]


@pytest.mark.parametrize(("beta", "gamma"), [(1.2, 3.0), (0.5, 10.0)])
def test_formula(beta, gamma):
    source = make(ProxyClipLogits, proxy=smooth, beta=beta, gamma=gamma)
    batch = images(1, 24, 64)
    pixels = source.prepare(batch)
    features = smooth(batch)[0].double().numpy()
    with torch.no_grad():
        got = source.features(pixels)
    assert got.shape == (1, 24, 6, 16)
    wanted = reference(source, pixels, features, beta, gamma)
    assert_close(got[0].flatten(1).mT, wanted, atol=1e-5, rtol=0)


def test_some_entries_are_masked_and_some_are_not():
    """Otherwise the test above would prove less than it seems to."""
    map_ = proxy_attention(smooth(images(1, 24, 64)), 1.2, 3.0)
    assert 0.1 < float((map_ == 0).float().mean()) < 0.9
    assert_close(map_.sum(dim=-1), torch.ones(1, 96))


def test_published_constants():
    source = ProxyClipLogits(
        CLASSES, proxy=smooth, model=tiny_clip(), templates="single", cache_dir=None
    )
    options = source.options
    got = (options.short_side, options.window, options.stride, options.logit_scale)
    assert got == (336, 336, 112, 40.0)
    assert (source.beta, source.gamma, source.window_multiple) == (1.2, 3.0, 56)


@pytest.mark.parametrize(
    ("given", "model", "positions"),
    [
        ("dino-b8", "vit_base_patch8_224.dino", "reference"),
        ("dino-b16", "vit_base_patch16_224.dino", "reference"),
        ("dinov2-b14-reg", "vit_base_patch14_reg4_dinov2.lvd142m", "timm"),
        ("vit_small_patch8_224.dino", "vit_small_patch8_224.dino", "timm"),
    ],
)
def test_named_backbones(monkeypatch, given, model, positions):
    asked = {}
    tiny = TimmBackbone(tiny_models.tiny_vit())

    def load(name, positions="timm", device=None, dtype=None):
        asked.update(name=name, positions=positions, device=str(device), dtype=dtype)
        return tiny

    monkeypatch.setattr(
        proxyclip, "TimmBackbone", type("T", (), {"__new__": lambda c, *a, **o: load(*a, **o)})
    )
    proxyclip.as_backbone(given, torch.device("cpu"), "float16")
    placed = {"device": "cpu", "dtype": "float16"}
    assert asked == {"name": model, "positions": positions, **placed}


def eye(batch, size=(6, 10)):
    n = size[0] * size[1]
    return Attention(torch.eye(n).expand(len(batch), n, n), size)


class Source:
    """A custom attention source."""

    def __init__(self, attend):
        self.attention = attend


def test_identity_attention_gives_maskclip():
    wanted = make(functools.partial(clip.maskclip, reading="b")).logits(images()).values
    got = make(ProxyClipLogits, proxy=Source(eye)).logits(images()).values
    assert_close(got, wanted, atol=1e-6, rtol=1e-5)


def test_attention_as_factors_gives_the_same_logits():
    source = ViTAttention(tiny_models.tiny_vit(), factors=True)
    plain = Source(lambda batch: Attention(whole(source.attention(batch)), (6, 10)))
    got = make(ProxyClipLogits, proxy=source).logits(images()).values
    assert_close(got, make(ProxyClipLogits, proxy=plain).logits(images()).values)


def whole(attention):
    return torch.cat([rows for _, rows in attention.blocks()], dim=1)


def test_rows_of_attention_are_queries():
    """Every patch attends only to patch 7."""
    n = 60
    to_seven = torch.zeros(n, n)
    to_seven[:, 7] = 1
    proxy = Source(lambda batch: Attention(to_seven.expand(len(batch), n, n), (6, 10)))
    got = make(ProxyClipLogits, proxy=proxy).logits(images(1)).values.flatten(2)
    mask = make(functools.partial(clip.maskclip, reading="b")).logits(images(1)).values
    assert_close(got, mask.flatten(2)[..., 7:8].expand(-1, -1, n), atol=1e-6, rtol=1e-5)


def test_beta_and_gamma_are_not_used_with_attention():
    one = make(ProxyClipLogits, proxy=Source(eye)).logits(images()).values
    two = make(ProxyClipLogits, proxy=Source(eye), beta=0.1, gamma=9.0).logits(images()).values
    assert_close(one, two)


def test_the_mean_is_per_image():
    features = smooth(images(2, 24, 64))
    both = proxy_attention(features, 1.2, 3.0)
    assert_close(both[:1], proxy_attention(features[:1], 1.2, 3.0))
    assert_close(both[1:], proxy_attention(features[1:], 1.2, 3.0))


def test_one_colour():
    """Equal patches, all below 1.2 times their mean, would give 0 / 0."""
    assert_close(masked_softmax(torch.ones(1, 5, 5), 1.2, 3.0), torch.eye(5)[None])
    flat = make(ProxyClipLogits, proxy=lambda batch: torch.ones(len(batch), 3, 6, 10))
    assert_close(
        flat.logits(images(1)).values,
        make(ProxyClipLogits, proxy=Source(eye)).logits(images(1)).values,
    )


PROXIES = {
    "dino": lambda: tiny_models.tiny_vit("dino"),
    "dinov2 with registers": lambda: TimmBackbone(tiny_models.tiny_vit("registers")),
    "reference positions": lambda: TimmBackbone(tiny_models.tiny_vit(), positions="reference"),
    "convolutions": lambda: tiny_models.randomise(tiny_resnet(), std=0.1),
    "function": lambda: smooth_by_patches,
    "attention": lambda: ViTAttention(tiny_models.tiny_vit(), size=48),
    "factors": lambda: ViTAttention(tiny_models.tiny_vit(), factors=True),
}


def tiny_resnet():
    import timm

    return timm.create_model("resnet10t", pretrained=False, num_classes=0)


def smooth_by_patches(batch):
    return smooth(batch, tuple(side // 4 for side in batch.shape[-2:]))


@pytest.mark.parametrize("name", PROXIES)
@pytest.mark.parametrize("options", [{}, {"window": 32, "stride": 24, "short_side": 40}])
def test_conformance(name, options):
    check_logits_source(lambda: make(ProxyClipLogits, proxy=PROXIES[name](), **options))


@pytest.mark.parametrize("faithful", [True, False])
def test_conformance_with_and_without_faithful(faithful):
    options = {"window": 40, "stride": 24, "faithful": faithful}
    check_logits_source(lambda: make(ProxyClipLogits, proxy=tiny_models.tiny_vit(), **options))


def test_logits_are_on_the_proxys_grid():
    source = make(ProxyClipLogits, proxy=smooth)
    assert source.logits(images(2, 24, 64)).values.shape == (2, 4, 6, 16)
    one_for_all = make(ProxyClipLogits, proxy=functools.partial(smooth, size=(5, 5)))
    assert one_for_all.logits(images(2, 24, 64)).values.shape == (2, 4, 5, 5)


class Recording(TimmBackbone):
    """A backbone that records its input."""

    def features(self, batch, layer=-1):
        self.input = batch
        return super().features(batch, layer)


@pytest.mark.parametrize(
    ("faithful", "size"), [(True, (42, 70)), (False, (48, 80))]
)  # whole patches of 14 pixels, or of CLIP's 8
def test_input_of_the_proxy(faithful, size):
    backbone = Recording(tiny_models.tiny_vit("registers"))
    batch = images(1, 50, 83)
    make(ProxyClipLogits, proxy=backbone, faithful=faithful).logits(batch)
    assert_close(backbone.input, batch[..., : size[0], : size[1]], atol=1e-6, rtol=0)


def test_an_image_smaller_than_a_patch_of_the_proxy():
    backbone = Recording(tiny_models.tiny_vit("registers"))
    values = make(ProxyClipLogits, proxy=backbone).logits(images(1, 9, 30)).values
    assert backbone.input.shape[-2:] == (9, 28)
    assert values.shape == (1, 4, 1, 2)


@pytest.mark.parametrize(("family", "multiple"), [("dino", 8), ("registers", 56)])
def test_windows_without_faithful_have_whole_patches_of_both(family, multiple):
    proxy = tiny_models.tiny_vit(family)
    assert make(ProxyClipLogits, proxy=proxy, faithful=False).window_multiple == multiple
    assert make(ProxyClipLogits, proxy=proxy).window_multiple == 56


def test_windows_are_padded():
    """A window of 40 pixels is padded to 56 for the proxy, by 8 on each side."""
    backbone = Recording(tiny_models.tiny_vit("dino"))
    source = make(ProxyClipLogits, proxy=backbone, window=40, stride=40)
    batch = images(1, 40, 40)
    source.logits(batch)
    assert backbone.input.shape[-2:] == (56, 56)
    assert_close(backbone.input[..., 8:48, 8:48], batch, atol=1e-6, rtol=0)
    # Zeros after normalisation are the mean colour.
    assert_close(backbone.input[0, 0, 0, 0], torch.tensor(122.771 / 255), atol=1e-6, rtol=0)


def test_by_name():
    model, proxy = tiny_clip(), tiny_models.tiny_vit()
    source = make(functools.partial(load_logits, "proxyclip"), model=model, proxy=proxy)
    wanted = make(ProxyClipLogits, model=model, proxy=proxy).logits(images(1)).values
    assert_close(source.logits(images(1)).values, wanted)


class Both:
    def features(self, batch):
        return smooth(batch)

    def attention(self, batch):
        return eye(batch)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"proxy": 7}, TypeError, r"`proxy` must be a name, a model, a function.*; got int"),
        ({"proxy": Both()}, TypeError, r"`features` or `attention`, as only one.*got Both"),
        ({"proxy": "dino"}, ValueError, r"`proxy` must be one of \['dino-b16', .*got 'dino'"),
        ({"proxy": "./none"}, FileNotFoundError, r"must be an existing folder"),
        ({"beta": -0.1}, ValueError, r"`beta` must be a finite number >= 0; got -0.1"),
        ({"gamma": 0}, ValueError, r"`gamma` must be a finite number > 0; got 0"),
        ({"betta": 1.2}, TypeError, r"unexpected keyword argument 'betta'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        make(ProxyClipLogits, **({"proxy": smooth} | options))


@pytest.mark.parametrize(
    ("proxy", "error", "message"),
    [
        (lambda x: smooth(x).mT, ValueError, r"oriented like the image.*got 16 x 6 for 24 x 64"),
        (lambda x: smooth(x)[:1], ValueError, r"`features of the proxy` must have.*\[B=2, C"),
        (lambda x: smooth(x).flatten(2), ValueError, r"must have shape \[B=2, C, gh, gw\]"),
        (lambda x: smooth(x) / 0, ValueError, r"`features of the proxy` must be finite"),
        (lambda x: smooth(x).long(), TypeError, r"`features of the proxy` must be a floating"),
        (lambda x: None, TypeError, r"`features of the proxy` must be a torch.Tensor"),
        (Source(lambda x: eye(x, (16, 6))), ValueError, r"got 16 x 6 for 24 x 64 pixels"),
        (Source(lambda x: eye(x[:1])), ValueError, r"must give B=2 attention maps; got 1"),
    ],
)
def test_a_proxy_whose_grid_cannot_be_matched(proxy, error, message):
    source = make(ProxyClipLogits, proxy=proxy)
    with pytest.raises(error, match=message):
        source.logits(images(2, 24, 64))


def test_a_fixed_size_proxy():
    fixed = tiny_models.tiny_vit("dino", dynamic_img_size=False)
    with pytest.raises(ValueError, match=r"must have the size 224 x 224 that the model was made"):
        make(ProxyClipLogits, proxy=fixed).logits(images(1))
    sized = TimmBackbone(fixed, size=(224, 224))
    assert make(ProxyClipLogits, proxy=sized).logits(images(1)).values.shape == (1, 4, 28, 28)


def test_half_precision_tower():
    model, proxy = tiny_clip(), tiny_models.tiny_vit()
    wanted = make(ProxyClipLogits, model=model, proxy=proxy).logits(images(1)).values
    half = make(ProxyClipLogits, model=model.to(torch.bfloat16), proxy=proxy)
    # bfloat16 has three digits.
    assert float((half.logits(images(1)).values - wanted).abs().max()) < 0.1
