"""The option `dtype`: what is converted, what stays float32, and how little changes."""

import functools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from adapters import model_folders, tiny_models
from adapters.test_calibrated_scale import MODEL, VOC, photographs
from adapters.tiny_clip import CLASSES, halves, images, tiny_clip
from ovss_refine import Refiner, Segmenter, list_logits, load_attention, load_logits
from ovss_refine_adapters.logits.sc_clip import Calibration

HALVES = [torch.bfloat16, torch.float16]
NAMES = ("bfloat16", "float16")
CALIBRATION = Calibration(pre_adjust=1, post_adjust=0, multi_start=0, multi_end=2, class_weight=0.3)
PLAIN = {"short_side": None, "window": None, "cache_dir": None}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of tiny models by library."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("clip", "timm", "groupvit", "sd2")}
    model_folders.open_clip_folder(made["clip"])
    model_folders.timm_folder(made["timm"])
    model_folders.groupvit_folder(made["groupvit"])
    model_folders.diffusion_folder(made["sd2"])
    return made


def logits_options(name, folders):
    """Options of a source of logits on tiny models of folders."""
    clip = {"model": folders["clip"], "templates": "single"}
    if name == "groupvit":
        return {"model": folders["groupvit"]}
    if name == "talk2dino":
        head = {"projection": tiny_models.tiny_projection(), "templates": "single"}
        return {"model": folders["timm"], "clip": folders["clip"], **head}
    more = {
        "proxyclip": {"proxy": folders["timm"]},
        "cass": {"proxy": folders["timm"]},
        "rf-clip": {"sink_channels": (5, 17, 40)},
        "clip-dinoiser": {"heads": tiny_models.tiny_heads()},
        "tcl": {"masker": tiny_models.tiny_masker()},
        "lavg": {"masks": halves},
        "gem": {"blocks": 2},
        "clip-surgery": {"blocks": 2},
        # Not so smooth that nothing is left to compare, and without outliers, which rounding moves.
        "sc-clip": {
            "calibration": CALIBRATION,
            "contamination": 0,
            "similarity_threshold": 0.9,
        },
        "cliptrase": {"regions": "none"},
    }
    return clip | more.get(name, {})


LOGITS = sorted(set(list_logits()) - {"callable", "npz", "transformers"})


@pytest.mark.parametrize("name", LOGITS)
def test_logits_of_half_precision_models(name, folders):
    x = images(1, 64, 96) if name == "groupvit" else images(1, 56, 84)
    make = functools.partial(load_logits, name, classes=CLASSES, **PLAIN)
    wanted = make(**logits_options(name, folders)).logits(x).values
    for dtype in NAMES:
        source = make(**logits_options(name, folders), dtype=dtype)
        values = source.logits(x).values
        assert values.dtype == torch.float32
        assert source.text.dtype == torch.float32
        found = {p.dtype for model in image_models(source) for p in model.parameters()}
        assert found == {getattr(torch, dtype)}
        change = (values - wanted).abs().mean() / wanted.std()
        assert 0 < change < 0.1


def image_models(source):
    """The models that a source runs on images, without trained heads."""
    proxy = getattr(getattr(source, "proxy", None), "__self__", getattr(source, "proxy", None))
    if hasattr(source, "model"):
        return [source.model.vision_model, source.model.visual_projection]
    return [source.modules[0], *([proxy.model] if proxy is not None else [])]


@pytest.mark.parametrize("name", ["timm", "affinity", "dinov2-b14-reg", "clip-b16", "sd2"])
@pytest.mark.parametrize("factors", [False, True])
def test_attention_of_half_precision_models(name, factors, folders):
    folder = {"clip-b16": "clip", "sd2": "sd2"}.get(name, "timm")
    sizes = {
        "dinov2-b14-reg": {"size": 56},
        "clip-b16": {"size": 64},
        "sd2": {"resolution": 64, "cache_dir": None},
    }
    size = sizes.get(name, {})
    make = functools.partial(load_attention, name, model=folders[folder], factors=factors, **size)
    x = images(1, 56, 84)
    wanted = whole(make().attention(x))
    for dtype, half in zip(NAMES, HALVES, strict=True):
        for given in (dtype, half):
            got = whole(make(dtype=given).attention(x))
            assert got.dtype == torch.float32
            assert_close(got.sum(dim=-1), torch.ones(got.shape[:2]), atol=1e-5, rtol=0)
            assert 0 < (got - wanted).abs().mean() / wanted.std() < 0.1


def whole(attention):
    return torch.cat([rows for _, rows in attention.blocks()], dim=1)


def test_automatic_is_what_the_processor_has(folders, monkeypatch):
    make = functools.partial(load_attention, "timm", model=folders["timm"], dtype="auto")
    for has, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        found = {"amx_bf16": has}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        assert {p.dtype for p in make().backbone.model.parameters()} == {wanted}


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("attention", "clip-b16", {"model": tiny_clip()}),
        ("attention", "timm", {"model": tiny_models.tiny_vit()}),
        ("attention", "sd2", {"model": tiny_models.tiny_parts()}),
        ("logits", "kk-mean", {"model": tiny_clip()}),
        ("logits", "groupvit", {"model": tiny_models.tiny_groupvit()}),
    ],
)
def test_a_ready_model_keeps_its_dtype(kind, name, options):
    load = {"attention": load_attention, "logits": load_logits}[kind]
    options = options | ({"classes": CLASSES} if kind == "logits" else {})
    for dtype in ("bfloat16", "float32"):
        says = rf"`dtype` must be None with .*ready .*; got '{dtype}'"
        with pytest.raises(ValueError, match=says):
            load(name, **options, dtype=dtype)


def test_weights_beyond_the_range_of_float16_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    path = model_folders.open_clip_folder(tmp_path) / "open_clip_model.safetensors"
    state = load_file(path)
    state["visual.ln_post.weight"][0] = 1e6
    save_file(state, path)
    load_attention("clip-b16", model=tmp_path, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"must be finite; got 1 NaN or infinite .*torch.float16"):
        load_attention("clip-b16", model=tmp_path, dtype="float16")


def test_a_segmenter_gives_the_dtype_to_both_sources(folders):
    segment = Segmenter(
        "kk-mean",
        "timm",
        device="cpu",
        dtype="bfloat16",
        logits_options={"model": folders["clip"], "templates": "single", "cache_dir": None},
        attention_options={"model": folders["timm"], "size": 56},
    )
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    assert segment(image, "cat, dog").labels.shape == (48, 80)
    logits, attention = segment._logits._source, segment._attention._source
    assert logits.tower.visual.conv1.weight.dtype == torch.bfloat16
    assert logits._clip.model.token_embedding.weight.dtype == torch.float32
    assert next(attention.backbone.model.parameters()).dtype == torch.bfloat16
    assert segment.with_options(dtype=None)._logits is not segment._logits
    assert segment.with_options(mode="kl")._logits is segment._logits
    with pytest.raises(ValueError, match=r"`dtype` must be None, .* got 'bf16'"):
        Segmenter(dtype="bf16")


@pytest.mark.slow("two passes of a real transformer, one in bfloat16 without instructions")
def test_labels_of_a_real_transformer_hardly_change():
    for path in (MODEL, VOC):
        if not path.is_dir():
            pytest.skip(f"{path} is missing")
    refiner = Refiner(logit_scale="auto")
    sources = [
        load_attention("timm", model=MODEL, size=(280, 280), dtype=dtype)
        for dtype in ("float32", "bfloat16")
    ]
    for stem, image in photographs(2):
        with np.load(VOC / f"arrays/{stem}.npz") as arrays:
            logits = torch.from_numpy(arrays["logits_weak"]).float()
        one, two = (refiner(logits, source, image).labels for source in sources)
        assert len(one.unique()) > 1
        assert (one == two).float().mean() > 0.995
