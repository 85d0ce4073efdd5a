"""Talk2DINO, CLIP-DINOiser and GroupViT against the authors' released code."""

import os

import pytest
import torch
import torch.nn.functional as F
from transformers import GroupViTConfig, GroupViTModel, GroupViTVisionConfig

from adapters import peer_vectors as pv
from adapters import peer_vectors2 as pv2
from ovss_refine.baseline.pamr import pamr
from ovss_refine_adapters.backbones.groupvit import encode, group_maps
from ovss_refine_adapters.backbones.positions import resize_positions_to
from ovss_refine_adapters.backbones.timm_attention import Projections
from ovss_refine_adapters.logits import (
    clip_dinoiser,
    groupvit,
    talk2dino,
    talk2dino_maps,
    talk2dino_projection,
)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def assert_golden(actual, expected, tolerance=pv2.COSINES):
    """Compare by the largest absolute difference, in float32 or float64."""
    pv.assert_golden(actual.float(), expected, tolerance)


# Talk2DINO.


def projection(golden, prefix="t2d_"):
    state = {
        name.removeprefix(prefix): golden[name]
        for name in golden
        if name.startswith((f"{prefix}linear_layer", f"{prefix}hidden_layers"))
    }
    made = talk2dino_projection.projection_of(state)
    made.load_state_dict(state)
    return made


def talk2dino_text(golden, Q=30):
    return F.normalize(projection(golden)(pv.text(30).features[:Q]), dim=-1)


def test_talk2dino_text():
    golden = pv2.load("talk2dino")
    mapped = projection(golden)(golden["t2d_text_raw"].mean(dim=1))
    assert_golden(F.normalize(mapped, dim=-1), golden["t2d_template_text"])
    assert_golden(talk2dino_text(golden), golden["t2d_text30"])


def class_attention(golden):
    """From the golden query of the class token and keys of patches."""
    keys = golden["t2d_patch_keys"][None]
    scale = pv2.metadata()["settings"]["talk2dino"]["scale"]
    found = Projections(golden["t2d_cls_query"][None, :, None], keys, scale)
    return talk2dino_maps.class_attention(found, 0)


def cleaned(golden, weight, Q=30):
    features, text = golden["t2d_patch_feat"][None], talk2dino_text(golden, Q)
    maps = talk2dino_maps.similarity(features, text).sigmoid()
    attention = class_attention(golden)
    return talk2dino_maps.clean(maps, attention, features, text, weight, faithful=True)


def up(maps, size):
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)


def test_talk2dino_maps():
    golden = pv2.load("talk2dino")
    cosines = talk2dino_maps.similarity(golden["t2d_patch_feat"][None], talk2dino_text(golden))
    assert_golden(cosines[0], golden["t2d_sim30"])
    assert_golden(pv2.sampled(up(cosines.sigmoid(), (224, 224)))[0], golden["t2d_up30"])


def test_talk2dino_cleaning():
    golden = pv2.load("talk2dino")
    assert_golden(class_attention(golden)[0], golden["t2d_cls_attention_logits"], pv2.FEATURES)
    default = pv2.metadata()["settings"]["talk2dino"]["lambda_bg"]
    assert default == talk2dino.Talk2DinoOptions().clean_weight
    maps = cleaned(golden, default)
    assert_golden(maps[0], golden["t2d_mask30_bg"])
    assert_golden(cleaned(golden, 0.8)[0], golden["t2d_mask30_bg_lambda08"])
    assert_golden(pv2.sampled(up(maps, (224, 224)))[0], golden["t2d_up30_bg"])


def test_talk2dino_pamr():
    golden, weight = pv2.load("talk2dino"), pv2.metadata()["settings"]["talk2dino"]["lambda_bg"]
    maps = up(cleaned(golden, weight, 4), (96, 80))  # all that the four classes have
    image = pv.image(224, 224)[..., :96, :80]
    refined = pamr(maps, image, iterations=10, dilations=talk2dino.PAMR_DILATIONS)
    assert_golden(refined[0, :, 1::3, 2::3], golden["t2d_pamr4_bg_96x80"])


def test_talk2dino_published_projection():
    golden = pv2.load("talk2dino")
    path = os.environ.get("OVSS_REFINE_TALK2DINO")
    if not path:
        pytest.skip(
            "no published weights: set OVSS_REFINE_TALK2DINO to the file `vitb_mlp_infonce.pth` "
            "from the folder `weights` of https://github.com/lorebianchi98/Talk2DINO"
        )
    mapped = talk2dino_projection.as_projection(path)(golden["t2d_voc21_clip_text"])
    assert_golden(mapped, golden["t2d_real_vitb_voc21"], pv2.FEATURES)


# CLIP-DINOiser.

# Padded at the right and the bottom to whole patches, with zeros after normalisation.
PADDED = {"224x224": (224, 224), "300x420": (304, 432)}


def make_dinoiser(Q=30, **options):
    golden = pv2.load("dinoiser")
    heads = clip_dinoiser.heads_of(golden)
    heads.load_state_dict({name: golden[name] for name in heads.state_dict()})
    names = [f"class {i}" for i in range(Q)]
    given = {"model": pv.model(), "text_features": pv.text(Q).features, "short_side": None}
    return clip_dinoiser.ClipDinoiserLogits(names, heads=heads, **given, **options)


def dinoiser_pixels(size):
    H, W = map(int, size.split("x"))
    high, wide = PADDED[size]
    return F.pad(pv.image(H, W), (0, wide - W, 0, high - H))


def rows(maps):
    """[1, D, h, w] to [N, D]."""
    return maps[0].flatten(1).mT


def as_accurate(name, tolerance):
    """The tolerance, unless the released code in float32 comes near it itself."""
    own = pv2.metadata()["max_abs_difference_float32_run_to_stored"][name]
    return max(tolerance, 2 * own)


def test_dinoiser_settings():
    settings, source = pv2.metadata()["settings"]["dinoiser"], make_dinoiser()
    assert source.similarity_threshold == settings["gamma"]
    assert source.confidence == settings["delta"]
    assert source.options.logit_scale == 100


@pytest.mark.parametrize("grid", ["21x28", "19x27", "10x12"])
def test_dinoiser_positions(grid):
    table = pv.model().visual.positional_embedding
    resized = resize_positions_to(table, tuple(map(int, grid.split("x"))))
    assert_golden(resized, pv2.load("dinoiser")[f"dinoiser_pos_{grid}"])


@pytest.mark.parametrize("size", PADDED)
def test_dinoiser_by_parts(size):
    golden, source, pixels = pv2.load("dinoiser"), make_dinoiser(), dinoiser_pixels(size)
    name = f"dinoiser_{size}"
    patches, read = source.patches(pixels)
    assert_golden(patches[0], golden[f"{name}_maskclip_feat"], pv2.FEATURES)
    features, foreground = source.encode(pixels)
    assert_golden(foreground[0], golden[f"{name}_bkg_logit"], pv2.FEATURES)
    assert_golden(rows(features), golden[f"{name}_feat"], pv2.FEATURES)
    if size == "224x224":
        inter = f"{name}_inter"
        assert_golden(read[0], golden[inter], as_accurate(inter, pv2.FEATURES))
        cosines, _ = source.heads(read.mT.reshape(1, -1, 14, 14))
        assert_golden(cosines[0, ::7], golden[f"{name}_corr"])


@pytest.mark.parametrize("size", PADDED)
def test_dinoiser_probabilities(size):
    golden, pixels, name = pv2.load("dinoiser"), dinoiser_pixels(size), f"dinoiser_{size}"
    source = make_dinoiser()
    assert_golden(source.cosines(pixels, None)[0], golden[f"{name}_logits30"])
    assert_golden(source.values(pixels, None)[0], golden[f"{name}_prob30"])
    source = make_dinoiser(background=True)
    values = source.values(pixels, None)
    assert_golden(values[0], golden[f"{name}_prob30_bkg"])
    changed = pv2.metadata()["statistics"]["dinoiser"][size]["patches_set_to_background"]
    assert int((values[0, 0] == 1).sum()) == changed > 0


def test_dinoiser_background_with_both_answers():
    golden, source = pv2.load("dinoiser"), make_dinoiser()
    how = pv2.metadata()["statistics"]["dinoiser"]["224x224_mid"]
    pixels = dinoiser_pixels("224x224")
    found = source.values(pixels, None), source.encode(pixels)[1]
    values = clip_dinoiser.add_background(*found, how["delta"])
    assert_golden(values[0], golden["dinoiser_224x224_prob30_bkg_mid"])
    assert int((values[0, 0] == 1).sum()) == how["patches_set_to_background"]


# GroupViT.

SIDE = 112
PREFIX = "groupvit_sd::"


def groupvit_model():
    """The golden image side; the text side is random and not used."""
    golden, config = pv2.load("groupvit"), pv2.metadata()["statistics"]["groupvit"]["config"]
    state = {name.removeprefix(PREFIX): x for name, x in golden.items() if name.startswith(PREFIX)}
    inner, outer = (state[f"visual_projection.{i}.weight"].shape[0] for i in (0, 3))
    whole = GroupViTConfig(
        vision_config=GroupViTVisionConfig(**config).to_dict(),
        projection_dim=outer,
        projection_intermediate_dim=inner,
    )
    model = GroupViTModel(whole).eval()
    result = model.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    skipped = ("text_", "logit_scale", "visual_projection.1.num_batches_tracked")
    assert all(name.startswith(skipped) for name in result.missing_keys)
    model.logit_scale.data.copy_(golden["groupvit_logit_scale"][0])
    return model


def make_groupvit(**options):
    text = pv2.load("groupvit")["groupvit_text30"]
    if "background" in options:
        text = torch.cat([torch.ones(1, text.shape[1]), text])
    names = [f"class {i}" for i in range(len(text))]
    given = {"model": groupvit_model(), "text_features": text, "short_side": None, "window": None}
    return groupvit.GroupVitLogits(names, **given, **options)


def groupvit_sampled(maps):
    return maps[..., 2::5, 3::5]


def test_groupvit_by_parts():
    golden, source, pixels = pv2.load("groupvit"), make_groupvit(), pv.image(SIDE, SIDE)
    groups, name = encode(source.model, pixels), f"groupvit_{SIDE}x{SIDE}"
    for i, assignment in enumerate(groups.assignments, 1):
        assert_golden(assignment[0], golden[f"{name}_assign{i}"])
    assert_golden(groups.features[0], golden[f"{name}_group_feat"], pv2.FEATURES)
    assert_golden(groups.mean[0], golden[f"{name}_avg_feat"], pv2.FEATURES)
    maps = group_maps(groups, source.grid(pixels), (SIDE, SIDE))[0]
    assert_golden(groupvit_sampled(maps), golden[f"{name}_group_map"])
    assert torch.equal(maps.argmax(dim=0), golden[f"{name}_group_index"].long())
    scores = groupvit.score(groups, source.text, source.factor, source.options.classes_kept)
    kept = (scores[0] > 0).any(dim=1).nonzero().flatten()
    assert kept.tolist() == sorted(golden[f"{name}_top5"].tolist())
    assert source.options.classes_kept == pv2.metadata()["settings"]["groupvit"]["top_k"]


@pytest.mark.parametrize("background", [None, 0.95, 0.05])
def test_groupvit_scores(background):
    golden, pixels = pv2.load("groupvit"), pv.image(SIDE, SIDE)
    options = {} if background is None else {"background": background}
    suffix = "" if background is None else f"_bg{round(100 * background):02}"
    values = make_groupvit(**options).values(pixels, None)[0]
    assert_golden(groupvit_sampled(values), golden[f"groupvit_112x112_pred30{suffix}"])


def test_the_segmentation_of_transformers_is_another_rule():
    golden, source, pixels = pv2.load("groupvit"), make_groupvit(), pv.image(SIDE, SIDE)
    groups = encode(source.model, pixels)
    own = group_maps(groups, source.grid(pixels), (SIDE, SIDE))
    cosines = source.text @ F.normalize(groups.features, dim=-1).mT  # [1, K, G]
    soft = torch.einsum("bkg,bghw->bkhw", source.factor**2 * cosines, own)
    stored = golden["groupvit_112x112_hf_seg30"]
    assert_golden(groupvit_sampled(soft)[0], stored, as_accurate("groupvit_112x112_hf_seg30", 2e-4))
    assert not torch.equal(
        stored.argmax(dim=0), groupvit_sampled(source.values(pixels, None))[0].argmax(dim=0)
    )
