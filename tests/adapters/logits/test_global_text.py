"""Text that depends on the image, and logits of the whole image."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from adapters.tiny_clip import CLASSES, images, make, tiny_clip
from ovss_refine.evaluation.dataset import list_datasets, load_dataset
from ovss_refine_adapters.logits import global_text as gt
from ovss_refine_adapters.logits.global_text import GlobalTextClip
from ovss_refine_adapters.logits.rf_clip import RfClipLogits


class Plain(GlobalTextClip):
    """The plain tower, which leaves only the text."""

    linkage = "complete"

    def encode(self, pixels):
        tower = self.tower
        x, _ = tower.blocks(tower.stem(pixels), 0, tower.layers)
        out = tower.head(x)
        return out[:, 1:].mT.unflatten(2, tower.grid(*pixels.shape[-2:])), out[:, 0]

    def class_embedding(self, pixels):
        return self.encode(pixels)[1]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def complete_or_ward(text, linkage, distance):
    """Merge the two nearest groups until the nearest are further apart than `distance`."""
    apart = 1 - text @ text.T
    groups = [[i] for i in range(len(text))]

    def between(a, b):
        if linkage == "complete":
            return max(apart[i, j] for i in a for j in b)
        # Ward from distances only: the closed form of the Lance-Williams recurrence.
        both, one, two = (
            sum(apart[i, j] ** 2 for i in x for j in y) for x, y in ((a, b), (a, a), (b, b))
        )
        n, m = len(a), len(b)
        spread = both / (n * m) - one / (2 * n * n) - two / (2 * m * m)
        return np.sqrt(2 * n * m / (n + m) * spread)

    while len(groups) > 1:
        pairs = [
            (between(a, b), i, j)
            for i, a in enumerate(groups)
            for j, b in enumerate(groups)
            if i < j
        ]
        least, i, j = min(pairs)
        if least > distance:
            break
        groups[i] += groups.pop(j)
    return {frozenset(g) for g in groups}


@pytest.mark.parametrize("linkage", ["ward", "complete"])
@pytest.mark.parametrize("distance", [0.0, 0.3, 0.8, 5.0])
def test_groups(rng, linkage, distance):
    text = unit(rng.normal(size=(12, 3)))
    numbers = gt.group(torch.from_numpy(text).float(), linkage, distance)
    assert numbers.dtype == torch.int64
    assert sorted(set(numbers.tolist())) == list(range(int(numbers.max()) + 1))
    found = {
        frozenset((numbers == g).nonzero().flatten().tolist())
        for g in range(int(numbers.max()) + 1)
    }
    assert found == complete_or_ward(text, linkage, distance)


def test_linkages_differ(rng):
    """Otherwise the test above would prove less than it seems to."""
    text = torch.from_numpy(unit(rng.normal(size=(12, 3)))).float()
    assert gt.group(text, "ward", 0.8).tolist() != gt.group(text, "complete", 0.8).tolist()


def test_equal_prompts_are_one_group():
    text = torch.nn.functional.normalize(torch.randn(3, 7), dim=1)[[0, 1, 0, 2, 1]]
    numbers = gt.group(text, "ward", 1e-6).tolist()
    assert numbers[0] == numbers[2] != numbers[3]
    assert numbers[1] == numbers[4]
    assert gt.group(text[:1], "ward", 0.1).tolist() == [0]


def reference(text, groups, whole, patches, alpha):
    text = text.copy()
    for g in set(groups):
        members = [i for i, x in enumerate(groups) if x == g]
        best = max(members, key=lambda i: whole[i])
        near = sorted(range(len(patches)), key=lambda p: -(patches[p] @ text[best]))[:2]
        moved = (1 - alpha) * text[best] + alpha * unit(patches[near].mean(axis=0))
        text[best] = unit(moved)
    return text


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_adjust(rng, alpha):
    text, patches = unit(rng.normal(size=(7, 5))), unit(rng.normal(size=(3, 11, 5)))
    groups, whole = [0, 1, 0, 2, 2, 2, 0], rng.normal(size=(3, 7))
    got = gt.adjust(
        torch.from_numpy(text),
        torch.tensor(groups),
        torch.from_numpy(whole),
        torch.from_numpy(patches),
        alpha,
    )
    wanted = np.stack([reference(text, groups, whole[i], patches[i], alpha) for i in range(3)])
    assert_close(got, torch.from_numpy(wanted))


def test_one_patch_alone():
    text = torch.eye(3)
    got = gt.adjust(text, torch.tensor([0, 0, 0]), text[:1], torch.ones(1, 1, 3) / 3**0.5, 1.0)
    assert_close(got[0, 0], torch.ones(3) / 3**0.5)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_scores(size):
    source = make(Plain, global_weight=0.3, patch_weight=0.2, cluster_distance=0.05)
    pixels = source.prepare(images(2, *size))
    with torch.no_grad():
        maps, own = source.encode(pixels)
        got = source.cosines(pixels, None)
    text = source.text.double().numpy()
    for i in range(2):
        patches = unit(maps[i].flatten(1).mT.double().numpy())
        whole = text @ unit(own[i].double().numpy())
        adjusted = reference(text, source.groups.tolist(), whole, patches, 0.2)
        wanted = 0.7 * adjusted @ patches.T + 0.3 * whole[:, None]
        assert_close(got[i].flatten(1).double(), torch.from_numpy(wanted), atol=1e-6, rtol=0)


def test_zero_weights_give_the_plain_tower():
    plain = make(Plain, global_weight=0.0, patch_weight=0.0)
    from ovss_refine_adapters.logits.clip import clip

    assert_close(plain.logits(images()).values, make(clip).logits(images()).values)


def test_class_embedding_of_the_whole_image_or_of_each_window():
    options = {"window": 32, "stride": 32, "global_weight": 1.0, "short_side": None}
    batch = images(1, 32, 64)
    whole = make(Plain, **options)
    values = whole.logits(batch).values
    embedding = whole.class_embedding(whole.prepare(batch)).detach()
    wanted = torch.nn.functional.normalize(embedding, dim=1) @ whole.text.T
    assert_close(values, wanted[:, :, None, None].expand_as(values))
    apart = make(Plain, global_from="window", **options)
    values = apart.logits(batch).values
    for left in (0, 32):
        pixels = apart.prepare(batch)[..., left : left + 32]
        embedding = apart.class_embedding(pixels).detach()
        wanted = torch.nn.functional.normalize(embedding, dim=1) @ apart.text.T
        assert_close(values[..., left : left + 32], wanted[:, :, None, None].expand(1, 4, 32, 32))


def test_defaults_are_those_of_context_and_near_the_median():
    known = [load_dataset(name).published("rf-clip").source for name in list_datasets()[:-1]]
    source = make(Plain)
    defaults = {"global_weight": source.global_weight, "patch_weight": source.patch_weight}
    defaults["cluster_distance"] = source.cluster_distance
    for name in ("context59", "context60"):
        assert load_dataset(name).published("cass").source.items() >= defaults.items()
    for key, value in defaults.items():
        assert abs(value - np.median([row[key] for row in known])) <= 0.02
    assert source.global_from == "image"
    assert source.groups.tolist() == gt.group(source.text, "complete", 0.09).tolist()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"global_weight": 1.5}, ValueError, r"`global_weight` must be in \[0, 1\]; got 1.5"),
        ({"patch_weight": -1}, ValueError, r"`patch_weight` must be in \[0, 1\]; got -1"),
        ({"cluster_distance": -1}, ValueError, r"`cluster_distance` must be a finite number >= 0"),
        ({"cluster_distance": "h"}, TypeError, r"`cluster_distance` must be a number; got 'h'"),
        ({"global_from": "crop"}, ValueError, r"one of \['image', 'window'\]; got 'crop'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        make(RfClipLogits, sink_channels=[0], **options)


def test_repeated_classes_raise_before_anything_is_loaded():
    with pytest.raises(ValueError, match="no name twice"):
        Plain([*CLASSES, "dog"], model=tiny_clip())
