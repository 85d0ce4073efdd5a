"""ProxyCLIP, SC-CLIP, CASS and RF-CLIP against the authors' released code."""

import pytest
import torch

from adapters import peer_vectors as pv
from ovss_refine_adapters.logits import cass_graph
from ovss_refine_adapters.logits import global_text as gt
from ovss_refine_adapters.logits.cass import RANK, CassLogits
from ovss_refine_adapters.logits.proxyclip import ProxyClipLogits
from ovss_refine_adapters.logits.rf_clip import RfClipLogits
from ovss_refine_adapters.logits.sc_clip import ScClipLogits, outlier_factor
from ovss_refine_adapters.logits.windows import upsample

# As the vectors' README states, where they differ from the general tolerance.
LOF_TOLERANCE = 3e-5
SINGULAR_TOLERANCE = 1e-5  # relative


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def make(producer, Q=30, **options):
    """A producer on the golden tower, with the golden queries for text."""
    text = pv.text(Q).features
    names = [f"class {i}" for i in range(Q)]
    return producer(names, model=pv.model(), text_features=text, short_side=None, **options)


def pixels_of(size):
    return pv.image(*map(int, size.split("x")))


def rows(maps):
    """[1, D, h, w] to [N, D]."""
    return maps[0].flatten(1).mT


def assert_features(source, golden, name, size):
    pv.assert_golden(rows(source.features(pixels_of(size))), golden[f"{name}_feat"])


def assert_cosines(source, golden, name, size, Q, context=None):
    cosines = source.cosines(pixels_of(size), context)
    pv.assert_golden(cosines[0], golden[f"{name}_logits{Q}"])
    up = golden.get(f"{name}_logits{Q}_up")
    if up is not None:
        full = upsample(cosines, tuple(map(int, size.split("x"))))
        pv.assert_golden(full[0, :, 3::16, 5::16], up)
    return up is not None


# ProxyCLIP.


@pytest.mark.parametrize("size", ["224x224", "336x336"])
def test_proxyclip(size):
    golden = pv.load("proxyclip")
    settings = pv.metadata()["settings"]["proxyclip"]
    source = make(ProxyClipLogits, proxy=lambda images: golden[f"E_{size}"][None])
    assert (source.beta, source.gamma) == (settings["beta"], settings["gamma"])
    assert_features(source, golden, f"proxyclip_{size}", size)
    assert assert_cosines(source, golden, f"proxyclip_{size}", size, 30) == (size == "224x224")


def test_proxyclip_with_other_queries():
    golden = pv.load("proxyclip")
    source = make(ProxyClipLogits, 56, proxy=lambda images: golden["E_224x224"][None])
    assert_cosines(source, golden, "proxyclip_224x224", "224x224", 56)


# SC-CLIP.


def test_scclip_settings():
    settings, source = pv.metadata()["settings"]["scclip"], make(ScClipLogits)
    how = source.calibration
    assert settings == {
        "similarity_threshold": source.similarity_threshold,
        "pre_adjust_idx": how.pre_adjust,
        "post_adjust_idx": how.post_adjust,
        "multi_start_idx": how.multi_start,
        "multi_end_idx": how.multi_end,
        "res_cls": how.class_weight,
        "lof_neighbours": source.neighbours,
        "lof_contamination": source.contamination,
    }


@pytest.mark.parametrize("size", ["224x224", "320x320"])
def test_scclip(size):
    golden, source = pv.load("scclip"), make(ScClipLogits)
    tower, name = source.tower, f"scclip_{size}"
    x, _ = tower.blocks(tower.stem(pixels_of(size)), 0, tower.layers - 1)
    score = outlier_factor(x[:, 1:], source.neighbours, faithful=True)
    pv.assert_golden(score[0], golden[f"{name}_lof_score"], LOF_TOLERANCE)
    found = source.outliers(x[:, 1:])[0].nonzero().flatten()
    assert found.tolist() == golden[f"{name}_outlier_index"].tolist()
    assert_features(source, golden, name, size)
    assert assert_cosines(source, golden, name, size, 30) == (size == "224x224")


def test_scclip_with_other_queries():
    source = make(ScClipLogits, 56)
    assert_cosines(source, pv.load("scclip"), "scclip_224x224", "224x224", 56)


# CASS.


class Keys:
    """The golden keys instead of DINO's."""

    def __init__(self, name):
        golden = pv.load("cass")
        if name == "lowrank":
            self.held = golden["lowrank_left"] @ golden["lowrank_right"]
        else:
            self.held = golden[name]
        side = round(self.held.shape[1] ** 0.5)
        self.size = (side, side)

    def keys(self, images):
        return self.held[None].expand(len(images), -1, -1, -1)

    def grid(self, images):
        return self.size


CASS = [
    "cass_224x224_keysA_asis",
    "cass_224x224_keysA_asis_identity",
    "cass_224x224_keysA_stretch",
    "cass_224x224_lowrank_asis",
    "cass_336x448_keysB_stretch",
]


def make_cass(name, Q=30, **options):
    _, _, keys, spectrum, *_ = name.split("_")
    case = pv.metadata()["cass_cases"][name]
    given = {
        "proxy": Keys(keys),
        "spectrum_stretch": spectrum == "stretch",
        "seed": case["seed"],
        "assignment": case["used_assignment"],
    }
    return make(CassLogits, Q, **(given | options))


def keys_of(source, pixels):
    """The proxy's keys, in CLIP's range, and CLIP's own."""
    tower = source.tower
    x, _ = tower.blocks(tower.stem(pixels), 0, tower.layers - 1)
    own = tower.qkv(tower.layers - 1, x)[1][:, :, 1:]
    grid = tower.grid(*pixels.shape[-2:])
    return cass_graph.match_range(source.proxy_keys(pixels, grid), own), own


def test_no_case_of_cass_is_left_out():
    assert sorted(pv.metadata()["cass_cases"]) == CASS


@pytest.mark.parametrize("name", CASS)
def test_cass(name):
    golden, size = pv.load("cass"), name.split("_")[1]
    source = make_cass(name)
    maps, own = source.encode(pixels_of(size))
    pv.assert_golden(rows(maps), golden[f"{name}_feat"])
    pv.assert_golden(own[0], golden[f"{name}_cls"])
    pv.assert_golden(source.class_embedding(pixels_of(size))[0], golden[f"{name}_cls"])


@pytest.mark.parametrize("name", CASS)
def test_cass_by_parts(name):
    golden, case = pv.load("cass"), pv.metadata()["cass_cases"][name]
    source = make_cass(name)
    proxy, own = keys_of(source, pixels_of(name.split("_")[1]))
    pairing = source.pair(proxy, own)
    pv.assert_golden(pairing.cost[0], golden[f"{name}_cost"])
    order = torch.tensor(case["used_assignment"])
    assert pairing.heads[0].tolist() == order.tolist()
    pv.assert_golden(pairing.weight[0], 1 - golden[f"{name}_cost"][range(len(order)), order])
    factor = proxy[:, order].double() * proxy.shape[-1] ** -0.25
    u, s, v = cass_graph.randomised_svd(factor, RANK, case["seed"])
    largest = golden[f"{name}_sv"].max()
    torch.testing.assert_close(
        s[0],
        golden[f"{name}_sv"].double(),
        rtol=SINGULAR_TOLERANCE,
        atol=1e-7 * float(largest),  # a graph of lower rank leaves rounding errors
    )
    if f"{name}_svd_u" in golden:
        stored = golden[f"{name}_svd_u"] * golden[f"{name}_sv"][:, None]
        stored = stored @ golden[f"{name}_svd_v"].mT
        # Products of order ten.
        pv.assert_golden(((u * s[..., None, :]) @ v.mT)[0] / largest, stored / largest)


@pytest.mark.parametrize("name", ["cass_224x224_lowrank_asis", "cass_336x448_keysB_stretch"])
def test_assignment_of_cass(name):
    """The solver's own choice, where the best two are not nearly tied."""
    case = pv.metadata()["cass_cases"][name]
    assert case["natural_cost_gap"] > 1e-3
    source = make_cass(name, assignment=None)
    pairing = source.pair(*keys_of(source, pixels_of(name.split("_")[1])))
    assert pairing.heads[0].tolist() == case["natural_assignment"]


# RF-CLIP.


def make_rf(Q=30, **options):
    channels = pv.metadata()["settings"]["rfclip"]["sink_channels"]
    return make(RfClipLogits, Q, sink_channels=channels, **options)


@pytest.mark.parametrize("size", ["224x224", "336x448"])
def test_rfclip(size):
    golden, source = pv.load("rfclip"), make_rf()
    maps, own = source.encode(pixels_of(size))
    pv.assert_golden(rows(maps), golden[f"rfclip_{size}_feat"])
    pv.assert_golden(own[0], golden[f"rfclip_{size}_cls"])
    pv.assert_golden(source.class_embedding(pixels_of(size))[0], golden[f"rfclip_{size}_cls"])


# The branch of text and global logits, of both.

BRANCHES = [
    *(
        (method, size, origin, settings, Q)
        for method, size in (("cass", "224x224"), ("rfclip", "224x224"))
        for origin, settings, Q in (
            ("crop", "p1", 30),
            ("crop", "p2", 56),
            ("whole", "p1", 30),
        )
    ),
    ("cass", "224x224", "whole", "p2", 30),
    ("rfclip", "336x448", "crop", "p1", 30),
]


def make_branch(method, settings, Q):
    given = pv.metadata()["settings"]["text_adjustment"][settings]
    options = {
        "global_weight": given["gamma"],
        "patch_weight": given["alpha"],
        "cluster_distance": given["h"],
    }
    if method == "cass":
        return make_cass("cass_224x224_lowrank_asis", Q, **options)
    return make_rf(Q, **options)


def test_no_branch_is_left_out():
    stored = {
        key.rpartition("_logits")[0] + "_" + key.rpartition("_logits")[2]
        for name in ("cass", "rfclip")
        for key in pv.load(name)
        if "_logits" in key and not key.endswith("_up")
    }
    assert stored == {f"{m}_{s}_{o}_global_{p}_{Q}" for m, s, o, p, Q in BRANCHES}


@pytest.mark.parametrize(("method", "size", "origin", "settings", "Q"), BRANCHES)
def test_text_branch(method, size, origin, settings, Q):
    golden = pv.load(method)
    name = f"{method}_{size}_{origin}_global_{settings}"
    source = make_branch(method, settings, Q)
    assert source.groups.tolist() == golden[f"{name}_cluster{Q}"].tolist()
    # With windows, the class embedding is that of the whole image.
    context = source.context(pv.image(336, 448)) if origin == "whole" else None
    maps, own = source.encode(pixels_of(size))
    unit = torch.nn.functional.normalize(maps, dim=1)[0].flatten(1).mT[None]
    embedding = torch.nn.functional.normalize(own if context is None else context, dim=-1)
    whole = embedding @ source.text.T
    pv.assert_golden(whole[0], golden[f"{name}_global_sim{Q}"])
    chosen = gt.nearest_prompts(source.groups, whole)
    assert chosen[0].tolist() == golden[f"{name}_selected{Q}"].tolist()
    nearest = gt.nearest_patches(source.text[chosen], unit)
    assert nearest[0].tolist() == golden[f"{name}_top2_{Q}"].tolist()
    text = gt.adjust(source.text, source.groups, whole, unit, source.patch_weight)
    pv.assert_golden(text[0], golden[f"{name}_text{Q}"])
    assert_cosines(source, golden, name, size, Q, context)


def test_no_array_is_left_out():
    """Every array of the four files is read by a test above."""
    parts = ("_feat", "_cls", "_cost", "_sv", "_svd_u", "_svd_v", "_lof_score", "_outlier_index")
    parts += tuple(
        f"_{what}{Q}{end}"
        for what in ("logits", "global_sim", "cluster", "selected", "top2_", "text")
        for Q in (30, 56)
        for end in ("", "_up")
    )
    inputs = {"E_224x224", "E_336x336", "keysA", "keysB", "lowrank_left", "lowrank_right"}
    for name in ("proxyclip", "scclip", "cass", "rfclip"):
        left = {key for key in pv.load(name) if not key.endswith(parts)}
        assert left <= inputs
