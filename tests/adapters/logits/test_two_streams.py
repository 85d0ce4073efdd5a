"""GEM and CLIP Surgery: the formulas written out, square images, maps, conformance."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from adapters.tiny_clip import CLASSES, images, make, tiny_clip
from ovss_refine import load_logits
from ovss_refine.testing.logits import check_logits_source
from ovss_refine_adapters.logits import clip_surgery, gem, two_streams
from ovss_refine_adapters.logits.clip import clip
from ovss_refine_adapters.logits.clip_surgery import ClipSurgeryLogits
from ovss_refine_adapters.logits.gem import GemLogits
from ovss_refine_adapters.text import as_templates

PRODUCERS = {"gem": GemLogits, "clip-surgery": ClipSurgeryLogits}


def make_two(producer, **options):
    return make(producer, **({"blocks": 2} | options))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def gem_heads(source, z, q, k, v):
    """What GEM's attention gives, [A, T, d], for normalised tokens z [T, C]."""
    d = v.shape[-1]
    tau = source.temperature
    if tau is None:
        tau = np.mean([np.linalg.norm(token) for token in z]) / np.sqrt(d)
    total = 0
    for u in (v, k, q):
        for _ in range(source.iterations):
            u = unit(u)
            u = softmax(tau * u @ u.swapaxes(-1, -2)) @ u
        u = unit(u)
        total = total + softmax(tau * u @ u.swapaxes(-1, -2)) @ v
    return total / 3


def surgery_heads(source, z, q, k, v):
    return softmax(v @ v.swapaxes(-1, -2) / np.sqrt(v.shape[-1])) @ v


HEADS = {"gem": gem_heads, "clip-surgery": surgery_heads}


def reference(name, source, pixels):
    """Patch features [N, D] and class embedding [D] of one image; the second stream in float64."""
    tower = source.tower
    grid = tower.grid(*pixels.shape[-2:])
    with torch.no_grad():
        x = tower.stem(pixels, source.positions(grid))
        for i in range(tower.layers):
            if i == tower.layers - source.blocks:
                y = x[0].double().numpy()
            block = tower.visual.transformer.resblocks[i]
            if i >= tower.layers - source.blocks:
                z = block.ln_1(x)[0].double().numpy()
                q, k, v = (u[0].double().numpy() for u in tower.qkv(i, x))
                heads = HEADS[name](source, z, q, k, v)
                joined = heads.swapaxes(0, 1).reshape(len(z), -1)
                out = block.attn.out_proj
                y = y + joined @ out.weight.double().numpy().T + out.bias.double().numpy()
            x = block(x)
        return tower.head(torch.from_numpy(y).float())[1:], tower.head(x)[0, 0]


@pytest.mark.parametrize("size", [(32, 32), (40, 88), (88, 40)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gem", {}),
        ("gem", {"iterations": 0}),
        ("gem", {"iterations": 3, "blocks": 3}),
        ("gem", {"temperature": 7.0}),
        ("clip-surgery", {}),
        ("clip-surgery", {"blocks": 3}),
    ],
)
def test_formula(name, options, size):
    source = make_two(PRODUCERS[name], **options)
    pixels = source.prepare(images(1, *size))
    wanted, whole = reference(name, source, pixels)
    with torch.no_grad():
        features = source.features(pixels)
        assert features.shape == (1, 24, size[0] // 8, size[1] // 8)
        assert_close(features[0].flatten(1).mT, wanted, atol=2e-5, rtol=0)
        if name == "clip-surgery":
            assert_close(source.encode(pixels)[1][0], whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", PRODUCERS)
def test_without_a_second_stream_it_is_clip(name):
    """On the native grid, where all rules for positions agree."""
    source, plain = make(PRODUCERS[name], blocks=0), make(clip)
    pixels = source.prepare(images(2, 32, 32))
    with torch.no_grad():
        assert_close(source.features(pixels), plain.features(pixels))


def test_every_option_of_gem_makes_a_difference():
    wanted = make_two(GemLogits).logits(images(1)).values
    for options in ({"blocks": 1}, {"iterations": 0}, {"temperature": 3.0}):
        gap = (make_two(GemLogits, **options).logits(images(1)).values - wanted).abs().max()
        assert float(gap) > 1e-4, options


@pytest.mark.parametrize("name", PRODUCERS)
def test_faithful_images_are_squares_by_pillow(name):
    """One colour channel at a time, as an image of Pillow: within one grey level of it."""
    source = make_two(PRODUCERS[name], short_side=40)
    batch = (images(1, 48, 80) * 255).round() / 255
    got = source.resized(batch)
    assert got.shape == (1, 3, 40, 40)
    array = (batch[0] * 255).round().byte().permute(1, 2, 0).numpy()
    wanted = Image.fromarray(array).resize((40, 40), Image.Resampling.BICUBIC)
    wanted = torch.from_numpy(np.array(wanted)).permute(2, 0, 1)
    levels = got[0] * 255
    assert_close(levels, levels.round())
    assert float((levels - wanted).abs().max()) <= 1
    assert float((levels - wanted).abs().mean()) < 0.1
    assert source.logits(batch).values.shape == (1, 4, 5, 5)
    other = make_two(PRODUCERS[name], short_side=40, faithful=False)
    assert other.logits(batch).values.shape == (1, 4, 5, 8)


@pytest.mark.parametrize("name", PRODUCERS)
def test_mean_and_deviation_are_not_rounded(name):
    source = make_two(PRODUCERS[name])
    wanted = 255 * torch.tensor([0.48145466, 0.4578275, 0.40821073])
    assert_close(source._mean.flatten(), wanted, rtol=0, atol=1e-5)


def test_surgery_adds_the_table_unchanged_only_if_faithful():
    """2 x 8 patches are as many as 4 x 4."""
    faithful, other = (make_two(ClipSurgeryLogits, faithful=f) for f in (True, False))
    table = faithful.tower.visual.positional_embedding.detach()
    assert_close(faithful.positions((2, 8)), table)
    assert float((other.positions((2, 8)) - table).detach().abs().max()) > 0.1
    for grid in ((4, 4), (3, 7)):
        assert_close(faithful.positions(grid), other.positions(grid))


def test_weights_and_feature_surgery_written_out():
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(2, 5, 3, 4, generator=generator) - 0.3
    whole = torch.rand(2, 5, generator=generator) - 0.3
    w = clip_surgery.weights(whole)
    assert_close(w.mean(dim=1), torch.ones(2))
    for b in range(2):
        e = [np.exp(2 * float(s)) for s in whole[b]]
        assert_close(w[b], torch.tensor([5 * x / sum(e) for x in e]).float())
    got = clip_surgery.feature_surgery(cosines, w)
    for b, n, m in np.ndindex(2, 3, 4):
        weighted = [float(w[b, q] * cosines[b, q, n, m]) for q in range(5)]
        wanted = torch.tensor([x - sum(weighted) / 5 for x in weighted])
        assert_close(got[b, :, n, m], wanted, atol=1e-6, rtol=0)


def test_redundant_features_are_subtracted_as_a_unit_vector():
    given = torch.randn(24, generator=torch.Generator().manual_seed(3))
    source, plain = make_two(ClipSurgeryLogits, redundant=given), make_two(ClipSurgeryLogits)
    pixels = source.prepare(images(1))
    with torch.no_grad():
        patches = torch.nn.functional.normalize(plain.features(pixels), dim=1)
        wanted = torch.einsum("bdhw,kd->bkhw", patches, plain.text)
        shared = torch.einsum("bdhw,d->bhw", patches, given / given.norm())
    got = source.logits(images(1)).values
    assert_close(got, wanted - shared[:, None], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("module", "stretched_first"), [(gem, False), (clip_surgery, True)])
def test_heat_maps(module, stretched_first):
    values = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    maps = module.heat_maps(values, (9, 11))
    assert maps.shape == (2, 3, 9, 11)
    assert float(maps.min()) >= 0
    assert float(maps.max()) <= 1
    tops = maps[0].flatten(1).amax(dim=1)
    assert bool((tops < 1).any()) == stretched_first  # else the whole range of pixels is used


def test_a_constant_map_is_stretched_to_zero():
    maps = torch.stack([torch.full((4, 5), 0.7), torch.arange(20.0).view(4, 5)])
    wanted = torch.stack([torch.zeros(4, 5), torch.arange(20.0).view(4, 5) / 19])
    assert_close(two_streams.stretch(maps), wanted)


def test_published_defaults():
    names = {"gem": (448, 1, "single"), "clip-surgery": (512, 85, "imagenet-scene")}
    for name, (side, count, templates) in names.items():
        source = make_two(PRODUCERS[name], templates=templates)
        assert len(as_templates(PRODUCERS[name].defaults["templates"])) == count
        usual = PRODUCERS[name].defaults
        assert (usual["short_side"], usual["window"], usual["logit_scale"]) == (side, None, 100.0)
        with pytest.raises(ValueError, match="`blocks` must be at most the tower's number of bloc"):
            make(PRODUCERS[name])  # six, and the tiny tower has three
        assert source.classes.names == ("cat", "dog", "grass")


@pytest.mark.parametrize("name", PRODUCERS)
@pytest.mark.parametrize(
    "options",
    [{}, {"faithful": False, "short_side": 40}, {"window": 40, "stride": 24, "short_side": 48}],
)
def test_conformance(name, options):
    # Texts that differ: feature surgery subtracts what they share, and rounding stays.
    text = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
    options = options | {"model": tiny_clip(), "text_features": text}
    check_logits_source(lambda: make_two(PRODUCERS[name], **options))


@pytest.mark.parametrize("name", PRODUCERS)
def test_by_name_and_for_one_colour(name):
    source = make_two(functools.partial(load_logits, name))
    wanted = make_two(PRODUCERS[name]).logits(images(1)).values
    assert_close(source.logits(images(1)).values, wanted)
    for shade in (0.0, 1.0):
        assert bool(source.logits(torch.full((1, 3, 48, 80), shade)).values.isfinite().all())


@pytest.mark.parametrize("name", PRODUCERS)
def test_half_precision_tower(name):
    wanted = make_two(PRODUCERS[name], model=tiny_clip()).logits(images(1)).values
    half = make_two(PRODUCERS[name], model=tiny_clip().to(torch.bfloat16))
    got = half.logits(images(1)).values
    assert got.dtype == torch.float32
    assert float((got - wanted).abs().max()) < 0.1


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("gem", {"blocks": 4}, ValueError, r"number of blocks, 3; got 4"),
        ("gem", {"blocks": -1}, ValueError, r"`blocks` must be at least 0; got -1"),
        ("gem", {"iterations": 1.5}, TypeError, r"`iterations` must be a whole number; got 1.5"),
        ("gem", {"temperature": 0.0}, ValueError, r"`temperature` must be .*; got 0.0"),
        ("gem", {"depth": 7}, TypeError, r"unexpected keyword argument 'depth'"),
        ("clip-surgery", {"redundant": torch.ones(3)}, ValueError, r"`redundant` must .* \[D=24\]"),
        (
            "clip-surgery",
            {"redundant": torch.full((24,), torch.nan)},
            ValueError,
            "`redundant` must ",
        ),
        ("clip-surgery", {"redundant": torch.ones(24).long()}, TypeError, "`redundant` must "),
    ],
)
def test_bad_options(name, options, error, message):
    with pytest.raises(error, match=message):
        make_two(PRODUCERS[name], **options)


def test_one_prompt_is_left_with_nothing_by_feature_surgery():
    values = make_two(ClipSurgeryLogits, classes=CLASSES[1:2]).logits(images(1)).values
    assert float(values.abs().max()) == 0
