"""GEM, CLIP Surgery, CLIPtrase and LaVG against the authors' released code."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adapters import peer_vectors as pv
from adapters import peer_vectors2 as pv2
from ovss_refine import Logits
from ovss_refine.baseline.decision import decide
from ovss_refine_adapters.backbones.positions import resize_positions_to
from ovss_refine_adapters.logits import clip_surgery, gem, regions
from ovss_refine_adapters.logits.clip_surgery import ClipSurgeryLogits
from ovss_refine_adapters.logits.cliptrase import CliptraseLogits, affinity
from ovss_refine_adapters.logits.lavg import LavgLogits
from ovss_refine_adapters.logits.windows import upsample


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def make(producer, Q=30, **options):
    """A producer on the golden tower, with the golden queries for text, on images as they are."""
    text = pv.text(Q).features
    names = [f"class {i}" for i in range(Q)]
    plain = {"short_side": None, "window": None}
    return producer(names, model=pv.model(), text_features=text, **(plain | options))


def size_of(name):
    return tuple(map(int, name.split("x")))


def pixels_of(name):
    return pv.image(*size_of(name))


def rows(maps):
    """[1, D, h, w] to [N, D]."""
    return maps[0].flatten(1).mT


def test_the_tower_is_that_of_the_same_set():
    """The class token's position is in both, whatever the grid."""
    one, two = position_table()[0], pv2.load("clip_surgery")["surgery_pos_21x21"][0]
    folders = f"`{pv.VECTORS.path()}` and `{pv2.VECTORS.path()}`"
    wanted = f"{folders} must be of one seed: set {pv.VECTORS.variable} and {pv2.VECTORS.variable}"
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0, msg=wanted)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, "shared/data/peer_vectors"),
        ({"OVSS_REFINE_PEER_VECTORS2": "b/peer_vectors2"}, "b/peer_vectors"),
        ({"OVSS_REFINE_PEER_VECTORS2": "alone/peer_vectors2"}, "shared/data/peer_vectors"),
        ({"OVSS_REFINE_PEER_VECTORS": "a", "OVSS_REFINE_PEER_VECTORS2": "b/peer_vectors2"}, "a"),
    ],
)
def test_the_tower_lies_beside_what_was_computed_from_it(tmp_path, monkeypatch, given, wanted):
    for name in ("a", "b/peer_vectors", "b/peer_vectors2", "alone/peer_vectors2"):
        (tmp_path / name).mkdir(parents=True)
    for vectors in (pv.VECTORS, pv2.VECTORS):
        monkeypatch.delenv(vectors.variable, raising=False)
    for variable, path in given.items():
        monkeypatch.setenv(variable, str(tmp_path / path))
    beside = Path(__file__).parents[3] if wanted.startswith("shared") else tmp_path
    assert pv.VECTORS.path() == beside / wanted


def position_table():
    return pv.load("visual_tower_fp16")["visual.positional_embedding"]


# GEM.

GEM_VARIANTS = {
    "depth4": {"blocks": 3},
    "iter0": {"iterations": 0},
    "iter3": {"iterations": 3},
    "temp10": {"temperature": 10.0},
}


def test_gem_settings():
    settings, source = pv2.metadata()["settings"]["gem"], make(gem.GemLogits)
    assert settings["blocks_changed"] == source.blocks == settings["depth"] - 1
    assert settings["ss_attn_iter"] == source.iterations
    assert settings["ss_attn_temp"] is source.temperature is None
    assert settings["variants"] == {
        "depth4": {"depth": GEM_VARIANTS["depth4"]["blocks"] + 1},
        "iter0": {"ss_attn_iter": 0},
        "iter3": {"ss_attn_iter": 3},
        "temp10": {"ss_attn_temp": 10.0},
    }


@pytest.mark.parametrize("size", ["224x224", "336x448", "112x448", "160x192"])
def test_gem(size):
    golden, source = pv2.load("gem"), make(gem.GemLogits)
    features = source.features(pixels_of(size))
    pv.assert_golden(rows(features), golden[f"gem_{size}_feat"], pv2.FEATURES)


def test_gem_normal_stream():
    features = make(gem.GemLogits, blocks=0).features(pixels_of("224x224"))
    pv.assert_golden(rows(features), pv2.load("gem")["gem_224x224_ori_feat"], pv2.FEATURES)


@pytest.mark.parametrize("name", GEM_VARIANTS)
def test_gem_variants(name):
    features = make(gem.GemLogits, **GEM_VARIANTS[name]).features(pixels_of("224x224"))
    golden = pv2.load("gem")[f"gem_variant_{name}_224x224_feat"]
    pv.assert_golden(rows(features), golden, pv2.FEATURES)


@pytest.mark.parametrize(("Q", "size"), [(30, "224x224"), (56, "224x224"), (30, "336x448")])
def test_gem_cosines_and_maps(Q, size):
    golden = pv2.load("gem")
    cosines = make(gem.GemLogits, Q).cosines(pixels_of(size), None)
    pv.assert_golden(cosines[0], golden[f"gem_{size}_logits{Q}"], pv2.COSINES)
    if Q == 30:
        maps = pv2.sampled(gem.heat_maps(cosines, size_of(size)))[0]
        pv.assert_golden(maps, golden[f"gem_{size}_minmax30"], pv2.COSINES)
    if size == "224x224" and Q == 30:
        up = pv2.sampled(upsample(cosines, size_of(size)))[0]
        pv.assert_golden(up, golden["gem_224x224_logits30_up"], pv2.COSINES)


def test_gem_temperatures():
    source = make(gem.GemLogits)
    x = source.tower.stem(pixels_of("224x224"))
    found = []
    for i in range(source.tower.layers):
        found.append(float(gem.adaptive(source.tower.attended(i, x), 64)))
        x = source.tower.block(i, x)
    stored = pv2.metadata()["statistics"]["gem"]["inverse_temperature_224x224_block_7_to_12"]
    assert found[6:] == pytest.approx(stored, abs=0.00501)  # two decimals are stored


@pytest.mark.parametrize("grid", ["21x28", "10x12", "20x9"])
def test_gem_positions(grid):
    table = resize_positions_to(position_table(), size_of(grid), antialias=True)
    pv.assert_golden(table, pv2.load("gem")[f"gem_pos_{grid}"], pv2.COSINES)


# CLIP Surgery.


def test_clip_surgery_settings():
    settings = pv2.metadata()["settings"]["clip_surgery"]
    assert settings["blocks_changed"] == make(ClipSurgeryLogits).blocks
    assert settings["weight_temperature"] == clip_surgery.WEIGHT_SCALE


@pytest.mark.parametrize("size", ["224x224", "336x336", "112x448"])
def test_clip_surgery(size):
    golden = pv2.load("clip_surgery")
    patches, whole = make(ClipSurgeryLogits).encode(pixels_of(size))
    pv.assert_golden(rows(patches), golden[f"surgery_{size}_feat"], pv2.FEATURES)
    pv.assert_golden(whole[0], golden[f"surgery_{size}_cls"], pv2.FEATURES)


@pytest.mark.parametrize(("Q", "size"), [(30, "224x224"), (56, "224x224"), (30, "336x336")])
def test_feature_surgery(Q, size):
    golden, source = pv2.load("clip_surgery"), make(ClipSurgeryLogits, Q)
    pixels = pixels_of(size)
    patches, whole = (F.normalize(x, dim=1) for x in source.encode(pixels))
    cosines = torch.einsum("dhw,kd->khw", patches[0], source.text)
    pv.assert_golden(cosines, golden[f"surgery_{size}_logits{Q}"], pv2.COSINES)
    weights = clip_surgery.weights(whole @ source.text.T)
    pv.assert_golden(weights[0], golden[f"surgery_{size}_weight{Q}"], pv2.COSINES)
    values = source.cosines(pixels, None)
    pv.assert_golden(values[0], golden[f"surgery_{size}_fs{Q}"], pv2.COSINES)
    if Q == 30:
        maps = pv2.sampled(clip_surgery.heat_maps(values, size_of(size)))[0]
        pv.assert_golden(maps, golden[f"surgery_{size}_map30"], pv2.COSINES)


@pytest.mark.parametrize("size", ["224x224", "336x336"])
def test_redundant_text(size):
    source = make(ClipSurgeryLogits, redundant=pv.text(30).features[29])
    got = source.cosines(pixels_of(size), None)[0, :5]
    golden = pv2.load("clip_surgery")[f"surgery_{size}_redundant5"]
    pv.assert_golden(got, golden, pv2.COSINES)


def test_clip_surgery_positions():
    table = resize_positions_to(position_table(), (21, 21), mode="bilinear")
    pv.assert_golden(table, pv2.load("clip_surgery")["surgery_pos_21x21"], pv2.COSINES)


def test_one_size_after_another_is_not_that_of_the_released_code():
    """It resizes its table again at the next size, `surgery_reused_*`; here each image is alone."""
    source, golden = make(ClipSurgeryLogits), pv2.load("clip_surgery")
    source.encode(pixels_of("336x336"))
    again = rows(source.encode(pixels_of("224x224"))[0])
    pv.assert_golden(again, golden["surgery_224x224_feat"], pv2.FEATURES)
    assert float((again - golden["surgery_reused_224x224_feat"]).abs().max()) > 0.01


# CLIPtrase.

CLIPTRASE_CASES = ["224x224_release", "224x224_small", "336x336_release", "336x336_small"]


@pytest.mark.parametrize("size", ["224x224", "336x336"])
def test_cliptrase(size):
    golden, source = pv2.load("cliptrase"), make(CliptraseLogits, regions="none")
    patches, whole, correlation = source.encode(pixels_of(size))
    pv.assert_golden(rows(patches), golden[f"cliptrase_{size}_feat"], pv2.FEATURES)
    pv.assert_golden(whole[0], golden[f"cliptrase_{size}_cls"], pv2.FEATURES)
    stored = golden[f"cliptrase_{size}_similarity11"]
    pv.assert_golden(correlation[0, ::9], stored, pv2.COSINES)
    cosines = source.cosines(pixels_of(size), None)
    pv.assert_golden(cosines[0], golden[f"cliptrase_{size}_logits30"], pv2.COSINES)


def cliptrase(case, **options):
    """A source with the settings of a case, and its pixels."""
    how = pv2.metadata()["statistics"]["cliptrase"][case]
    if case.endswith("release"):
        assert (how["eps"], how["min_samples"]) == ((0.7, 3) if "224" in case else (1.1, 7))
    options |= {key: how[key] for key in ("eps", "min_samples")}
    options["class_factor"] = how["voc20_class_factor"]
    return make(CliptraseLogits, **options), pixels_of(case.split("_")[0])


@pytest.mark.parametrize("case", CLIPTRASE_CASES)
def test_cliptrase_clusters(case):
    source, pixels = cliptrase(case)
    found = regions.dbscan(affinity(source.encode(pixels)[2][0]), source.eps, source.min_samples)
    stored = pv2.load("cliptrase")[f"cliptrase_{case}_dbscan"]
    assert found.tolist() == stored.tolist()
    how = pv2.metadata()["statistics"]["cliptrase"][case]
    assert int(found.max()) + 1 == how["clusters"]
    assert int((found < 0).sum()) == how["noise_patches"]


@pytest.mark.parametrize("case", CLIPTRASE_CASES)
def test_cliptrase_labels(case):
    golden, size = pv2.load("cliptrase"), size_of(case.split("_")[0])
    for how, name in (("none", "pred_before"), ("vote", "label")):
        source, pixels = cliptrase(case, regions=how)
        labels = decide(Logits(source.cosines(pixels, None), 100.0), size).labels
        stored = golden[f"cliptrase_{case}_{name}"]
        assert torch.equal(labels[0, 1::4, 2::4], stored.long()), how


# LaVG, its second stage.


@pytest.mark.parametrize("voc21", [False, True])
def test_lavg(voc21):
    stored = pv2.load("lavg")["lavg_masks"].numpy()
    masks = torch.from_numpy(np.unpackbits(stored, axis=-1)).bool()
    text = pv.text(56)
    source = LavgLogits(
        text.classes,
        masks=lambda images: [masks],
        model=pv.model(),
        text_features=text.features,
        short_side=None,
        no_object_is_background=voc21,
    )
    pixels = torch.cat([pixels_of("224x224"), masks[None].float()], dim=1)
    got = pv2.sampled(source.cosines(pixels, None))[0]
    golden = pv2.load("lavg")["lavg_224x224_logits56" + "_voc21" * voc21]
    pv.assert_golden(got, golden, pv2.COSINES)
