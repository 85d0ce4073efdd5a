"""Nothing is computed twice, and nothing after the last part that is needed.

A tower of L = 3 blocks, T = 1 + 16 tokens, C = 64 channels, heads of any number.
"""

import functools

import pytest
import torch

from adapters import tiny_models
from adapters.flops import flops, tokens_given
from adapters.tiny_clip import CLASSES, images, make, tiny_clip
from ovss_refine_adapters.attention.clip import CLIPAttention
from ovss_refine_adapters.attention.vit import ViTAttention
from ovss_refine_adapters.backbones.timm import TimmBackbone
from ovss_refine_adapters.logits import clip
from ovss_refine_adapters.logits.cass import CassLogits
from ovss_refine_adapters.logits.clip_dinoiser import ClipDinoiserLogits
from ovss_refine_adapters.logits.clip_surgery import ClipSurgeryLogits
from ovss_refine_adapters.logits.cliptrase import CliptraseLogits
from ovss_refine_adapters.logits.gem import GemLogits
from ovss_refine_adapters.logits.proxyclip import ProxyClipLogits
from ovss_refine_adapters.logits.rf_clip import RfClipLogits
from ovss_refine_adapters.logits.talk2dino import Talk2DinoLogits
from ovss_refine_adapters.logits.tcl import TclLogits

T, N, C, D = 17, 16, 64, 24
# Of one block, as multiply-adds: q, k or v; the output projection; the feed-forward part; one
# product of all tokens with all.
PART, FEED_FORWARD, PRODUCT = T * C * C, 8 * T * C * C, T * T * C
BLOCK = 4 * PART + FEED_FORWARD + 2 * PRODUCT
STEM, HEAD = N * C * 3 * 64, T * C * D
COSINES = N * D * 4  # prompts of `CLASSES`
# Name: what the last block needs, and what every other block has besides its own.
LAST = {
    "clip": (BLOCK, 0),
    "maskclip": (2 * PART + FEED_FORWARD, 0),
    "qq": (3 * PART + 2 * PRODUCT, 0),
    "kk": (3 * PART + 2 * PRODUCT, 0),
    "qq_mean": (3 * PART + 2 * PRODUCT, PRODUCT),
    "kk_mean": (3 * PART + 2 * PRODUCT, PRODUCT),
    "sclip": (4 * PART + FEED_FORWARD + 3 * PRODUCT, 0),
    "clearclip": (3 * PART + 2 * PRODUCT, 0),
    "naclip": (3 * PART + 2 * PRODUCT, 0),
}


@pytest.mark.parametrize("name", LAST)
def test_rewired_blocks_compute_only_what_they_need(name):
    source = make(getattr(clip, name))
    last, more = LAST[name]
    wanted = STEM + 2 * (BLOCK + more) + last + HEAD + COSINES
    assert flops(lambda: source.logits(images(1, 32, 32))) == 2 * wanted


@pytest.mark.parametrize(("layers", "similarity"), [((-1,), "qk"), ((0,), "kk"), ("all", "kk")])
def test_clip_attention_shares_the_projections_of_the_blocks(layers, similarity):
    source = CLIPAttention(tiny_clip(), layers=layers, similarity=similarity)
    blocks, maps = (0 if layers == (0,) else 2), (3 if layers == "all" else 1)
    product = N * T * C  # rows of patches only
    wanted = STEM + blocks * BLOCK + len(set(similarity)) * PART + maps * product
    assert flops(lambda: source.attention(images(1, 32, 32))) == 2 * wanted


def in_feed_forward(source, run):
    blocks = source.tower.visual.transformer.resblocks
    return tokens_given([block.mlp for block in blocks], run)


dino = functools.cache(lambda: TimmBackbone(tiny_models.tiny_vit("dino")))
heads = functools.cache(tiny_models.tiny_heads)
masker = functools.cache(tiny_models.tiny_masker)
# Tokens in the feed-forward part of each block.
GIVEN = {
    "gem": (functools.partial(GemLogits, blocks=2), [T, T, 1]),
    "clip-surgery": (functools.partial(ClipSurgeryLogits, blocks=2), [T, T, 1]),
    "cass": (lambda **more: CassLogits(proxy=dino(), **more), [T, T, 1]),
    "proxyclip": (lambda **more: ProxyClipLogits(proxy=dino(), **more), [T, T, 0]),
    "rf-clip": (functools.partial(RfClipLogits, sink_channels=(5,)), [T, T, T]),
    "cliptrase": (functools.partial(CliptraseLogits, regions="none"), [T, T, T]),
    "clip-dinoiser": (lambda **more: ClipDinoiserLogits(heads=heads(), **more), [T, T, N]),
    "tcl": (lambda **more: TclLogits(masker=masker(), **more), [T, T, N]),
}


@pytest.mark.parametrize("name", GIVEN)
def test_the_last_block_sees_only_tokens_that_are_used(name):
    producer, wanted = GIVEN[name]
    source = make(producer)
    assert in_feed_forward(source, lambda: source.logits(images(1, 32, 32))) == wanted


@pytest.mark.parametrize("name", ["cass", "rf-clip"])
def test_a_class_embedding_costs_one_token_in_the_last_block(name):
    source = make(GIVEN[name][0])
    pixels = source.prepare(images(1, 32, 32))
    with torch.no_grad():
        assert in_feed_forward(source, lambda: source.class_embedding(pixels)) == [T, T, 1]


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_a_vision_transformer_stops_at_queries_and_keys(family):
    model = tiny_models.tiny_vit(family)
    x = tiny_models.images()
    parts = [part for block in model.blocks for part in (block.attn.proj, block.mlp)]
    for layers, blocks in (((-1,), 2), ((1, -3), 1), ((0,), 0)):
        source = ViTAttention(model, layers=layers)
        given = tokens_given(parts, lambda source=source: source.attention(x))
        assert [count > 0 for count in given] == [True] * 2 * blocks + [False] * (6 - 2 * blocks)
    assert all(tokens_given(parts, lambda: TimmBackbone(model).features(x)))
    assert not any(tokens_given(parts[-2:], lambda: TimmBackbone(model).keys(x)))


def test_talk2dino_stops_at_queries_and_keys_of_its_attention():
    model = tiny_models.tiny_vit("registers")
    source = Talk2DinoLogits(
        CLASSES,
        projection=tiny_models.tiny_projection(),
        model=model,
        clip=tiny_clip(),
        short_side=None,
        window=None,
        templates="single",
        cache_dir=None,
    )
    mlps = [block.mlp for block in model.blocks]
    x = images(1, 28, 28)
    assert [n > 0 for n in tokens_given(mlps, lambda: source.attention(x))] == [True, True, False]
    assert all(tokens_given(mlps, lambda: source.logits(x)))
