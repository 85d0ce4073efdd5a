"""CLIP-DINOiser: the whole formula, padding, windows, background, files, conformance."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from adapters import tiny_models
from adapters.tiny_clip import CLASSES, images, make, tiny_clip
from ovss_refine import load_logits
from ovss_refine.baseline.decision import decide
from ovss_refine.registry import MissingWeightsError
from ovss_refine.testing.logits import check_logits_source
from ovss_refine_adapters.logits.clip import maskclip
from ovss_refine_adapters.logits.clip_dinoiser import (
    ClipDinoiserLogits,
    DinoiserHeads,
    add_background,
    as_heads,
    pool,
)
from ovss_refine_adapters.logits.windows import slide, upsample


@functools.cache
def heads():
    return tiny_models.tiny_heads()


def make_dinoiser(classes=CLASSES, **options):
    return make(ClipDinoiserLogits, classes, **({"heads": heads()} | options))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference(source, pixels):
    """Averaged features [N, D] and logits of foreground [N] of one image, in float64 loops."""
    h, w = source.tower.grid(*pixels.shape[-2:])
    with torch.no_grad():
        patches, read = (x[0].double().numpy() for x in source.patches(pixels))
    held = {name: x.double().numpy() for name, x in source.heads.state_dict().items()}
    W, bias = held["obj_proj.weight"], held["obj_proj.bias"]
    grid = read.reshape(h, w, -1)
    embedded = []
    for y in range(h):
        for x in range(w):
            total = bias.copy()
            for i in range(3):
                for j in range(3):
                    row, column = min(max(y + i - 1, 0), h - 1), min(max(x + j - 1, 0), w - 1)
                    total = total + W[:, :, i, j] @ grid[row, column]
            embedded.append(total)
    C = unit(np.array(embedded)) @ unit(np.array(embedded)).T
    C[source.similarity_threshold > C] = 0
    assert 0.2 < (C == 0).mean() < 0.8  # so that both sides of the threshold occur
    pooled = [
        sum(c * m for c, m in zip(row, patches, strict=True)) / (row.sum() + 1e-6) for row in C
    ]
    v, b = held["bkg_decoder.weight"][0, :, 0, 0], held["bkg_decoder.bias"][0]
    return np.array(pooled), unit(read) @ v + b


@pytest.mark.parametrize("size", [(32, 32), (48, 80), (16, 64)])
def test_features_equal_the_formula(size):
    source = make_dinoiser()
    batch = source.prepare(images(2, *size))
    with torch.no_grad():
        features, foreground = source.encode(batch)
    for b in range(2):
        pooled, logits = reference(source, batch[b : b + 1])
        assert_close(features[b].flatten(1).mT, torch.from_numpy(pooled).float(), atol=3e-6, rtol=0)
        assert_close(foreground[b].flatten(), torch.from_numpy(logits).float(), atol=3e-6, rtol=0)


def test_patches_are_those_of_maskclip_on_its_own_grid():
    """Where no position table is resized, only the averaging differs."""
    clip, batch = tiny_clip(), images(2, 32, 32)
    source, other = make_dinoiser(model=clip), make(maskclip, model=clip)
    other._mean, other._std = source._mean, source._std  # which are not rounded
    pixels = source.prepare(batch)
    with torch.no_grad():
        wanted = other.features(pixels)
        assert_close(source.patches(pixels)[0], wanted.flatten(2).mT, atol=2e-6, rtol=0)
        wide = source.prepare(images(1, 16, 64))  # as many patches, of another arrangement
        assert not torch.allclose(
            source.patches(wide)[0], other.features(wide).flatten(2).mT, atol=1e-2
        )


def test_logits_are_logarithms_of_probabilities():
    source, batch = make_dinoiser(), images(2, 48, 80)
    logits = source.logits(batch)
    assert logits.scale == 1
    assert logits.values.shape == (2, 4, 6, 10)
    with torch.no_grad():
        cosines = source.cosines(source.prepare(batch), None)
    wanted = (100 * cosines).softmax(dim=1)
    assert_close(logits.values.softmax(dim=1), wanted, atol=1e-6, rtol=0)
    warmer = make_dinoiser(logit_scale=20).logits(batch).values.softmax(dim=1)
    assert_close(warmer, (20 * cosines).softmax(dim=1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(45, 74), (48, 74), (45, 80)])
def test_other_sizes_are_padded_with_black_at_the_right_and_the_bottom(size):
    source, batch = make_dinoiser(), images(1, *size)
    H, W = size
    black = torch.zeros(1, 3, 48, 80)
    black[..., :H, :W] = batch
    got = source.logits(batch).values.exp()
    with torch.no_grad():
        whole = source.values(source.prepare(black), None)
    assert_close(got, upsample(whole, (48, 80))[..., :H, :W], atol=1e-5, rtol=1e-5)


def test_probabilities_of_windows_are_averaged_on_the_pixels_of_the_image():
    source, batch = make_dinoiser(short_side=32, window=32, stride=16), images(2, 40, 60)
    values = source.logits(batch).values
    assert values.shape == (2, 4, 40, 60)
    with torch.no_grad():
        score = functools.partial(source.values, context=None)
        mean = slide(source.prepare(batch), score, window=32, stride=16)
    wanted = upsample(mean, (40, 60))
    assert_close(values.exp(), wanted, atol=1e-6, rtol=1e-5)
    # So that the baselines' rule is the released decision.
    labels = decide(source.logits(batch), (40, 60)).labels
    best = torch.stack([wanted[:, :2].amax(dim=1), wanted[:, 2], wanted[:, 3]], dim=1)
    assert torch.equal(labels, best.argmax(dim=1))


def test_background_by_hand():
    probabilities = torch.tensor([[0.2, 0.8], [0.005, 0.995], [0.5, 0.5], [0.1, 0.9]])
    foreground = torch.tensor([-1.0, -1.0, 0.0, 1.0])
    got = add_background(probabilities.mT[None, :, None], foreground[None, None], 0.99)
    wanted = torch.tensor([[1.0, 0.8], [0.005, 0.995], [1.0, 0.5], [0.1, 0.9]])
    assert torch.equal(got, wanted.mT[None, :, None])


def test_the_background_wins_where_the_head_sees_none():
    source = make_dinoiser(["background", "cat", "dog"], background=True, logit_scale=20)
    batch = images(2, 48, 80)
    with torch.no_grad():
        nothing = source.encode(source.prepare(batch))[1] <= 0
    assert 0 < nothing.float().mean() < 1
    values = source.logits(batch).values
    assert torch.equal(values[:, 0] == 0, nothing)
    assert bool((values.argmax(dim=1) == 0)[nothing].all())


def test_pooling_of_a_patch_alone():
    patches = torch.rand(1, 3, 2)
    assert_close(pool(patches, torch.eye(3)[None], 0.2), patches, atol=2e-6, rtol=0)
    one = torch.ones(1, 3, 3)
    assert_close(pool(patches, one, 1.0), patches.mean(dim=1, keepdim=True).expand(-1, 3, -1))


@pytest.mark.parametrize("nested", [True, False])
def test_heads_from_a_file(tmp_path, nested):
    path = tmp_path / "last.pt"
    state = {**heads().state_dict(), "clip_backbone.logit_scale": torch.ones(1)}
    torch.save({"model_state_dict": state, "epoch": 1} if nested else state, path)
    batch = images(1, 32, 48)
    got = make_dinoiser(heads=path).logits(batch).values
    assert torch.equal(got, make_dinoiser().logits(batch).values)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_heads_from_a_folder(tmp_path):
    path, other = tmp_path / "last.pt", tmp_path / "other.pth"
    torch.save(heads().state_dict(), path)
    (tmp_path / "README.md").touch()
    wanted = heads().state_dict()
    for given in (tmp_path, f"local-dir:{tmp_path}", f"local-dir:{path}"):
        assert_close(dict(as_heads(given).state_dict()), dict(wanted), atol=0, rtol=0)
    torch.save({name: x + 1 for name, x in wanted.items()}, other)
    assert_close(as_heads(tmp_path).obj_proj.bias, wanted["obj_proj.bias"])  # by its name
    path.unlink()
    assert_close(as_heads(tmp_path).obj_proj.bias, wanted["obj_proj.bias"] + 1)  # the only one
    (tmp_path / "more.safetensors").touch()
    several = (
        r"^`heads` must be a folder with `last\.pt` or a single weight file \(\.safetensors, "
        r"\.pth, \.pt, \.bin\); got \['more\.safetensors', 'other\.pth'\] in `[^`]*`\.$"
    )
    with pytest.raises(FileNotFoundError, match=several):
        as_heads(tmp_path)
    for one in (tmp_path / "more.safetensors", other):
        one.unlink()
    with pytest.raises(FileNotFoundError, match=r"`heads` must be a folder with .*; got none in `"):
        as_heads(tmp_path)
    torch.save(Touch(tmp_path / "ran"), other)
    with pytest.raises(ValueError, match="`heads` must hold the tensors of its module"):
        as_heads(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_wrong_heads_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`heads` must be a weight.*last\.pt.*Apache-2\.0"):
        make_dinoiser(heads=None)
    with pytest.raises(FileNotFoundError, match="`heads` must be an existing weight file"):
        make_dinoiser(heads=tmp_path / "none.pt")
    path = tmp_path / "last.pt"
    torch.save({"obj_proj.weight": torch.ones(8, 64, 3, 3)}, path)
    with pytest.raises(ValueError, match=r"`heads` must hold the tensors.*no 'obj_proj.bias'"):
        make_dinoiser(heads=path)
    with pytest.raises(ValueError, match="`heads` must have been trained for the model's 64 chan"):
        make_dinoiser(heads=DinoiserHeads(32, 8))
    with pytest.raises(ValueError, match="`model` must have at least 3 blocks; got 2"):
        make_dinoiser(model=tiny_clip(layers=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity_threshold": 1.5}, "`similarity_threshold` must be"),
        ({"background": 0.5}, "`background` must be"),
        ({"confidence": -0.1}, "`confidence` must be"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_dinoiser(**options)


def test_the_published_weights_are_the_default(monkeypatch):
    asked = []

    def refuse(*given, **_):
        asked.append(given)
        raise MissingWeightsError("a", "", "b")

    monkeypatch.setattr("ovss_refine_adapters.logits.dense.load_clip", refuse)
    for options in ({}, {"model": "L/14"}, {"model": "ViT-B-32", "pretrained": "openai"}):
        with pytest.raises(MissingWeightsError):
            ClipDinoiserLogits(CLASSES, heads=heads(), **options)
    assert asked == [
        ("ViT-B-16", "laion2b_s34b_b88k"),
        ("L/14", None),
        ("ViT-B-32", "openai"),
    ]


@pytest.mark.parametrize(
    "options",
    [{}, {"short_side": 32, "window": 32, "stride": 16}, {"background": True}],
    ids=["whole", "windows", "background"],
)
def test_conformance(options):
    check_logits_source(functools.partial(make_dinoiser, **options))


def test_it_is_registered():
    source = make(functools.partial(load_logits, "clip-dinoiser"), heads=heads())
    assert isinstance(source, ClipDinoiserLogits)
