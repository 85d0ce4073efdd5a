"""The segmenter with models: weights in a folder, no weights, shared by threads."""

import os
import threading
from functools import partial

import numpy as np
import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from adapters.tiny_clip import CONFIG, make, tiny_clip
from adapters.tiny_models import randomise, tiny_vit
from ovss_refine import Refiner, load_attention, load_logits
from ovss_refine.segmenter import Segmenter
from ovss_refine_adapters.attention.vit import ViTAttention

LABELS = "cat/kitten, dog, background: wall/floor"
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
PLAIN = {"short_side": 64, "templates": "single", "cache_dir": None}
SMALL = "vit_tiny_patch16_224.augreg_in21k"
ATTENTION = {"model": SMALL, "size": 64}
CLIP_REPOSITORY, VIT_REPOSITORY = "timm/vit_base_patch16_clip_224.openai", f"timm/{SMALL}"


def put(folder, repository, name, state):
    """Write weights where the hub's library stores them."""
    home = folder / f"models--{repository.replace('/', '--')}"
    (home / "snapshots" / "abc").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    save_file(state, home / "snapshots" / "abc" / name)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, an empty cache; OpenAI's CLIP is a tiny one."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {"ViT-B-16-quickgelu": CONFIG})
    return tmp_path / "cache"


def small_vit():
    return randomise(timm.create_model(SMALL, num_classes=0, dynamic_img_size=True), 0.1)


def named(folder=None, logits="kk-mean"):
    return Segmenter(
        logits,
        "timm",
        mode="propagation",
        device="cpu",
        models_dir=folder,
        logits_options=PLAIN,
        attention_options=ATTENTION,
    )


def ready(clip, vit):
    logits = make(partial(load_logits, "kk-mean"), model=clip, **PLAIN)
    return Segmenter(logits, ViTAttention(vit, size=64), mode="propagation", device="cpu")


def test_a_prompt_of_two_classes_warns_once_and_every_class_keeps_its_name():
    segment = ready(tiny_clip(), small_vit())
    with pytest.warns(UserWarning, match="'wall' for") as caught:
        found = segment(IMAGE, "background: wall/floor, other: wall")
    assert found.names == ("background", "other")
    assert len(caught) == 1
    for names in (("a", "b"), ("c", "d")):  # other names for the same prompts
        first, second = names
        assert segment(IMAGE, f"{first}: wall/floor, {second}: sky").names == names


def test_weights_come_from_a_folder_of_downloads(tmp_path, offline):
    clip, vit = tiny_clip(), small_vit()
    put(tmp_path / "models", CLIP_REPOSITORY, "open_clip_model.safetensors", clip.state_dict())
    put(tmp_path / "models", VIT_REPOSITORY, "model.safetensors", vit.state_dict())
    environment = dict(os.environ)
    found = named(tmp_path / "models")(IMAGE, LABELS, baseline=True)
    wanted = ready(clip, vit)(IMAGE, LABELS, baseline=True)
    assert torch.equal(found.labels, wanted.labels)
    assert torch.equal(found.discrepancy, wanted.discrepancy)
    assert torch.equal(found.baseline, wanted.baseline)
    assert found.discrepancy[found.kept].std() > 0
    # Nothing outside has changed.
    assert str(offline) == constants.HF_HUB_CACHE
    assert dict(os.environ) == environment
    with pytest.raises(FileNotFoundError):
        named()(IMAGE, LABELS)


@pytest.mark.parametrize(
    ("name", "missing"), [("kk-mean", CLIP_REPOSITORY), (None, VIT_REPOSITORY)]
)
def test_unavailable_weights_give_one_sentence(tmp_path, offline, name, missing):
    folder = tmp_path / "empty"
    segment = (
        named(folder)
        if name
        else Segmenter(
            make(partial(load_logits, "kk")), "timm", attention_options=ATTENTION, models_dir=folder
        )
    )
    with pytest.raises(FileNotFoundError) as caught:
        segment(IMAGE, LABELS)
    message = str(caught.value)
    assert message.startswith(f"{name or 'timm'}: the weights `{missing}` must be available")
    assert f"`{folder}`" in message
    for way in ("--models-dir", "HF_ENDPOINT", "ovss-refine demo"):
        assert way in message
    assert message.count(". ") == 0
    assert str(offline) == constants.HF_HUB_CACHE
    assert len(segment.to_load()) >= 1  # and can be tried again


def test_a_wrong_path_gives_the_original_error(offline):
    segment = Segmenter("kk", logits_options={"model": "local-dir:/nowhere"})
    with pytest.raises(FileNotFoundError, match=r"^`model` must be an existing folder") as caught:
        segment.prepare(LABELS)
    assert "demo" not in str(caught.value)


def test_equals_refining_the_sources_logits():
    clip, vit = tiny_clip(), tiny_vit()
    found = Segmenter(
        make(partial(load_logits, "kk-mean"), model=clip), ViTAttention(vit), mode="fusion"
    )(IMAGE, LABELS)
    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)[None] / 255
    classes = ["cat/kitten", "dog", "wall/floor"]
    logits = make(partial(load_logits, "kk-mean"), model=clip, classes=classes).logits(pixels)
    attention = load_attention("timm", model=vit)
    wanted = Refiner(mode="fusion")(logits, attention, pixels)
    assert torch.equal(found.labels, wanted.labels[0])
    torch.testing.assert_close(found.discrepancy, wanted.discrepancy[0])
    assert found.names == ("cat", "dog", "background")


def test_threads_do_not_capture_each_others_attention():
    segment, found = ready(tiny_clip(), tiny_vit()), {}
    images = [np.roll(IMAGE, 7 * i, axis=1) for i in range(6)]

    def work(i):
        found[i] = segment(images[i], LABELS, keep_attention=True)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for i, image in enumerate(images):
        alone = segment(image, LABELS, keep_attention=True)
        assert torch.equal(found[i].attention.weights, alone.attention.weights)
        assert torch.equal(found[i].labels, alone.labels)


def test_labels_beyond_the_models_context_are_named():
    label = "a very long label " * 20
    with pytest.raises(ValueError, match=r"must fit in the model's 77 tokens .*got 'a very long"):
        ready(tiny_clip(), tiny_vit())(IMAGE, ["cat", label])


@pytest.mark.parametrize("size", [(1, 1), (1, 10), (3, 2), (7, 7)])
def test_images_smaller_than_a_patch_are_segmented(size):
    found = ready(tiny_clip(), tiny_vit("dino"))(IMAGE[: size[0], : size[1]], LABELS)
    assert found.labels.shape == size
