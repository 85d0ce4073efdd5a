"""Sources of logits that give attention too: one pass, the same results, never those of before."""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from adapters import tiny_models
from adapters.flops import tokens_given
from adapters.model_folders import open_clip_folder, timm_folder
from adapters.tiny_clip import CLASSES, halves, images, make, tiny_clip
from ovss_refine import Segmenter, load_attention, load_logits
from ovss_refine.evaluation import evaluate
from ovss_refine.testing.attention import check_attention_source
from ovss_refine.testing.logits import check_logits_source
from ovss_refine_adapters.attention.clip import CLIPAttention
from ovss_refine_adapters.attention.vit import ViTAttention
from ovss_refine_adapters.logits import clip
from ovss_refine_adapters.logits.gem import GemLogits
from ovss_refine_adapters.logits.lavg import LavgLogits
from ovss_refine_adapters.logits.proxyclip import ProxyClipLogits

PLAIN = {"short_side": None, "templates": "single", "cache_dir": None}


@functools.cache
def model():
    return tiny_clip()


@functools.cache
def vit():
    return tiny_models.tiny_vit("registers")


def of_clip(name, **options):
    return make(getattr(clip, name), model=model(), **options)


SOURCES = {
    **{
        name: functools.partial(of_clip, name)
        for name in ("clip", "maskclip", "sclip", "clearclip", "naclip", "qq", "kk_mean")
    },
    "lavg": functools.partial(make, LavgLogits, masks=halves),
    "proxyclip": lambda **more: make(ProxyClipLogits, model=model(), proxy=vit(), **more),
    "proxyclip, not faithful": lambda **more: make(
        ProxyClipLogits, model=model(), proxy=vit(), faithful=False, **more
    ),
}


def passes(source, run):
    """Count how often the first layer of each model of a source runs."""
    backbone = getattr(source, "backbone", None)
    layers = [source.tower.visual.conv1]
    layers += [] if backbone is None else [backbone.model.patch_embed]
    given = [[] for _ in layers]
    handles = [
        layer.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        for layer, seen in zip(layers, given, strict=True)
    ]
    run()
    for handle in handles:
        handle.remove()
    return [len(seen) for seen in given]


@pytest.mark.parametrize("name", SOURCES)
def test_one_pass_gives_what_two_give(name):
    source, batch = SOURCES[name](), images(2, 56, 112)
    logits, attention = source.logits_and_attention(batch)
    assert_close(logits.values, source.logits(batch).values, atol=1e-6, rtol=0)
    assert_close(attention.weights, source.attention(batch).weights, atol=1e-6, rtol=0)
    once = passes(source, lambda: source.logits_and_attention(batch))
    apart = passes(source, lambda: (source.logits(batch), source.attention(batch)))
    assert set(once) == {1}
    assert apart[-1] == 2


@pytest.mark.parametrize("name", ["kk_mean", "sclip", "maskclip"])
def test_the_attention_of_clip_is_that_of_its_own_source(name):
    source, batch = SOURCES[name](faithful=False), images(2, 56, 112)
    wanted = CLIPAttention(model(), faithful=False).attention(batch)
    got = source.attention(batch)
    assert got.grid == wanted.grid == (7, 14)
    assert_close(got.weights, wanted.weights, atol=1e-6, rtol=0)


def test_the_attention_of_a_proxy_is_that_of_its_own_source():
    source, batch = SOURCES["proxyclip"](), images(2, 56, 112)
    got, wanted = source.attention(batch), ViTAttention(vit()).attention(batch)
    assert got.grid == wanted.grid == tuple(source.logits(batch).values.shape[2:]) == (4, 8)
    # Images are normalised for CLIP, and back for the proxy.
    assert_close(got.weights, wanted.weights, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["kk_mean", "lavg", "proxyclip"])
def test_conformance_of_both_sides(name):
    check_attention_source(SOURCES[name])
    check_logits_source(SOURCES[name])


def test_with_windows_the_attention_is_of_the_whole_image():
    source, batch = SOURCES["sclip"](window=32, stride=16), images(1, 48, 80)
    logits, attention = source.logits_and_attention(batch)
    assert logits.values.shape[2:] == (48, 80)
    assert attention.grid == (6, 10)
    assert torch.equal(attention.weights, SOURCES["sclip"]().attention(batch).weights)


def test_an_image_that_changed_in_place_is_computed_anew():
    source, batch = SOURCES["kk_mean"](), images(1, 56, 112)
    before = source.logits_and_attention(batch)
    batch.copy_(1 - batch)
    after, wanted = source.logits_and_attention(batch), SOURCES["kk_mean"]()
    assert not torch.allclose(before[1].weights, after[1].weights, atol=1e-4)
    assert torch.equal(after[0].values, wanted.logits_and_attention(batch)[0].values)
    assert torch.equal(after[1].weights, wanted.logits_and_attention(batch)[1].weights)


def test_threads_get_their_own_results():
    source = SOURCES["proxyclip"]()
    batches = [images(1, 56, 112) * scale for scale in (1.0, 0.7, 0.4, 0.1)]
    wanted = [source.logits_and_attention(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(source.logits_and_attention, batches * 3))
    for one, two in zip(wanted * 3, found, strict=True):
        assert torch.equal(one[0].values, two[0].values)
        assert torch.equal(one[1].weights, two[1].weights)


def test_a_proxy_that_is_no_transformer_gives_no_attention():
    proxies = {
        "an object of your own": lambda batch: batch[:, :, ::8, ::8],
        "with none": tiny_models.timm.create_model("convnext_atto", num_classes=0).eval(),
    }
    for says, proxy in proxies.items():
        source = make(ProxyClipLogits, model=model(), proxy=proxy)
        for method in (source.attention, source.logits_and_attention):
            with pytest.raises(ValueError, match=says):
                method(images(1, 64, 64))


@pytest.fixture
def folder(tmp_path):
    return open_clip_folder(tmp_path)


def test_a_segmenter_takes_the_logits_own_attention_in_one_pass(folder, tmp_path):
    options = {"logits": "kk-mean", "logits_options": {"model": folder, **PLAIN}, "device": "cpu"}
    photo = images(1, 56, 112)[0]
    segment = Segmenter(attention="own", **options)
    assert segment.to_load() == {"kk-mean": "not stated"}
    segment.prepare()  # without labels there is nothing to load
    assert segment.to_load() == {"kk-mean": "not stated"}
    got = segment(photo, CLASSES)
    assert segment.to_load() == {}
    source = load_logits("kk-mean", classes=CLASSES, model=folder, **PLAIN)
    assert torch.equal(got.labels, Segmenter(source, source, device="cpu")(photo, None).labels)
    assert {"logits", "attention"} <= got.seconds.keys()
    held = segment._logits._source
    assert passes(held, lambda: segment(photo, CLASSES)) == [1]
    assert passes(held, lambda: segment.with_options(mode="kl")(photo, CLASSES)) == [1]
    timm_folder(tmp_path)
    more = {"attention": "timm", "attention_options": {"model": tmp_path, "size": 56}}
    other = segment.with_options(**more)
    assert other._logits is segment._logits
    assert passes(held, lambda: other(photo, CLASSES)) == [1]
    again = other.with_options(attention="own", attention_options=None)
    assert again._attention is again._logits is segment._logits


def test_own_attention_needs_a_source_that_gives_it(folder):
    options = {"model": folder, "blocks": 2, **PLAIN}
    with pytest.raises(ValueError, match=r"for the logits 'gem', which give no .*; got 'own'"):
        Segmenter("gem", "own", logits_options=options, device="cpu")(images()[0], CLASSES)
    with pytest.raises(ValueError, match="for the logits 'GemLogits', which give no attention"):
        Segmenter(make(GemLogits, blocks=2), "own", device="cpu")(images()[0], None)
    with pytest.raises(
        TypeError, match=r"`attention_options` must be empty with 'own'; got .'size"
    ):
        Segmenter("kk-mean", "own", attention_options={"size": 56})
    with pytest.raises(ValueError, match=r"`attention` must be one of .* got 'own'"):
        load_attention("own")


def test_an_evaluation_takes_the_logits_own_attention_in_one_pass(folder):
    names, x = ["cat", "dog", "grass"], images(2, 56, 112)
    mask = np.arange(56 * 112).reshape(56, 112) % 3
    pairs = [(image, mask) for image in x]
    options = {"dataset": pairs, "names": names, "rows": ["refined"]}
    given = {"model": model(), **PLAIN}
    results = []
    one = functools.partial(evaluate, "kk-mean", "own", logits_options=given, device="cpu")
    blocks = model().visual.transformer.resblocks
    first = tokens_given([blocks[0].mlp], lambda: results.append(one(**options)))
    source = load_logits("kk-mean", classes=names, **given)
    apart = evaluate(source, load_logits("kk-mean", classes=names, **given), **options)
    assert first == [2 * (1 + 7 * 14)]
    assert results[0].miou == apart.miou
    with pytest.raises(TypeError, match="`attention_options` must be empty with the attention"):
        one(attention_options={"size": 56}, **options)
    with pytest.raises(ValueError, match="for the logits 'gem', which give no attention"):
        evaluate("gem", "own", logits_options=given | {"blocks": 2}, **options)
