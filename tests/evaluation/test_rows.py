"""The rows: what each computes from one forward pass, and the published decision."""

import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovss_refine import Logits, RefineConfig, Refiner, joint_bilateral_upsample
from ovss_refine.attention import affinity
from ovss_refine.baseline.crf import DenseCrf
from ovss_refine.baseline.lposs import Lposs
from ovss_refine.baseline.pamr import pamr
from ovss_refine.baseline.rankseg import rankseg
from ovss_refine.evaluation import DECISIONS, RIVALS, ROWS
from ovss_refine.evaluation import rows as rows_module
from ovss_refine.evaluation.rows import (
    Baseline,
    choose,
    make_rows,
    without_background,
)
from ovss_refine.upsamplers.bilinear import bilinear_upsample
from ovss_refine.upsamplers.names import resolved

SIZE = (21, 34)
LACKING = {name: need for name, need in rows_module.NEEDS.items() if find_spec(need) is None}
PROPAGATIONS = [name for name in RIVALS if name not in DECISIONS]


@pytest.fixture
def given(rng):
    """Logits of 5 prompts of 3 classes, and attention, for two images."""
    values = torch.from_numpy(rng.normal(size=(2, 5, 3, 4)).astype(np.float32))
    features = torch.from_numpy(rng.normal(size=(2, 8, 3, 4)).astype(np.float32))
    images = torch.from_numpy(rng.random((2, 3, *SIZE)).astype(np.float32))
    return Logits(values, 4.0, [0, 0, 1, 2, 2]), affinity(features, 0.2), images


def by_hand(values, index, scale, threshold=0.0, area=None):
    """Decide pixel by pixel: softmax over prompts, best synonym, best class, background."""
    P = np.exp(scale * values - (scale * values).max(0))
    P /= P.sum(0)
    M = max(index) + 1
    best = np.stack([P[[k for k, c in enumerate(index) if c == m]].max(0) for m in range(M)])
    if area is not None:
        won = np.bincount(best.argmax(0).ravel(), minlength=M)
        for m in range(1, M):
            if won[m] <= area * won[1:].sum():
                best[m] = 0
    labels = best.argmax(0)
    labels[best.max(0) < threshold] = 0
    return labels


@pytest.mark.parametrize("options", [{}, {"threshold": 0.6}, {"area": 0.6}])
def test_baseline_is_the_published_decision(given, options):
    logits = given[0]
    baseline = Baseline(
        probability_threshold=options.get("threshold", 0.0), area_threshold=options.get("area")
    )
    labels = make_rows(RefineConfig(logit_scale=1.5), baseline)["baseline"](*given)
    large = F.interpolate(logits.values, SIZE, mode="bilinear").double().numpy()
    for i in range(2):
        wanted = by_hand(large[i], logits.prompt_index.tolist(), 6.0, **options)
        assert np.mean(labels[i].numpy() != wanted) < 0.005  # ties by rounding


def test_baseline_upsamples_twice_if_published(given):
    logits = given[0]
    once = F.interpolate(logits.values, (7, 11), mode="bilinear")
    twice = F.interpolate(once, SIZE, mode="bilinear").double().numpy()
    labels = Baseline(short_side=7, enlarged_twice=True).label(*given)
    assert not torch.equal(labels, Baseline(short_side=7).label(*given))
    for i in range(2):
        wanted = by_hand(twice[i], logits.prompt_index.tolist(), 4.0)
        assert np.mean(labels[i].numpy() != wanted) < 0.005


def test_baseline_refines_by_colour_if_published(given):
    logits, _, images = given
    large = F.interpolate(logits.values, SIZE, mode="bilinear")
    guide = F.interpolate(images, (7, 11), mode="bilinear")
    moved = pamr(large, guide, iterations=2).double().numpy()
    labels = Baseline(short_side=7, pamr_iterations=2).label(*given)
    assert not torch.equal(labels, Baseline(short_side=7).label(*given))
    for i in range(2):
        wanted = by_hand(moved[i], logits.prompt_index.tolist(), 4.0)
        assert np.mean(labels[i].numpy() != wanted) < 0.005


def test_upsampling_alone_is_confidence_along_edges(given):
    logits, _, images = given
    labels = make_rows(RefineConfig(sigma_range=0.3), Baseline())["upsampling"](*given)
    P = (4.0 * logits.values).softmax(1)
    classes = torch.stack([P[:, :2].sum(1), P[:, 2], P[:, 3:].sum(1)], dim=1)
    wanted = joint_bilateral_upsample(classes, images, 1.0, 0.3, 2).argmax(1)
    assert (labels != wanted).double().mean() < 0.005


@pytest.mark.parametrize("upsampler", ["bilinear", "guided", bilinear_upsample])
def test_upsampling_alone_is_the_upsampler_of_the_options(given, upsampler):
    logits, _, images = given
    config = RefineConfig(upsampler=upsampler)
    labels = make_rows(config, Baseline())["upsampling"](*given)
    P = (4.0 * logits.values).softmax(1)
    classes = torch.stack([P[:, :2].sum(1), P[:, 2], P[:, 3:].sum(1)], dim=1)
    wanted = resolved(upsampler)(classes, images).argmax(1)
    assert (labels != wanted).double().mean() < 0.005
    other = make_rows(RefineConfig(), Baseline())["upsampling"](*given)
    assert not torch.equal(labels, other)


@pytest.mark.parametrize("name", ["refined", "propagation", "anchored"])
def test_refined_rows_are_the_refiner_of_that_mode(given, name):
    options = {"tau": 0.2, "propagation_steps": 2}
    labels = make_rows(RefineConfig(mode="optimal_path", **options), Baseline())[name](*given)
    refiner = Refiner(mode="optimal_path" if name == "refined" else name, **options)
    assert torch.equal(labels, refiner(*given).labels)


@pytest.fixture
def small_rivals(monkeypatch):
    """Label propagation on images as they are: at a short side of 448 it takes seconds."""
    monkeypatch.setattr(rows_module, "Lposs", partial(Lposs, short_side=None))


@pytest.mark.usefixtures("small_rivals")
def test_all_rows_exist_and_differ(given):
    table = make_rows(RefineConfig(), Baseline())
    assert tuple(table) == (*ROWS, *RIVALS)
    labels = [row(*given) for name, row in table.items() if name not in LACKING]
    assert all(x.shape == (2, *SIZE) for x in labels)
    assert len({x.numpy().tobytes() for x in labels}) == len(labels)


@pytest.mark.usefixtures("small_rivals")
@pytest.mark.parametrize("name", PROPAGATIONS)
def test_rivals_are_label_propagation_along_the_same_attention(given, name):
    logits, attention, images = given
    labels = make_rows(RefineConfig(logit_scale=3.0), Baseline())[name](*given)
    wanted = Lposs(pixels=name == "lposs+", short_side=None)(logits, attention, images)
    assert torch.equal(labels, wanted.labels)


def test_rivals_have_the_published_options():
    table = make_rows(RefineConfig(), Baseline())
    assert [table[name].args for name in PROPAGATIONS] == [(Lposs(),), (Lposs(pixels=True),)]
    assert table["crf"].args == (DenseCrf(), 1.0)


@pytest.mark.parametrize("name", DECISIONS)
@pytest.mark.parametrize("scale", [3.0, "auto"])
def test_other_decisions_are_on_the_logits_alone(given, name, scale):
    if name in LACKING:
        pytest.skip(f"{LACKING[name]} is not installed ([rivals])")
    logits, _, images = given
    labels = make_rows(RefineConfig(logit_scale=scale), Baseline())[name](*given)
    scaled = replace(logits, scale=logits.scale * (1.0 if scale == "auto" else scale))
    wanted = rankseg(scaled, images) if name == "rankseg" else DenseCrf()(scaled, images).labels
    assert torch.equal(labels, wanted)


@pytest.mark.parametrize("name", DECISIONS)
def test_other_decisions_are_refused_where_they_are_not_installed(name, monkeypatch):
    monkeypatch.setitem(sys.modules, rows_module.NEEDS[name], None)
    table = make_rows(RefineConfig(), Baseline())
    with pytest.raises(ModuleNotFoundError, match=r"is not installed; run .*\[rivals\]'"):
        choose(table, ("baseline", name))
    assert list(choose(table, ("baseline",))) == ["baseline"]


def test_the_paper_s_row_reads_the_paper_whatever_the_options(given):
    config = RefineConfig(mode="fusion", tau=0.2, nms="absolute", vote=0.5)
    refiner = Refiner.paper("fusion", tau=0.2)
    assert torch.equal(make_rows(config, Baseline())["paper"](*given), refiner(*given).labels)


def test_a_calibrated_scale_is_that_of_every_row_but_the_baseline(given):
    logits, *rest = given
    auto = make_rows(RefineConfig(logit_scale="auto"), Baseline())
    usual = make_rows(RefineConfig(), Baseline())
    for name in ROWS:
        wanted = auto[name](logits, *rest)
        assert torch.equal(wanted, usual[name](logits, *rest)) == (name == "baseline")
        for scale in (0.3, 3.0):
            found = auto[name](replace(logits, scale=scale * logits.scale), *rest)
            assert (found != wanted).float().mean() < 0.005, name


def test_rows_are_chosen_by_name():
    table = make_rows(RefineConfig(), Baseline())
    assert list(choose(table, ("refined", "baseline"))) == ["baseline", "refined"]
    for wrong in ((), ("refine",)):
        with pytest.raises(ValueError, match="`rows` must be some of"):
            choose(table, wrong)


def test_the_background_can_be_dropped(given):
    logits = given[0]
    dropped = without_background(logits)
    assert dropped.prompt_index.tolist() == [0, 1, 1]
    torch.testing.assert_close(dropped.values, logits.values[:, 2:])
    plain = Logits(logits.values, 4.0, names=["a", "b", "c", "d", "e"])
    assert without_background(plain).names == ("b", "c", "d", "e")
    torch.testing.assert_close(without_background(plain).values, logits.values[:, 1:])
    with pytest.raises(ValueError, match="must have a class besides class 0"):
        without_background(Logits(logits.values[:, :1]))
