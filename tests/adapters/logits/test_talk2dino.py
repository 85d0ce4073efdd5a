"""Talk2DINO: formulas, one pass for both, windows, background, files, conformance."""

import functools

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from adapters import tiny_models
from adapters.tiny_clip import CLASSES, images, tiny_clip
from ovss_refine import Segmenter, load_logits
from ovss_refine.evaluation import evaluate
from ovss_refine.labels import as_labels
from ovss_refine.testing.attention import check_attention_source
from ovss_refine.testing.logits import check_logits_source
from ovss_refine_adapters.attention.vit import ViTAttention
from ovss_refine_adapters.backbones.timm import TimmBackbone
from ovss_refine_adapters.logits import talk2dino
from ovss_refine_adapters.logits.talk2dino import Talk2DinoLogits
from ovss_refine_adapters.logits.talk2dino_maps import clean
from ovss_refine_adapters.logits.talk2dino_projection import TextProjection
from ovss_refine_adapters.logits.windows import slide
from ovss_refine_adapters.text import text_features


@functools.cache
def vit():
    return tiny_models.tiny_vit("registers")


@functools.cache
def projection():
    return tiny_models.tiny_projection()


def make(classes=CLASSES, **options):
    plain = {"short_side": None, "window": None, "templates": "single", "cache_dir": None}
    models = {"projection": projection(), "model": vit(), "clip": tiny_clip()}
    return Talk2DinoLogits(classes, **(plain | models | options))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference(source, image, weight, faithful):
    """[K, N] maps of one image in float64 loops, cleaned if `weight` is not None."""
    backbone = source.backbone
    f = backbone.features(image)[0].flatten(1).mT.double().numpy()  # [N, C]
    found = backbone.projections(image, [-1])[0]
    text = source.text.double().numpy()
    M = sigmoid(text @ unit(f).T)
    if weight is None:
        return M
    heads, logits = [], []
    for q, k in zip(found.q[0].double().numpy(), found.k[0].double().numpy(), strict=True):
        a = np.array([q[0] @ key / np.sqrt(len(key)) for key in k[backbone.prefix :]])  # [N]
        logits.append(a)
        heads.append(unit(np.mean([x * row for x, row in zip(a, f, strict=True)], axis=0)))
    B = []
    for t in text:
        w = softmax(np.array([t @ e for e in heads]))
        B.append(softmax(sum(x * a for x, a in zip(w, logits, strict=True))))
    B = np.array(B)
    B = (B - B.min()) / (B.max() if faithful else B.max() - B.min())
    B = B * (M.max() - M.min()) + M.min()
    return (M + weight * B) / (1 + weight)


@pytest.mark.parametrize("faithful", [True, False])
@pytest.mark.parametrize("weight", [None, 0.2, 0.8])
@pytest.mark.parametrize("size", [(56, 56), (42, 84)])
def test_maps_equal_the_formula(size, weight, faithful):
    batch = images(2, *size)
    given = {} if weight is None else {"clean_background": True, "clean_weight": weight}
    source = make(faithful=faithful, **given)
    values = source.logits(batch).values
    assert values.shape == (2, 4, size[0] // 14, size[1] // 14)
    for b in range(2):
        wanted = reference(source, batch[b : b + 1], weight, faithful)
        assert_close(values[b].flatten(1), torch.from_numpy(wanted).float(), atol=2e-6, rtol=0)


def test_text_is_averaged_before_the_projection_and_not_normalised():
    clip = tiny_clip()
    source = make(clip=clip, templates=talk2dino.TEMPLATES)
    from open_clip import SimpleTokenizer

    rows = []
    for name in as_labels(CLASSES).all_prompts:
        tokens = SimpleTokenizer()([t.format(name) for t in talk2dino.TEMPLATES])
        with torch.no_grad():
            rows.append(clip.encode_text(tokens).mean(dim=0))
    mapped = projection()(torch.stack(rows))
    assert_close(source.text, mapped / mapped.norm(dim=1, keepdim=True), atol=1e-6, rtol=0)
    assert len(talk2dino.TEMPLATES) == 7
    given = make(clip=clip, text_features=torch.stack(rows))
    assert_close(given.text, source.text, atol=1e-6, rtol=0)


def test_raw_text_is_cached_apart_from_unit_text(tmp_path):
    from ovss_refine_adapters.backbones.open_clip import load_clip

    clip, labels = load_clip(tiny_clip()), as_labels(CLASSES)
    for _ in range(2):
        raw = text_features(clip, labels, "single", tmp_path, unit=False)
        known = text_features(clip, labels, "single", tmp_path)
        assert_close(raw / raw.norm(dim=1, keepdim=True), known)
        assert not torch.allclose(raw.norm(dim=1), torch.ones(len(raw)), atol=0.1)
    assert len(list(tmp_path.glob("text-*.npy"))) == 2


class Count:
    """Count the passes of a module."""

    def __init__(self, module):
        self.passes = 0
        self.handle = module.register_forward_hook(self)

    def __call__(self, *args):
        self.passes += 1


@pytest.mark.parametrize("cleaned", [False, True])
def test_one_pass_gives_logits_and_attention(cleaned):
    source, batch = make(clean_background=cleaned), images(2, 56, 84)
    alone = source.logits(batch), source.attention(batch)
    counter = Count(vit().patch_embed)
    logits, attention = source.logits_and_attention(batch)
    counter.handle.remove()
    assert counter.passes == 1
    assert torch.equal(logits.values, alone[0].values)
    assert torch.equal(attention.weights, alone[1].weights)
    assert attention.grid == tuple(logits.values.shape[2:])
    assert torch.equal(attention.weights, ViTAttention(vit()).attention(batch).weights)


def test_a_segmenter_given_one_source_twice_runs_it_once():
    source, photo = make(), images(1, 56, 84)[0]
    wanted = Segmenter(source, ViTAttention(vit()), device="cpu")(photo, None)
    counter = Count(vit().patch_embed)
    got = Segmenter(source, source, device="cpu")(photo, None)
    assert counter.passes == 1
    other = Segmenter(source, source, device="cpu")(photo, ["lamp", "desk"])
    counter.handle.remove()
    assert counter.passes == 2
    assert torch.equal(got.labels, wanted.labels)
    assert {"logits", "attention"} <= got.seconds.keys() == wanted.seconds.keys()
    assert other.names == ("lamp", "desk")


def test_an_evaluation_given_both_at_once_runs_the_source_once_for_each_image():
    names = ["cat", "dog", "grass"]
    source, mask = make(names), np.arange(56 * 84).reshape(56, 84) % 3
    pairs = [(image, mask) for image in images(2, 56, 84)]
    counter = Count(vit().patch_embed)
    both = evaluate(source.logits_and_attention, dataset=pairs, names=names, rows=["refined"])
    assert counter.passes == 2
    twice = evaluate(source, source, dataset=pairs, names=names, rows=["refined"])
    assert counter.passes == 2 + 2
    apart = evaluate(source, make(names), dataset=pairs, names=names, rows=["refined"])
    counter.handle.remove()
    assert counter.passes == 2 + 2 + 4
    assert both.miou == twice.miou == apart.miou


def test_with_windows_the_attention_is_of_the_whole_image():
    source, batch = make(short_side=56, window=56, stride=28), images(1, 60, 90)
    logits, attention = source.logits_and_attention(batch)
    assert logits.values.shape == (1, 4, 56, 84)
    assert attention.grid == (4, 6)
    assert torch.equal(logits.values, source.logits(batch).values)


def test_windows_are_upsampled_corner_to_corner_and_averaged():
    source, batch = make(window=56, stride=28), images(2, 56, 84)

    def score(part):
        whole = make().logits(part).values
        return torch.nn.functional.interpolate(whole, (56, 56), mode="bilinear", align_corners=True)

    wanted = slide(batch, score, window=56, stride=28)
    assert_close(source.logits(batch).values, wanted, atol=1e-6, rtol=0)
    other = make(window=56, stride=28, faithful=False).logits(batch).values
    assert not torch.allclose(other, wanted, atol=1e-3)


def test_pamr_runs_on_the_pixels():
    batch = images(1, 56, 84)
    values = make(pamr_steps=2).logits(batch).values
    assert values.shape == (1, 4, 56, 84)
    assert not torch.allclose(values, make(pamr_steps=1).logits(batch).values, atol=1e-4)


def test_the_background_is_a_constant_that_no_other_map_depends_on():
    names = ["background", *CLASSES[1:]]
    source = make(names, background=0.55, clean_background=True)
    logits = source.logits(images(2, 56, 84))
    assert logits.names == tuple(names)
    assert torch.equal(logits.values[:, 0], torch.full((2, 4, 6), 0.55))
    without = make(CLASSES[1:], clean_background=True).logits(images(2, 56, 84))
    assert torch.equal(logits.values[:, 1:], without.values)
    assert source.text.shape == (2, 64)
    other = source.with_classes(["background", "lamp"])
    assert other.logits(images(1, 56, 84)).values.shape == (1, 2, 4, 6)
    with pytest.raises(ValueError, match=r"`classes` must begin with the background, with a sing"):
        source.with_classes(CLASSES)
    with pytest.raises(ValueError, match=r"`classes` must begin with the background"):
        make(["background"], background=0.5)


def test_a_map_depends_on_the_other_prompts_if_cleaned():
    batch = images(1, 56, 84)
    two, three = (make(CLASSES[:n], clean_background=True).logits(batch).values for n in (2, 3))
    assert not torch.equal(two, three[:, :3])
    two, three = (make(CLASSES[:n]).logits(batch).values for n in (2, 3))
    assert_close(two, three[:, :3])


def test_flat_attention_cleans_nothing_away():
    maps = torch.full((1, 2, 3, 3), 0.5)
    flat = clean(
        maps, torch.zeros(1, 2, 9), torch.zeros(1, 4, 3, 3), torch.eye(2, 4), 0.2, faithful=False
    )
    assert_close(flat, maps)


@pytest.mark.parametrize("kind", ["pth", "safetensors", "nested", "old"])
def test_projection_from_a_file(tmp_path, kind):
    state, path = dict(projection().state_dict()), tmp_path / "mlp.pth"
    if kind == "safetensors":
        path = tmp_path / "mlp.safetensors"
        save_file(state, path)
    elif kind == "old":
        names = {k: k.replace("hidden_layers.0", "linear_layer2") for k in state}
        torch.save({names[k]: v for k, v in state.items()}, path)
    else:
        torch.save(state if kind == "pth" else {"model_state_dict": state, "epoch": 3}, path)
    assert_close(make(projection=path).text, make().text)


def test_projection_from_a_folder(tmp_path):
    state = dict(projection().state_dict())
    torch.save({name: x + 1 for name, x in state.items()}, tmp_path / "vitl_mlp_infonce.pth")
    assert not torch.allclose(make(projection=tmp_path).text, make().text)
    torch.save(state, tmp_path / "vitb_mlp_infonce.pth")
    assert_close(make(projection=f"local-dir:{tmp_path}").text, make().text)


def test_wrong_projections_are_refused(tmp_path):
    missing = r"`projection` must be a weight.*vitb_mlp_infonce\.pth.* states no licence"
    with pytest.raises(ValueError, match=missing):
        make(projection=None)
    with pytest.raises(FileNotFoundError, match=r"`projection` must be an existing weight file"):
        make(projection=tmp_path / "none.pth")
    state, path = dict(projection().state_dict()), tmp_path / "mlp.pth"
    torch.save({k: v for k, v in state.items() if "hidden" not in k}, path)
    missing = r"`projection` must hold the tensors of its module; got no 'hidden_layers.0.weight'"
    with pytest.raises(ValueError, match=missing):
        make(projection=path)
    torch.save({**state, "linear_layer.bias": torch.full((64,), torch.nan)}, path)
    with pytest.raises(ValueError, match="must be finite; got 64 NaN"):
        make(projection=path)
    torch.save(TextProjection(24, 64), path)  # a module is code, not weights
    with pytest.raises(ValueError, match=r"`projection` must hold the tensors of its module"):
        make(projection=path)
    with pytest.raises(ValueError, match=r"`projection` must have shape \[K, C=64\]"):
        make(projection=tiny_models.tiny_projection(32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": 1.5}, "`background` must be"),
        ({"clean_background": 1}, "`clean_background` must be"),
        ({"clean_weight": -1}, "`clean_weight` must be"),
        ({"pamr_steps": -1}, "`pamr_steps` must be"),
        ({"stride": 500}, "`stride` must be at most `window` = 448"),
        ({"text_features": torch.ones(2, 24)}, r"`text_features` must have shape \[K=4, D\]"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(**({"window": 448} | options))
    with pytest.raises(TypeError, match="colour"):
        make(colour=1)


def test_classes_cannot_change_with_given_text():
    source = make(text_features=torch.ones(4, 24))
    with pytest.raises(ValueError, match="`text_features` must be None to change the classes"):
        source.with_classes(["a"])


def test_other_classes_on_the_same_models():
    source = make()
    other = source.with_classes(["lamp", "desk/table"])
    assert other.backbone is source.backbone
    fresh = make(["lamp", "desk/table"])
    batch = images(1, 56, 84)
    assert torch.equal(other.logits(batch).values, fresh.logits(batch).values)
    assert torch.equal(source.logits(batch).values, make().logits(batch).values)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 56, "stride": 28, "short_side": 56},
        {"clean_background": True},
        {"background": 0.55, "clean_background": True, "classes": ["background", *CLASSES[1:]]},
    ],
    ids=["whole", "windows", "cleaned", "background"],
)
def test_conformance(options):
    check_logits_source(functools.partial(make, **options))


def test_conformance_as_attention():
    check_attention_source(make)


def test_ready_models_stay_where_they_are():
    assert make(device="meta").backbone.model is vit()


def test_it_is_registered():
    source = load_logits(
        "talk2dino",
        classes=CLASSES,
        projection=projection(),
        model=vit(),
        clip=tiny_clip(),
        templates="single",
        cache_dir=None,
    )
    assert isinstance(source, Talk2DinoLogits)
    assert isinstance(source.backbone, TimmBackbone)
