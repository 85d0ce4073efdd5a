"""Talk2DINO, CLIP-DINOiser and GroupViT against the authors' released code."""

import os

import pytest
import torch
import torch.nn.functional as F

from adapters import peer_vectors as pv
from adapters import peer_vectors2 as pv2
from ovss_refine.baseline.pamr import pamr
from ovss_refine_adapters.backbones.timm_attention import Projections
from ovss_refine_adapters.logits import talk2dino, talk2dino_maps, talk2dino_projection


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
    golden = pv2.load("talk2dino")
    maps = up(cleaned(golden, 0.2, 4), (96, 80))  # all that the four classes have
    image = pv.image(224, 224)[..., :96, :80]
    refined = pamr(maps, image, iterations=10, dilations=talk2dino.PAMR_DILATIONS)
    assert_golden(refined[0, :, 1::3, 2::3], golden["t2d_pamr4_bg_96x80"])


def test_talk2dino_published_projection():
    golden = pv2.load("talk2dino")
    path = os.environ.get("OVSS_REFINE_TALK2DINO")
    if not path:
        pytest.skip("no published weights (set OVSS_REFINE_TALK2DINO to vitb_mlp_infonce.pth)")
    mapped = talk2dino_projection.as_projection(path)(golden["t2d_voc21_clip_text"])
    assert_golden(mapped, golden["t2d_real_vitb_voc21"], pv2.FEATURES)


def test_no_array_of_talk2dino_is_left_out():
    inputs = {"t2d_patch_feat", "t2d_cls_query", "t2d_patch_keys", "t2d_text_raw"}
    layers = {f"t2d_{name}" for name in talk2dino_projection.TextProjection(1, 1).state_dict()}
    tested = {
        *("t2d_template_text", "t2d_text30", "t2d_cls_attention_logits", "t2d_sim30"),
        *("t2d_mask30_bg", "t2d_mask30_bg_lambda08", "t2d_up30", "t2d_up30_bg"),
        *("t2d_pamr4_bg_96x80", "t2d_voc21_clip_text", "t2d_real_vitb_voc21"),
    }
    assert set(pv2.load("talk2dino")) == inputs | layers | tested
