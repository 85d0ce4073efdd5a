"""The simple producers, windows, decision rule and PAMR against the authors' released code."""

import pytest
import torch

from adapters import peer_vectors as pv
from ovss_refine import Logits
from ovss_refine.baseline.decision import decide
from ovss_refine.baseline.pamr import pamr
from ovss_refine_adapters.logits import clip
from ovss_refine_adapters.logits.windows import slide, upsample

PRODUCERS = {
    "raw": clip.clip,
    "maskclip_a": lambda *a, **o: clip.maskclip(*a, reading="a", **o),
    "maskclip_b": lambda *a, **o: clip.maskclip(*a, reading="b", **o),
    "sclip": clip.sclip,
    "clearclip": clip.clearclip,
    "naclip": clip.naclip,
    # NACLIP's own ablation without the Gaussian is k-k, and ClearCLIP is q-q.
    "naclip_variant_kk": clip.kk,
    "clearclip as qq": clip.qq,
}


def make(name, Q=30, **options):
    """A producer on the golden tower, with the golden queries for text."""
    text = pv.text(Q)
    given = {"model": pv.model(), "text_features": text.features, "short_side": None}
    return PRODUCERS[name](text.classes, **given, **options)


def features(source, pixels):
    """Patch features [N, D] of one image."""
    with torch.no_grad():
        return source.features(pixels)[0].flatten(1).mT


FAMILY = ["raw", "maskclip_a", "maskclip_b", "sclip", "clearclip", "naclip"]
FEATURES = [
    *((name, size) for name in [*FAMILY, "clearclip as qq"] for size in ("224x224", "336x448")),
    # As many patches as the native grid has, so that the position table is added unchanged.
    *((name, "112x448") for name in ("raw", "sclip")),
    ("naclip_variant_kk", "224x224"),
]


@pytest.mark.parametrize(("name", "size"), FEATURES)
def test_features(name, size):
    golden = pv.load("features_simple")[f"{name.split(' ')[0]}_{size}_feat"]
    pv.assert_golden(features(make(name), pv.image(*map(int, size.split("x")))), golden)


def test_no_features_are_left_out():
    stored = {key for key in pv.load("features_simple") if key.endswith("_feat")}
    left = stored - {f"{name.split(' ')[0]}_{size}_feat" for name, size in FEATURES}
    assert left == {"naclip_variant_nonly_224x224_feat"}  # an ablation that is not offered


@pytest.mark.parametrize("name", ["sclip", "clearclip", "naclip"])
def test_unit_features(name):
    unit = torch.nn.functional.normalize(features(make(name), pv.image(224, 224)), dim=-1)
    pv.assert_golden(unit, pv.load("features_simple")[f"{name}_224x224_feat_l2"])


@pytest.mark.parametrize(
    "name", ["raw", "maskclip_a", "maskclip_b", "sclip", "clearclip", "naclip"]
)
@pytest.mark.parametrize(("Q", "size"), [(30, (224, 224)), (56, (224, 224)), (30, (336, 448))])
def test_cosines(name, Q, size):
    with torch.no_grad():
        cosines = make(name, Q).cosines(pv.image(*size), None)[0]
    golden = pv.load("features_simple")
    pv.assert_golden(cosines, golden[f"{name}_{size[0]}x{size[1]}_logits{Q}"])
    if size == (224, 224) and Q == 30:
        up = upsample(cosines[None], size)[0, :, 3::16, 5::16]
        pv.assert_golden(up, golden[f"{name}_224x224_logits30_up"])


@pytest.mark.parametrize("grid", [(14, 14), (14, 21)])
def test_gaussian(grid):
    golden = pv.load("gaussian")[f"gaussian_{grid[0]}x{grid[1]}"]
    pv.assert_golden(clip.gaussian(grid, 5.0), golden)


def windowed(source, pixels):
    with torch.no_grad():
        return slide(
            pixels,
            lambda part: source.cosines(part, None),
            window=source.options.window,
            stride=source.options.stride,
            multiple=source.window_multiple,
        )


@pytest.mark.parametrize(
    ("size", "corner"), [((336, 448), (0, 0)), ((300, 420), (0, 0)), ((200, 300), (20, 30))]
)
def test_windows_of_sclip(size, corner):
    golden, name = pv.load("sliding"), f"slide_sclip_{size[0]}x{size[1]}"
    average = windowed(make("sclip"), pv.image(*size, *corner))
    pv.assert_golden(average[0, :10, 5::16, 7::16], golden[f"{name}_avg"])
    final = upsample(average, pv.metadata()["sliding"][name]["ori_shape"])
    pv.assert_golden(final[0, :10], golden[f"{name}_final"])


@pytest.mark.parametrize("name", ["naclip", "clearclip"])
def test_windows_of_naclip_and_clearclip(name):
    average = windowed(make(name), pv.image(300, 420))
    golden = pv.load("sliding")[f"slide_{name}_300x420_final"]
    pv.assert_golden(upsample(average, (38, 53))[0, :10], golden)


def test_windows_then_pamr():
    image = pv.image(300, 420)
    final = upsample(windowed(make("naclip"), image), (38, 53))
    golden = pv.load("sliding")["slide_naclip_pamr_300x420_final"]
    pv.assert_golden(pamr(final, image)[0, :10], golden)


@pytest.mark.parametrize(("name", "through"), [("sclip", None), ("naclip", (336, 448))])
def test_whole_image_resized_once_or_twice(name, through):
    with torch.no_grad():
        values = make(name).cosines(pv.image(336, 448), None)
    if through is not None:
        values = upsample(values, through)
    golden = pv.load("sliding")[f"whole_{name}_336x448_final"]
    pv.assert_golden(upsample(values, (38, 50))[0, :10], golden)


@pytest.mark.parametrize("iterations", [1, 10])
def test_pamr(iterations):
    golden = pv.load("pamr")
    out = pamr(golden["pamr_mask"][None], golden["pamr_image"][None], iterations=iterations)
    pv.assert_golden(out[0], golden["pamr_out" if iterations == 10 else "pamr_out_iter1"])


def test_decisions():
    golden, cases = pv.load("decision"), pv.metadata()["decision"]
    assert len(cases) == 36
    scored = 0
    for case in cases:
        index = range(case["num_queries"])
        if case["num_queries"] != case["num_classes"]:
            index = pv.load("inputs")[case["prompt_index"]]
        values = golden[case["logits"].split("[")[0]][: case["num_queries"]]
        decision = decide(
            Logits(values, case["logit_scale"], index),
            probability_threshold=case["prob_thd"],
            area_threshold=case["area_thd"],
        )
        torch.testing.assert_close(decision.labels, golden[f"{case['case']}_label"].long())
        if (scores := golden.get(f"{case['case']}_score")) is not None:
            pv.assert_golden(decision.scores[:, ::3, ::3], scores)
            scored += 1
    assert scored == sum(key.endswith("_score") for key in golden) - 1  # one is NACLIP's


def test_decision_of_naclip():
    golden, case = pv.load("decision"), pv.metadata()["decision_naclip"]
    decision = decide(
        Logits(golden["decision_logits30"], case["logit_scale"], pv.text(30).prompt_index),
        probability_threshold=case["prob_thd"],
    )
    torch.testing.assert_close(decision.labels, golden["decision_naclip_label"].long())
    # NACLIP divides the scores that it stores by their sum, after it has decided.
    stored = decision.scores / decision.scores.sum(dim=0)
    pv.assert_golden(stored[:, ::3, ::3], golden["decision_naclip_score"])
