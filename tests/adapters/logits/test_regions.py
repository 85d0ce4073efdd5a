"""Clusters, regions, votes and means against loops, and CLIPtrase and LaVG built on them."""

import functools
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from adapters.tiny_clip import CLASSES, halves, images, make, tiny_clip
from ovss_refine import load_logits
from ovss_refine.baseline.decision import decide
from ovss_refine.logits import Logits
from ovss_refine.testing.logits import check_logits_source
from ovss_refine_adapters.logits import regions
from ovss_refine_adapters.logits.clip import sclip
from ovss_refine_adapters.logits.cliptrase import CliptraseLogits, affinity
from ovss_refine_adapters.logits.lavg import LavgLogits
from ovss_refine_adapters.logits.windows import upsample

TEXT = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
# The tiny model's patches form several clusters; and one, which rounding does not change.
SEVERAL = {"eps": 1.15, "min_samples": 2}
ONE = {"eps": 1.4, "min_samples": 3}


# Clusters.


def reference_clusters(points, eps, least):
    """The definition: core points that are density-connected, then border points, else noise."""
    N = len(points)
    near = np.linalg.norm(points[:, None] - points, axis=-1) <= eps
    core = near.sum(axis=1) >= least
    label = np.arange(N)
    for _ in range(N):  # connected components of the core points, by their least index
        for i, j in itertools.product(np.flatnonzero(core), repeat=2):
            if near[i, j]:
                label[i] = label[j] = min(label[i], label[j])
    order = sorted(set(label[core]))
    found = np.full(N, -1)
    found[core] = [order.index(x) for x in label[core]]
    for i in np.flatnonzero(~core):
        reached = found[near[i] & core]
        found[i] = reached.min() if len(reached) else -1
    return found


@pytest.mark.parametrize(("eps", "least"), [(0.3, 2), (0.5, 3), (0.8, 5), (0.01, 2), (9.0, 4)])
def test_clusters_equal_the_definition(eps, least):
    for seed in range(5):
        points = np.random.default_rng(seed).normal(size=(40, 2))
        wanted = reference_clusters(points, eps, least)
        assert regions.dbscan(torch.from_numpy(points), eps, least).tolist() == wanted.tolist()


def test_a_border_point_belongs_to_the_first_cluster_and_connects_nothing():
    line = torch.tensor([[0.0], [0.1], [0.2], [1.1], [2.0], [2.1], [2.2]])
    assert regions.dbscan(line, 0.91, 4).tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert regions.dbscan(line, 0.15, 3).tolist() == [0, 0, 0, -1, 1, 1, 1]
    assert regions.dbscan(line, 0.15, 4).tolist() == [-1] * 7
    assert regions.dbscan(line[:1], 0.1, 1).tolist() == [0]


# Regions.


@pytest.mark.parametrize("shape", [(9, 13), (5, 4), (1, 20), (12, 2)])
def test_median_filter(shape):
    image = np.random.default_rng(0).normal(size=shape)
    padded = np.pad(image, 3, mode="symmetric")
    wanted = [
        [np.median(padded[y : y + 7, x : x + 7]) for x in range(shape[1])] for y in range(shape[0])
    ]
    got = regions.median_filter(torch.from_numpy(image), 7)
    assert_close(got, torch.tensor(wanted, dtype=torch.float64))


def test_the_first_of_equals_is_the_greatest():
    values = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 3.0], [0.0, 1.0, 3.0]])
    assert regions.first_argmax(values).tolist() == [0, 0, 1]


def test_regions_follow_the_clusters():
    """Two clusters, the left and the right half of a 4 x 6 grid, each attending to itself."""
    h, w = 4, 6
    side = (torch.arange(h * w) % w >= w // 2).long()
    rows = (side[:, None] == side).float()
    found = regions.cluster_regions(rows, side, (h, w), (40, 60))
    assert found.tolist() == (torch.arange(60).expand(40, 60) >= 30).long().tolist()
    assert regions.cluster_regions(rows, torch.full((h * w,), -1), (h, w), (40, 60)) is None


def test_vote_and_mean_equal_loops():
    generator = torch.Generator().manual_seed(0)
    labels, areas = (torch.randint(n, (7, 9), generator=generator) for n in (3, 4))
    areas[areas == 2] = 3  # a region without pixels
    values = torch.randn(5, 7, 9, generator=generator)
    voted, mean = regions.vote(labels, areas), regions.average_in_regions(values, areas)
    for r in areas.unique():
        inside = areas == r
        votes = [int((labels[inside] == c).sum()) for c in range(3)]
        assert voted[inside].unique().tolist() == [votes.index(max(votes))]
        for k in range(5):
            wanted = values[k][inside].mean().expand(int(inside.sum()))
            assert_close(mean[k][inside], wanted)


def test_a_tie_is_won_by_the_smallest_label():
    labels = torch.tensor([[2, 1, 1, 2, 0, 5]])
    assert regions.vote(labels, torch.tensor([[0, 0, 0, 0, 1, 1]])).tolist() == [[1] * 4 + [0] * 2]


# CLIPtrase.


def reference(source, pixels):
    """Features [T, D] and self-correlation [T, T] of one image, in float64 from q, k and v."""
    tower = source.tower
    last = tower.layers - 1
    with torch.no_grad():
        x = tower.stem(pixels)
        for i in range(last - 1):
            x = tower.block(i, x)
        units = [F.normalize(u[0].double(), dim=-1) for u in tower.qkv(last - 1, x)]
        A = tower.heads
        correlation = sum(u[a] @ u[a].mT for u in units for a in range(A)) / (3 * A)
        x = tower.block(last - 1, x)
        heads = [u[0].double() for u in tower.qkv(last, x)]
        maps = sum((u @ u.mT / u.shape[-1] ** 0.5).softmax(dim=-1) for u in heads)
        assert_close(maps.sum(dim=-1), torch.full_like(maps[..., 0], 3.0))
        y = x + tower.project(last, (maps @ heads[2]).float()[None])
        block = tower.visual.transformer.resblocks[last]
        return tower.head(y + block.mlp(block.ln_2(y)))[0], correlation


@pytest.mark.parametrize("size", [(32, 32), (40, 88), (88, 40)])
def test_formula(size):
    source = make(CliptraseLogits, regions="none")
    pixels = source.prepare(images(1, *size))
    wanted, rows = reference(source, pixels)
    with torch.no_grad():
        patches, whole, correlation = source.encode(pixels)
    assert patches.shape == (1, 24, size[0] // 8, size[1] // 8)
    assert_close(patches[0].flatten(1).mT, wanted[1:], atol=2e-5, rtol=0)
    assert_close(whole[0], wanted[0], atol=2e-5, rtol=0)
    assert_close(correlation[0].double(), rows, atol=1e-5, rtol=0)
    less = (rows[1:, 1:] - rows[0, 1:]).clamp(min=0)
    assert_close(affinity(correlation[0]).double(), less, atol=1e-5, rtol=0)


def test_logits_by_region():
    """One image, not square, and whole: the mean and the vote of what `none` gives, by hand."""
    size = (48, 80)
    none = make(CliptraseLogits, regions="none", text_features=TEXT)
    pixels = none.prepare(images(1, *size))
    with torch.no_grad():
        rows = none.encode(pixels)[2][0]
    mean = make(CliptraseLogits, text_features=TEXT, **SEVERAL)
    found = mean.find_regions(rows, (6, 10), size)
    assert int(found.max()) >= 1  # several regions, otherwise this shows little
    full = upsample(none.logits(images(1, *size)).values, size)[0]
    got = mean.logits(images(1, *size)).values[0]
    vote = make(CliptraseLogits, text_features=TEXT, regions="vote", **SEVERAL)
    voted = vote.logits(images(1, *size))
    classes = torch.tensor([0, 0, 1, 2])[full.argmax(dim=0)]
    for r in found.unique():
        inside = found == r
        assert_close(got[:, inside], full[:, inside].mean(dim=1)[:, None].expand_as(got[:, inside]))
        winner = int(classes[inside].bincount().argmax())
        wanted = (torch.tensor([0, 0, 1, 2]) == winner).float()
        assert_close(voted.values[0][:, inside].unique(dim=1)[:, 0], wanted)
        assert set(decide(voted).labels[0][inside].tolist()) == {winner}


def test_without_clusters_nothing_changes():
    none = make(CliptraseLogits, regions="none", text_features=TEXT).logits(images(1))
    full = upsample(none.values, (48, 80))
    strict = {"eps": 1e-6, "min_samples": 5, "text_features": TEXT}
    assert_close(make(CliptraseLogits, **strict).logits(images(1)).values, full)
    voted = make(CliptraseLogits, regions="vote", **strict).logits(images(1))
    before = decide(Logits(full, 100.0, none.prompt_index)).labels
    assert torch.equal(decide(voted).labels, before)


@pytest.mark.parametrize("how", ["mean", "vote"])
def test_a_batch_equals_its_images_with_several_regions(how):
    source = make(CliptraseLogits, text_features=TEXT, regions=how, **SEVERAL)
    batch = images(3)
    both = source.logits(batch).values
    for i in range(3):
        assert_close(both[i], source.logits(batch[i : i + 1]).values[0])


def test_class_factor():
    plain, factor = (
        make(CliptraseLogits, regions="none", text_features=TEXT, class_factor=f)
        for f in (False, True)
    )
    pixels = plain.prepare(images(1))
    with torch.no_grad():
        whole = F.normalize(plain.encode(pixels)[1], dim=-1) @ plain.text.T
    wanted = plain.logits(images(1)).values * 100 * whole[:, :, None, None]
    assert_close(factor.logits(images(1)).values, wanted)


def test_defaults_are_those_of_336_pixels():
    source = CliptraseLogits(CLASSES, model=tiny_clip(), templates="single", cache_dir=None)
    how = source.options
    assert (how.short_side, how.window, how.logit_scale) == (336, None, 100.0)
    assert (source.regions, source.eps, source.min_samples) == ("mean", 1.1, 7)
    assert source.prepare(images(1, 60, 90)).shape == (1, 3, 336, 504)  # nothing is cropped


@pytest.mark.parametrize(
    "options",
    [
        {"regions": "none"},
        ONE,
        {"faithful": False, "short_side": 40, **ONE},
        {"window": 40, "stride": 24, "short_side": 48, **ONE},
    ],
)
def test_conformance_of_cliptrase(options):
    options = {"model": tiny_clip(), "text_features": TEXT} | options
    check_logits_source(lambda: make(CliptraseLogits, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": "all"}, r"`regions` must be one of .*'mean'.*; got 'all'"),
        ({"eps": 0}, r"`eps` must be .*; got 0"),
        ({"min_samples": 0}, r"`min_samples` must be at least 1; got 0"),
        ({"model": tiny_clip(layers=1)}, r"`model` must have two blocks or more; got 1"),
    ],
)
def test_bad_options_of_cliptrase(options, message):
    with pytest.raises(ValueError, match=message):
        make(CliptraseLogits, **options)


# LaVG.


def some_masks(images):
    """Three masks of each image that overlap; the third is what the others leave."""
    B, _, H, W = images.shape
    masks = torch.zeros(B, 3, H, W, dtype=torch.bool)
    masks[:, 0, : H // 2, : W // 2] = True
    masks[:, 1, H // 4 :, W // 4 : W // 2] = True
    masks[:, 2] = ~(masks[:, 0] | masks[:, 1])
    return masks


@pytest.mark.parametrize("background", [False, True])
def test_lavg_equals_loops(background):
    masks = some_masks(images(1))[0]
    full = upsample(make(sclip).logits(images(1)).values, (48, 80))[0]
    wanted = full.clone()
    for mask in reversed(masks):
        wanted[:, mask] = full[:, mask].mean(dim=1)[:, None].expand(-1, int(mask.sum()))
    if background:
        least = wanted.min()
        for k in (2, 3):  # the prompts of all classes but the first
            wanted[k][masks[-1]] = least
    got = make(LavgLogits, masks=some_masks, no_object_is_background=background)
    assert_close(got.logits(images(1)).values[0], wanted, atol=1e-6, rtol=0)


def test_pixels_of_no_mask_keep_their_logits():
    full = upsample(make(sclip).logits(images(1)).values, (48, 80))
    empty = make(LavgLogits, masks=lambda x: torch.zeros(1, 2, 48, 80, dtype=torch.bool))
    assert_close(empty.logits(images(1)).values, full)


def test_masks_are_resized_and_cut_into_windows():
    """In a window, a mask has the mean of its own part."""
    how = {"short_side": 24, "window": 24, "stride": 16}
    batch = images(1)
    got = make(LavgLogits, masks=halves, **how).logits(batch).values  # of 24 x 40 pixels
    source = make(sclip, **how)
    pixels = source.prepare(batch)
    parts = []
    for left in (0, 16):
        with torch.no_grad():
            cosines = source.cosines(pixels[..., left : left + 24], None)
        part = upsample(cosines, (24, 24))[0]
        mask = torch.arange(left, left + 24).expand(24, 24) < 20
        for inside in (mask, ~mask):
            part[:, inside] = part[:, inside].mean(dim=1)[:, None].expand(-1, int(inside.sum()))
        parts.append(F.pad(part, (left, 16 - left)))
    count = torch.ones(40)
    count[16:24] = 2
    assert_close(got[0], sum(parts) / count, atol=1e-6, rtol=0)


def test_images_of_a_batch_may_have_different_numbers_of_masks():
    def masks(batch):
        found = some_masks(batch)
        return [found[i] if i == 0 else halves(batch)[i] for i in range(len(batch))]

    batch = images(2)
    for background in (False, True):
        how = {"no_object_is_background": background}
        both = make(LavgLogits, masks=masks, **how).logits(batch).values
        one = make(LavgLogits, masks=some_masks, **how).logits(batch[:1]).values
        two = make(LavgLogits, masks=halves, **how).logits(batch[1:]).values
        assert_close(both, torch.cat([one, two]))


def test_settings_of_lavg_are_those_of_sclip():
    source = make(functools.partial(load_logits, "lavg"), masks=halves)
    assert source.last_block == make(sclip).last_block
    assert LavgLogits.defaults == {}  # as `sclip`, which gives no options of its own


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"faithful": False, "short_side": 40, "no_object_is_background": True},
        {"window": 40, "stride": 24, "short_side": 48},
    ],
)
def test_conformance_of_lavg(options):
    options = {"model": tiny_clip(), "text_features": TEXT, "masks": some_masks} | options
    check_logits_source(lambda: make(LavgLogits, **options))


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        (None, ValueError, "`masks` must be a function of images or a folder; got None"),
        (lambda x: halves(x)[:1], ValueError, r"`masks` must return masks for each of B=2 images"),
        (lambda x: halves(x).float(), TypeError, "`masks` must return bool tensors; got torch.flo"),
        (lambda x: [[True]] * 2, TypeError, "`masks` must return bool tensors; got list"),
        (lambda x: halves(x)[..., 1:], ValueError, r"`masks` must have shape \[S, H=48, W=80\]"),
    ],
)
def test_bad_masks(masks, error, message):
    with pytest.raises(error, match=message):
        make(LavgLogits, masks=masks).logits(images(2))
