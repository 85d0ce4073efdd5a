"""SC-CLIP: outliers, repair, the whole formula on grids of any shape, conformance."""

import functools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from adapters.tiny_clip import CLASSES, images, make, tiny_clip
from ovss_refine import load_logits
from ovss_refine.testing.logits import check_logits_source
from ovss_refine_adapters.logits.sc_clip import (
    PUBLISHED,
    Calibration,
    ScClipLogits,
    outlier_factor,
    repair,
)

FOUR = Calibration(pre_adjust=1, post_adjust=0, multi_start=0, multi_end=3, class_weight=0.3)


@functools.cache
def four_blocks():
    return tiny_clip(layers=4)


def make_four(**options):
    return make(ScClipLogits, **({"model": four_blocks(), "calibration": FOUR} | options))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference_factor(x, k, faithful):
    """The local outlier factor, one patch after another."""
    N = len(x)
    d = np.linalg.norm(x[:, None] - x, axis=-1)
    if faithful:
        d = d**2
    near = [sorted((j for j in range(N) if j != i), key=lambda j: d[i, j])[:k] for i in range(N)]
    far = [d[i, near[i][-1]] for i in range(N)]
    if faithful:
        return np.array([np.mean([far[i] / far[j] for j in near[i]]) for i in range(N)])
    density = [1 / np.mean([max(far[j], d[i, j]) for j in near[i]]) for i in range(N)]
    return np.array([np.mean([density[j] for j in near[i]]) / density[i] for i in range(N)])


def reference_repair(x, outliers, grid):
    h, w = grid
    out = x.copy()
    for p in np.flatnonzero(outliers):
        around = [
            y * w + u
            for y in range(p // w - 1, p // w + 2)
            for u in range(p % w - 1, p % w + 2)
            if 0 <= y < h and 0 <= u < w and not outliers[y * w + u]
        ]
        if around:
            out[p] = x[around].mean(axis=0)
    return out


def reference(source, pixels):
    """The features of one image, [N, D], in float64 from the blocks' outputs."""
    tower, how = source.tower, source.calibration
    last, grid = tower.layers - 1, tower.grid(*pixels.shape[-2:])

    def last_block(patches, first, guide):
        _, k, v = tower.qkv(last, torch.from_numpy(patches).float()[None])
        k, v = k[0].double().numpy(), v[0].double().numpy()
        mixed = [
            0.5 * (guide + softmax(k[a] @ k[a].T / np.sqrt(k.shape[-1]))) @ v[a]
            for a in range(len(k))
        ]
        y = tower.project(last, torch.from_numpy(np.stack(mixed)).float()[None])
        return y[0].double().numpy() + how.class_weight * first

    with torch.no_grad():
        states, x = [], tower.stem(pixels)
        for i in range(last):
            x = tower.block(i, x)
            states.append(x[0].double().numpy())
        x = states[-1]
        factor = reference_factor(x[1:], source.neighbours, source.options.faithful)
        outliers = factor > np.quantile(factor, 1 - source.contamination)
        f = unit(reference_repair(states[how.pre_adjust][1:], outliers, grid))
        similar = f @ f.T
        kept = similar * (similar >= source.similarity_threshold)
        smooth = kept @ reference_repair(x[1:], outliers, grid)
        smooth /= kept.sum(axis=1, keepdims=True) + 1e-6
        scaled = 3 * (similar - similar.mean())
        guide = softmax(np.where(scaled < 0, -np.inf, scaled))
        g = unit(states[how.post_adjust][1:])
        early = g @ g.T
        early = early * (early >= source.similarity_threshold)
        early /= early.sum(axis=1, keepdims=True) + 1e-6
        total = sum(states[i] for i in range(how.multi_start, how.multi_end))
        out = early @ last_block(smooth, x[:1], guide)
        out = out + early @ last_block(total[1:], total[:1], guide)
        return tower.head(torch.from_numpy(out).float()[None])[0], outliers


@pytest.mark.parametrize("faithful", [True, False])
@pytest.mark.parametrize("size", [(64, 64), (40, 88), (88, 40)])
def test_formula(size, faithful):
    source = make_four(faithful=faithful, neighbours=7, contamination=0.1)
    pixels = source.prepare(images(1, *size))
    wanted, outliers = reference(source, pixels)
    assert outliers.sum() == len(outliers) - 1 - int(0.9 * (len(outliers) - 1))
    with torch.no_grad():
        got = source.features(pixels)
    assert got.shape == (1, 24, size[0] // 8, size[1] // 8)
    assert_close(got[0].flatten(1).mT, wanted, atol=2e-5, rtol=0)


def test_every_step_makes_a_difference():
    """Otherwise the test above would prove less than it seems to."""
    wanted = make_four().logits(images(1)).values
    changed = {
        "repair": {"contamination": 0.5},
        "neighbours": {"neighbours": 3},
        "threshold": {"similarity_threshold": 0.7},
        "before": {"calibration": Calibration(**(fields(FOUR) | {"pre_adjust": 2}))},
        "after": {"calibration": Calibration(**(fields(FOUR) | {"post_adjust": 2}))},
        "sum": {"calibration": Calibration(**(fields(FOUR) | {"multi_end": 2}))},
        "class": {"calibration": Calibration(**(fields(FOUR) | {"class_weight": 0.0}))},
    }
    for what, options in changed.items():
        gap = float((make_four(**options).logits(images(1)).values - wanted).abs().max())
        assert gap > 1e-4, what


def fields(calibration):
    return {name: getattr(calibration, name) for name in calibration.__slots__}


@pytest.mark.parametrize("faithful", [True, False])
def test_outlier_factor(rng, faithful):
    x = rng.normal(size=(2, 40, 5))
    got = outlier_factor(torch.from_numpy(x).float(), 6, faithful)
    for i in range(2):
        wanted = torch.from_numpy(reference_factor(x[i], 6, faithful)).float()
        assert_close(got[i], wanted, atol=1e-5, rtol=1e-5)


def test_outlier_factor_finds_an_outlier(rng):
    x = torch.from_numpy(rng.normal(size=(1, 50, 4))).float()
    x[0, 17] += 20
    for faithful in (True, False):
        factor = outlier_factor(x, 10, faithful)
        assert int(factor.argmax()) == 17
        assert float(factor[0, 17]) > 3
        assert float(factor.median()) < 1.3


@pytest.mark.parametrize("faithful", [True, False])
def test_outlier_factor_of_equal_patches(faithful):
    factor = outlier_factor(torch.ones(1, 9, 4), 3, faithful)
    assert_close(factor, torch.ones(1, 9))
    two = torch.cat([torch.ones(1, 8, 4), torch.zeros(1, 1, 4)], dim=1)
    factor = outlier_factor(two, 3, faithful)
    assert bool(factor.isfinite().all())
    assert int(factor.argmax()) == 8


def test_fewer_patches_than_neighbours(rng):
    x = rng.normal(size=(1, 5, 3))
    got = outlier_factor(torch.from_numpy(x).float(), 30, True)
    wanted = torch.from_numpy(reference_factor(x[0], 4, True)).float()
    assert_close(got[0], wanted, atol=1e-5, rtol=1e-5)
    assert outlier_factor(torch.ones(2, 1, 3), 30, True).tolist() == [[1.0], [1.0]]
    assert make_four().logits(images(1, 9, 9)).values.shape == (1, 4, 1, 1)


@pytest.mark.parametrize("grid", [(3, 7), (7, 3), (1, 21)])
def test_repair(rng, grid):
    x = rng.normal(size=(2, 21, 4))
    outliers = rng.random((2, 21)) < 0.5
    got = repair(torch.from_numpy(x).float(), torch.from_numpy(outliers), grid)
    for i in range(2):
        wanted = torch.from_numpy(reference_repair(x[i], outliers[i], grid)).float()
        assert_close(got[i], wanted)


def test_repair_without_valid_neighbours_or_outliers():
    x = torch.arange(12.0).view(1, 6, 2)
    assert_close(repair(x, torch.ones(1, 6, dtype=torch.bool), (2, 3)), x)
    assert_close(repair(x, torch.zeros(1, 6, dtype=torch.bool), (2, 3)), x)


def test_published_constants():
    assert PUBLISHED[12] == Calibration(
        pre_adjust=8, post_adjust=3, multi_start=3, multi_end=10, class_weight=0.3
    )
    assert PUBLISHED[24] == Calibration(
        pre_adjust=16, post_adjust=6, multi_start=8, multi_end=19, class_weight=0.1
    )
    for layers in (12, 24):
        model = tiny_clip(layers=layers, width=32)
        source = ScClipLogits(CLASSES, model=model, templates="single", cache_dir=None)
        assert source.calibration == PUBLISHED[layers]
    options = source.options
    got = (options.short_side, options.window, options.stride, options.logit_scale)
    assert got == (336, 224, 112, 40.0)
    assert (source.similarity_threshold, source.neighbours, source.contamination) == (0.4, 30, 0.05)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"faithful": False},
        {"window": 40, "stride": 24, "short_side": 48},
        {"model": tiny_clip(layers=12), "calibration": None},
    ],
)
def test_conformance(options):
    check_logits_source(lambda: make_four(**options))


def test_one_colour():
    """All patches equal, except for their positions."""
    for shade in (0.0, 1.0):
        values = make_four().logits(torch.full((1, 3, 48, 80), shade)).values
        assert bool(values.isfinite().all())


def test_by_name():
    source = make(functools.partial(load_logits, "sc-clip"), model=four_blocks(), calibration=FOUR)
    assert_close(source.logits(images(1)).values, make_four().logits(images(1)).values)


def test_half_precision_tower():
    wanted = make_four(model=tiny_clip(layers=4)).logits(images(1)).values
    half = make_four(model=tiny_clip(layers=4).to(torch.bfloat16))
    got = half.logits(images(1)).values
    assert got.dtype == torch.float32
    # Rounding may choose other outliers.
    assert float((got - wanted).abs().mean()) < 0.1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"calibration": None}, ValueError, r"`calibration` must be given for a tower of 4 bl"),
        ({"calibration": PUBLISHED[12]}, ValueError, r"before the last of 4, 0 to 2; got 9"),
        ({"similarity_threshold": 1.1}, ValueError, r"`similarity_threshold` must be in \[0, 1\]"),
        ({"neighbours": 0}, ValueError, r"`neighbours` must be at least 1; got 0"),
        ({"contamination": 1.5}, ValueError, r"`contamination` must be in \[0, 1\]; got 1.5"),
        ({"thershold": 1}, TypeError, r"unexpected keyword argument 'thershold'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        make_four(**options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pre_adjust": -1}, ValueError, r"`pre_adjust` must be at least 0; got -1"),
        ({"post_adjust": 1.0}, TypeError, r"`post_adjust` must be a whole number; got 1.0"),
        ({"multi_end": 0}, ValueError, r"`multi_end` must be at least 1; got 0"),
        ({"class_weight": -1.0}, ValueError, r"`class_weight` must be a finite number >= 0"),
    ],
)
def test_bad_calibration(change, error, message):
    with pytest.raises(error, match=message):
        Calibration(**(fields(FOUR) | change))
