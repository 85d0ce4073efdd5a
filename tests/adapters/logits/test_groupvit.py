"""GroupViT: the released rule in float64, sizes, text, background, folders, conformance."""

import functools
import json

import numpy as np
import pytest
import torch
import transformers
from torch.testing import assert_close

from adapters import tiny_models
from adapters.bilinear import resized
from adapters.tiny_clip import CLASSES, images
from ovss_refine import load_logits
from ovss_refine.registry import MissingWeightsError
from ovss_refine.testing.logits import check_logits_source
from ovss_refine_adapters.backbones.groupvit import encode, load_groupvit
from ovss_refine_adapters.logits.groupvit import GroupVitLogits
from ovss_refine_adapters.logits.windows import slide

PROMPTS = [f"class {i}" for i in range(9)]  # more than are kept
# Random models embed all texts alike.
TEXT = torch.randn(10, 24, generator=torch.Generator().manual_seed(3))


@functools.cache
def model():
    return tiny_models.tiny_groupvit()


def make(classes=CLASSES, **options):
    plain = {"short_side": None, "window": None, "cache_dir": None, "model": model()}
    return GroupVitLogits(classes, **(plain | options))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference(source, pixels, background=None):
    """[K, H, W] scores of one image, from the model's own outputs."""
    size, grid = tuple(pixels.shape[-2:]), source.grid(pixels)
    with torch.no_grad():
        groups = encode(source.model, pixels)
    first, second = (a[0].double().numpy() for a in groups.assignments)  # [G1, N], [G, G1]
    R = first.T @ second.T  # [N, G]
    maps = resized(R.T.reshape(-1, *grid), size)
    text, e = source.text.double().numpy(), unit(groups.features[0].double().numpy())
    whole = text @ unit(groups.mean[0].double().numpy())
    kept = np.argsort(-whole)[: source.options.classes_kept]
    s = min(float(source.model.logit_scale.detach().double().exp()), 100)
    scores = np.zeros((len(text), len(e)))
    for g, row in enumerate(e):
        logits = s * text @ row
        scores[kept, g] = softmax(logits)[kept] * softmax(logits[kept])
    values = scores[:, maps.argmax(axis=0)]  # [K, H, W]
    if background is None:
        return values
    mask = values.max(axis=0) < min(background, scores.max())
    return np.concatenate([mask[None].astype(float), values])


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (100, 50)])
@pytest.mark.parametrize("kept", [5, 1, 50])
def test_scores_equal_the_released_rule(size, kept):
    source = make(PROMPTS, classes_kept=kept, text_features=TEXT[:9])
    values = source.logits(images(2, *size)).values
    assert values.shape == (2, 9, *size)
    pixels = source.prepare(images(2, *size))
    for b in range(2):
        wanted = torch.from_numpy(reference(source, pixels[b : b + 1])).float()
        assert_close(values[b], wanted, atol=5e-6, rtol=0)
    pixels_of_both = values.flatten(2).transpose(0, 1).flatten(1)  # [K, B * H * W]
    assert pixels_of_both.unique(dim=1).shape[1] > 2  # both images, and several groups of one


@pytest.mark.parametrize("threshold", [0.95, 0.3, 0.0])
def test_background(threshold):
    source = make(["background", *PROMPTS], background=threshold, text_features=TEXT)
    logits = source.logits(images(2, 48, 80))
    assert logits.names == ("background", *PROMPTS)
    pixels = source.prepare(images(2, 48, 80))
    for b in range(2):
        wanted = reference(source, pixels[b : b + 1], threshold)
        assert_close(logits.values[b], torch.from_numpy(wanted).float(), atol=5e-6, rtol=0)
    share = float(logits.values[:, 0].mean())
    assert share == 0 if threshold == 0 else 0 < share < 1
    with pytest.raises(ValueError, match="`classes` must begin with the background"):
        make(CLASSES, background=threshold)


def test_parts_equal_the_whole_model_at_its_own_size():
    """The image side run in parts is transformers' own, where that takes the image."""
    pixels = make().prepare(images(2, 64, 64))
    with torch.no_grad():
        groups = encode(model(), pixels)
        whole = model().vision_model(pixels, output_attentions=True)
        for one, two in zip(groups.assignments, whole.attentions, strict=True):
            assert_close(one, two)
        assert_close(groups.mean, model().visual_projection(whole.pooler_output))
        tokens = model().visual_projection(whole.last_hidden_state.flatten(0, 1))
        assert_close(groups.features.flatten(0, 1), tokens)


def test_positions_are_resized_for_other_sizes():
    larger = tiny_models.tiny_groupvit()
    table = larger.vision_model.embeddings.position_embeddings
    maps = table.detach().mT.reshape(1, -1, 4, 4)
    resized = torch.nn.functional.interpolate(maps, (5, 7), mode="bicubic", align_corners=False)
    pixels = make().prepare(images(1, 80, 112))
    with torch.no_grad():
        x = larger.vision_model.embeddings.patch_embeddings.projection(pixels).flatten(2).mT
        x = larger.vision_model.embeddings.layernorm(x) + resized.flatten(2).mT
        wanted = larger.vision_model.encoder(x, output_attentions=True).attentions
    for one, two in zip(encode(larger, pixels).assignments, wanted, strict=True):
        assert_close(one, two)


def test_text_is_averaged_before_it_is_normalised():
    from open_clip import SimpleTokenizer

    templates = ["a photo of a {}.", "there is {} here"]
    source = make(["cat", "dog"], templates=templates)
    rows = []
    for name in ("cat", "dog"):
        found = []
        for template in templates:
            ids = SimpleTokenizer()([template.format(name)])
            ids = ids[:, : int((ids != 0).sum())]  # not padded
            with torch.no_grad():
                found.append(model().get_text_features(ids).pooler_output[0])
        mean = torch.stack(found).mean(dim=0)
        rows.append(mean / mean.norm())
    assert_close(source.text, torch.stack(rows), atol=1e-6, rtol=0)
    given = make(["cat", "dog"], text_features=3 * source.text)
    assert_close(given.text, source.text)
    with pytest.raises(ValueError, match="`text_features` must be None to change the classes"):
        given.with_classes(["a"])


def test_the_learnt_factor_is_at_most_100():
    other = tiny_models.tiny_groupvit()
    other.logit_scale.data.fill_(6.0)
    assert make(model=other).factor == 100
    assert make().factor == pytest.approx(np.exp(3.5), rel=1e-6)


def test_windows_are_averaged():
    source, batch = make(short_side=64, window=64, stride=32), images(2, 64, 100)
    pixels = source.prepare(batch)
    with torch.no_grad():
        score = functools.partial(source.values, context=None)
        wanted = slide(pixels, score, window=64, stride=32)
    assert torch.equal(source.logits(batch).values, wanted)


def test_other_classes_on_the_same_model():
    source = make()
    other = source.with_classes(["lamp", "desk/table"])
    assert other.model is source.model
    batch = images(1, 64, 64)
    fresh = make(["lamp", "desk/table"]).logits(batch)
    assert torch.equal(other.logits(batch).values, fresh.values)
    assert other.logits(batch).names == ("lamp", "desk")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_model_from_a_folder(tmp_path, weights):
    model().save_pretrained(tmp_path)
    if weights == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model().state_dict(), tmp_path / weights)
    batch = images(1, 48, 80)
    got = make(model=f"local-dir:{tmp_path}").logits(batch).values
    assert_close(got, make().logits(batch).values)


def rewrite(path, **entries):
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | entries))


def test_wrong_folders_are_refused(tmp_path):
    model().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    before = config.read_text()
    rewrite(config, auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(ValueError, match="which may run code that came with the weights"):
        load_groupvit(tmp_path)
    config.write_text(before)
    rewrite(config, model_type="clip")
    with pytest.raises(ValueError, match="must describe a groupvit; got 'clip'"):
        load_groupvit(tmp_path)
    config.write_text(before)
    state = dict(model().state_dict())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold `model\.safetensors` or `pyt"):
        load_groupvit(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save({k: v for k, v in state.items() if k != "vision_model.layernorm.bias"}, path)
    with pytest.raises(ValueError, match=r"must be complete; got 1 missing .*layernorm\.bias"):
        load_groupvit(tmp_path)
    torch.save(state | {"logit_scale": torch.tensor(torch.nan)}, path)
    with pytest.raises(ValueError, match="must be finite; got 1 NaN"):
        load_groupvit(tmp_path)
    torch.save(model(), path)  # a module is code, not weights
    with pytest.raises(ValueError, match="must hold a GroupViT"):
        load_groupvit(tmp_path)


def test_missing_weights_are_one_sentence(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingWeightsError, match="`nvidia/groupvit-gcc-redcaps` must be"):
        GroupVitLogits(CLASSES)


def test_wrong_models_and_options_are_refused():
    other = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    with pytest.raises(ValueError, match="`model` must be a GroupViTModel; got CLIPTextModel"):
        make(model=other)
    for options, message in (
        ({"classes_kept": 0}, "`classes_kept` must be"),
        ({"background": 2}, "`background` must be"),
        ({"text_features": torch.ones(2, 24)}, r"`text_features` must have shape \[K=4, C\]"),
        ({"text_features": torch.full((4, 24), torch.nan)}, "`text_features` must be finite; got"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    with pytest.raises(ValueError, match="`images` must be at least one patch of 16 x 16"):
        make().logits(images(1, 15, 40))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"short_side": 64, "window": 64, "stride": 32},
        {"background": 0.95, "classes": ["background", *PROMPTS], "text_features": TEXT},
    ],
    ids=["whole", "windows", "background"],
)
def test_conformance(options):
    check_logits_source(functools.partial(make, **options))


def test_it_is_registered():
    source = load_logits("groupvit", classes=CLASSES, model=model(), cache_dir=None)
    assert isinstance(source, GroupVitLogits)
