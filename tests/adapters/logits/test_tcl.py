"""TCL: the whole formula, text, padding, windows, background, files, conformance."""

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from adapters import tiny_models
from adapters.tiny_clip import CLASSES, images, make, tiny_clip
from ovss_refine import load_logits
from ovss_refine.baseline.decision import decide
from ovss_refine.registry import MissingWeightsError
from ovss_refine.testing.logits import check_logits_source
from ovss_refine_adapters.logits.clip import maskclip
from ovss_refine_adapters.logits.talk2dino import PAMR_DILATIONS
from ovss_refine_adapters.logits.tcl import TEMPLATES, TclLogits
from ovss_refine_adapters.logits.tcl_masker import RELEASED, TclMasker
from ovss_refine_adapters.logits.windows import slide, upsample
from ovss_refine_adapters.text import text_features

BACKGROUND = {"classes": ["background", "cat/kitten", "dog"], "background": 0.4}


@functools.cache
def masker():
    return tiny_models.tiny_masker()


def make_tcl(classes=CLASSES, **options):
    return make(TclLogits, classes, **({"masker": masker()} | options))


# The formula, in float64 and NumPy, of one image.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def norm(x, held, name):
    x = x - x.mean(axis=-1, keepdims=True)
    return (
        x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * held[f"{name}.weight"]
        + (held[f"{name}.bias"])
    )


def linear(x, held, name):
    return x @ held[f"{name}.weight"].T + held[f"{name}.bias"]


def last_block(x, held):
    """A block in which [N, C] tokens attend only to themselves."""
    C = x.shape[-1]
    W, b = held["attn.in_proj_weight"][2 * C :], held["attn.in_proj_bias"][2 * C :]
    x = x + linear(norm(x, held, "ln_1") @ W.T + b, held, "attn.out_proj")
    hidden = linear(norm(x, held, "ln_2"), held, "mlp.c_fc")
    return x + linear(hidden * sigmoid(1.702 * hidden), held, "mlp.c_proj")


def convolution(x, held):
    """The gated residual convolution of [h, w, C] maps."""
    h, w, _ = x.shape
    normal = norm(x, held, "norm")
    normal = normal * (1 + np.vectorize(math.erf)(normal / math.sqrt(2))) / 2
    around = np.pad(normal, ((1, 1), (1, 1), (0, 0)))  # with zeros
    total = np.zeros_like(x) + held["conv.bias"]
    for i in range(3):
        for j in range(3):
            total += around[i : i + h, j : j + w] @ held["conv.weight"][:, :, i, j].T
    return x + np.tanh(held["gate.gate"]) * total


def refined(masks, guide):
    """PAMR of [K, h, w] masks, guided by [3, h, w] pixels; the border is repeated."""
    h, w = masks.shape[1:]
    reads = [  # of every pixel, the rows and columns of one neighbour
        np.ix_(np.clip(np.arange(h) + d * y, 0, h - 1), np.clip(np.arange(w) + d * x, 0, w - 1))
        for d in (1, 2, 4, 8, 12, 24)
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
    ]
    values = np.array([guide[:, rows, columns] for rows, columns in reads])  # [54, 3, h, w]
    spread = values.std(axis=0, ddof=1)
    around = [i for i in range(54) if i % 9 != 4]
    distance = np.abs(values[around] - guide) / (1e-8 + 0.1 * spread)
    weights = np.exp(-distance.mean(axis=1))
    weights /= weights.sum(axis=0)
    for _ in range(10):
        neighbours = [masks[:, rows, columns] for rows, columns in (reads[i] for i in around)]
        masks = sum(v * m for v, m in zip(weights, neighbours, strict=True))
    return masks


def bilinear(maps, size, corners):
    """Resize [K, h, w] maps; `corners`: corner pixels keep their places."""

    def axis(old, new):
        at = np.arange(new) * (old - 1) / (new - 1) if corners else None
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1) if at is None else at
        low = np.minimum(at.astype(int), old - 1)
        matrix = np.zeros((new, old))
        matrix[np.arange(new), low] += 1 - (at - low)
        matrix[np.arange(new), np.minimum(low + 1, old - 1)] += at - low
        return matrix

    return axis(maps.shape[1], size[0]) @ maps @ axis(maps.shape[2], size[1]).T


def under(prefix, module):
    """The tensors of a module whose names begin with the prefix, as float64."""
    state = module.state_dict().items()
    return {k.removeprefix(prefix): v.double().numpy() for k, v in state if k.startswith(prefix)}


def reference(source, pixels, patches):
    """Masks of the decoder, those after PAMR, and the mixture with MaskCLIP's: [K, 4h, 4w] each."""
    h, w = source.tower.grid(*pixels.shape[-2:])
    text, x = source.text.double().numpy(), patches.double().numpy()
    maps = last_block(x, under("block.", source.masker)).reshape(h, w, -1)
    for stage in range(2):
        maps = maps.repeat(2, axis=0).repeat(2, axis=1)
        for name in ("conv", "conv2"):
            maps = convolution(maps, under(f"stages.{stage}.{name}.", source.masker))
    held = under("image_proj.", source.masker)
    cosines = unit(norm(maps, held, "ln") @ held["proj"]) @ text.T
    scale = under("sim2mask.", source.masker)
    masks = sigmoid(scale["w"] * cosines + scale["b"]).transpose(2, 0, 1)
    guide = bilinear(pixels.double().numpy(), (4 * h, 4 * w), source.options.faithful)
    moved = refined(masks, guide)
    visual = source.tower.visual
    plain = last_block(x, under(f"transformer.resblocks.{source.tower.layers - 1}.", visual))
    held = under("", visual)
    k = sigmoid(10 * (unit(norm(plain, held, "ln_post") @ held["proj"]) @ text.T - 0.25))
    k = bilinear(k.reshape(h, w, -1).transpose(2, 0, 1), (4 * h, 4 * w), False)
    return masks, moved, 0.3 * k + 0.7 * moved


@pytest.mark.parametrize("faithful", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (48, 80), (16, 64)])
def test_masks_equal_the_formula(size, faithful):
    options = {"model": tiny_clip(), "faithful": faithful}
    source = make_tcl(**options)
    batch = source.prepare(images(2, *size))
    found = [
        make_tcl(pamr_steps=0, maskclip_weight=0, **options),
        make_tcl(maskclip_weight=0, **options),
        source,
    ]
    with torch.no_grad():
        patches = source.patches(batch)
        got = [other.masks(batch) for other in found]
    assert got[0].shape == (2, 4, size[0] // 2, size[1] // 2)
    for b in range(2):
        wanted = reference(source, batch[b], patches[b])
        for masks, expected in zip(got, wanted, strict=True):
            assert expected.std() > 0.01
            assert_close(masks[b], torch.from_numpy(expected).float(), atol=1e-5, rtol=0)
        # So that every step is seen.
        assert np.abs(wanted[0] - wanted[1]).max() > 0.01
        assert np.abs(wanted[1] - wanted[2]).max() > 0.01


def test_the_patches_are_those_that_enter_the_last_block_of_maskclip():
    """Where no position table is resized, MaskCLIP's own features are the same."""
    clip = tiny_clip()
    source, other = make_tcl(model=clip), make(maskclip, model=clip)
    pixels = source.prepare(images(2, 32, 32))
    with torch.no_grad():
        plain = source.plain(source.patches(pixels), (4, 4))
        assert_close(plain, other.features(pixels), atol=2e-6, rtol=0)
        wide = source.prepare(images(1, 16, 64))  # as many patches, of another arrangement
        plain = source.plain(source.patches(wide), (2, 8))
        assert not torch.allclose(plain, other.features(wide), atol=1e-2)


def test_pixels_are_normalised_with_the_statistics_of_imagenet():
    source = make_tcl()
    grey = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert_close(source.prepare(grey), torch.zeros(1, 3, 32, 32), atol=1e-6, rtol=0)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    assert_close(source.prepare(grey + deviation), torch.ones(1, 3, 32, 32), atol=1e-5, rtol=0)


def test_text_vectors_are_averaged_before_they_are_normalised():
    clip = tiny_clip()
    source = make_tcl(model=clip, templates=TEMPLATES)
    raw = text_features(source._clip, source.classes, TEMPLATES, unit=False)
    assert len(TEMPLATES) == 9
    assert_close(source.text, F.normalize(raw, dim=-1), atol=1e-6, rtol=0)
    assert (source.text - text_features(source._clip, source.classes, TEMPLATES)).abs().max() > 1e-4
    given = make_tcl(model=clip, text_features=3 * raw)
    assert_close(given.text, source.text, atol=1e-6, rtol=0)


def test_a_batch_gives_what_its_images_give():
    source, batch = make_tcl(), images(3, 48, 80)
    values = source.logits(batch).values
    singles = torch.cat([source.logits(image[None]).values for image in batch])
    assert_close(values, singles, atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [(45, 74), (48, 74), (45, 80)])
def test_other_sizes_are_padded_with_the_mean_colour_on_all_sides(size):
    source, batch = make_tcl(), images(1, *size)
    (H, W), (top, left) = size, ((48 - size[0]) // 2, (80 - size[1]) // 2)
    padded = torch.zeros(1, 3, 48, 80)
    padded[..., top : top + H, left : left + W] = source.prepare(batch)
    with torch.no_grad():
        whole = upsample(source.masks(padded), (48, 80))
    wanted = whole[..., top : top + H, left : left + W]
    assert_close(source.logits(batch).values, wanted, atol=1e-6, rtol=0)


def test_masks_of_windows_are_averaged():
    source = make_tcl(short_side=36, window=32, stride=16, **BACKGROUND)
    batch = images(2, 36, 60)
    values = source.logits(batch).values
    assert values.shape == (2, 4, 36, 60)
    score = functools.partial(source.values, context=None)
    with torch.no_grad():
        wanted = slide(source.prepare(batch), score, window=32, stride=16)
    assert_close(values[:, 1:], wanted, atol=1e-6, rtol=0)


def test_the_background_is_a_constant_mask():
    clip, batch = tiny_clip(), images(2, 48, 80)
    plain = make_tcl(["cat", "dog", "grass"], model=clip).logits(batch).values
    level = float(plain.amax(dim=1).median())
    source = make_tcl(["background", "cat", "dog", "grass"], model=clip, background=level)
    values = source.logits(batch).values
    assert_close(values[:, 1:], plain, atol=1e-6, rtol=0)
    assert bool((values[:, 0] == level).all())
    labels = decide(source.logits(batch), tuple(values.shape[-2:])).labels
    nothing = values[:, 1:].amax(dim=1) <= level
    assert 0.4 < nothing.float().mean() < 0.6
    assert torch.equal(labels == 0, nothing)
    # The features of all prompts, that of the background included, may be given.
    given = torch.cat([torch.zeros(1, 24), source.text])
    other = make_tcl(
        ["background", "cat", "dog", "grass"], model=clip, background=level, text_features=given
    )
    assert_close(other.logits(batch).values, values, atol=1e-6, rtol=0)


def test_classes_without_a_background_are_refused_before_anything_is_loaded():
    for classes in (["background/wall", "cat"], ["background"]):
        with pytest.raises(ValueError, match="`classes` must begin with the background"):
            make_tcl(classes, background=0.4, masker="none.pth")
    source = make_tcl(["background", "cat"], background=0.4)
    with pytest.raises(ValueError, match="`classes` must begin with the background"):
        source.with_classes(["background/wall", "cat"])
    other = source.with_classes(["background", "dog", "cat"])
    assert other.logits(images(1)).values.shape[1] == 3
    assert other.masker is source.masker


def test_maskclip_is_not_run_without_weight(monkeypatch):
    source = make_tcl(maskclip_weight=0)
    monkeypatch.setattr(TclLogits, "plain", None)
    source.logits(images(1))


def released(state):
    """Name tensors as in the released file."""
    old = {new: name for name, new in RELEASED.items()}
    return {
        old[(start := name.partition(".")[0]) + "."] + name.removeprefix(f"{start}."): value
        for name, value in state.items()
    }


@pytest.mark.parametrize("nested", [True, False])
def test_the_trained_part_from_a_file(tmp_path, nested):
    path = tmp_path / "tcl.pth"
    state = {**released(masker().state_dict()), "tcli_loss.logit_scale": torch.ones(())}
    assert "masker.image_encoder.decoder.decoder.net.1.conv2.gate.gate" in state
    torch.save({"model": state, "step": 1} if nested else state, path)
    batch = images(1, 32, 48)
    got = make_tcl(masker=path).logits(batch).values
    assert torch.equal(got, make_tcl().logits(batch).values)


def test_a_file_is_loaded_in_the_dtype_of_the_tower(tmp_path):
    path = tmp_path / "tcl.pth"
    torch.save(released(masker().state_dict()), path)
    clip = tiny_clip()
    clip.visual = clip.visual.bfloat16()
    source, batch = make_tcl(model=clip, masker=path), images(1, 32, 48)
    dtypes = {name: p.dtype for name, p in source.masker.named_parameters()}
    own = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert own == {"sim2mask.w", "sim2mask.b"}
    values = source.logits(batch).values
    assert values.dtype == torch.float32
    assert 0 < (values - make_tcl().logits(batch).values).abs().max() < 0.1


def test_a_wrong_masker_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`masker` must be a weight file.*tcl\.pth.*MIT"):
        make_tcl(masker=None)
    with pytest.raises(TypeError, match="`masker` must be a weight file or a `TclMasker`; got Lin"):
        make_tcl(masker=torch.nn.Linear(2, 2))
    with pytest.raises(FileNotFoundError, match="`masker` must be an existing weight file"):
        make_tcl(masker=tmp_path / "none.pth")
    path = tmp_path / "tcl.pth"
    torch.save({"model": {"masker.sim2mask.w": torch.ones(())}}, path)
    with pytest.raises(ValueError, match=r"`masker` must hold the tensors.*no 'image_proj.proj'"):
        make_tcl(masker=path)
    for widths, found in (((32, 24), "32 and 24"), ((64, 8), "64 and 8")):
        with pytest.raises(ValueError, match=rf"model's 64 and 24 channels; got {found}\."):
            make_tcl(masker=TclMasker(*widths))
    broken = tiny_models.tiny_masker()
    broken.sim2mask.w.data.fill_(math.nan)
    with pytest.raises(ValueError, match=r"must be finite; got 1 NaN.*'sim2mask\.w'"):
        make_tcl(masker=broken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": 1.5}, "`background` must be"),
        ({"maskclip_weight": -0.1}, "`maskclip_weight` must be"),
        ({"pamr_steps": -1}, "`pamr_steps` must be"),
        ({"pamr_steps": 0.5}, "`pamr_steps` must be"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_tcl(**options)


def test_the_published_settings_are_the_defaults(monkeypatch):
    asked = []

    def refuse(*given, **_):
        asked.append(given)
        raise MissingWeightsError("a", "", "b")

    monkeypatch.setattr("ovss_refine_adapters.logits.dense.load_clip", refuse)
    with pytest.raises(MissingWeightsError):
        TclLogits(CLASSES, masker=masker())
    assert asked == [("B/16", None)]
    monkeypatch.undo()
    source = make_tcl()
    assert (source.pamr_steps, source.maskclip_weight, source.background) == (10, 0.3, None)
    defaults = TclLogits.defaults
    assert (defaults["short_side"], defaults["window"], defaults["stride"]) == (448, 448, 224)
    assert PAMR_DILATIONS == (1, 2, 4, 8, 12, 24)
    assert TEMPLATES[0] == "itap of a {}."
    assert TEMPLATES[-2:] == ("a photo of many {}.", "a photo of {}s.")


@pytest.mark.parametrize(
    "options",
    [{}, {"short_side": 32, "window": 32, "stride": 16}, BACKGROUND, {"pamr_steps": 0}],
    ids=["whole", "windows", "background", "without PAMR"],
)
def test_conformance(options):
    check_logits_source(functools.partial(make_tcl, **options))


def test_it_is_registered():
    source = make(functools.partial(load_logits, "tcl"), masker=masker())
    assert isinstance(source, TclLogits)
