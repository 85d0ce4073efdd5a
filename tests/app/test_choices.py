"""What the page lets people choose."""

from dataclasses import fields

import pytest

from ovss_refine import RefineConfig, list_attention, list_logits
from ovss_refine.app.choices import (
    HYPERPARAMETERS,
    describe_choice,
    list_sources,
    options_of,
    out_of_range,
)
from ovss_refine.method.modes import MODES

VALUES = {one.name: one.default for one in HYPERPARAMETERS}


@pytest.mark.parametrize("one", HYPERPARAMETERS, ids=lambda one: one.name)
def test_hyperparameters_have_their_defaults_and_valid_ranges(one):
    assert one.name in {field.name for field in fields(RefineConfig)}
    assert getattr(RefineConfig(), one.name) == one.default
    assert one.low <= one.default <= one.high
    steps = (one.default - one.low) / one.step
    assert steps == pytest.approx(round(steps))  # or the slider could not return to it
    for mode in one.modes:
        for value in (one.low, one.high):
            options = options_of(mode, list((VALUES | {one.name: value}).values()))
            assert options[one.name] == value
            RefineConfig(**options)


def test_a_slider_explains_itself():
    info = {one.name: one.info for one in HYPERPARAMETERS}
    assert info["epsilon"] == (
        "Entropy weight of the optimal path, in [0.02, 1e+06]. Higher: smoother maps."
    )
    assert info["propagation_steps"] == "Steps of propagation and anchored, in [0, 100000]."


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_gets_the_hyperparameters_that_it_reads(mode):
    options = options_of(mode, [float(value) for value in VALUES.values()])
    assert options["mode"] == mode
    assert RefineConfig(**options) == RefineConfig(mode=mode)
    assert ("tau" in options) == (mode in ("maximum_velocity", "fusion"))
    assert ("epsilon" in options) == (mode in ("optimal_path", "fusion"))
    assert ("propagation_steps" in options) == (mode in ("propagation", "anchored"))


def test_sources_that_need_files_are_left_out():
    wanted = {"npz", "callable", "lavg", "transformers", "talk2dino", "clip-dinoiser", "tcl"}
    assert set(list_logits()) - set(list_sources("logits")) == wanted
    assert set(list_attention()) - set(list_sources("attention")) == {"affinity", "timm"}


def test_a_choice_is_described():
    text = describe_choice("attention", "dinov3-b16")
    assert text.startswith("`dinov3-b16`: timm/vit_base_patch16_dinov3.lvd1689m; 0.3 GB; DINOv3")
    assert "use restrictions" in text


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("ovss_refine.sources.listing.find_spec", lambda name: None)
    text = describe_choice("logits", "sclip")
    assert text.endswith("; unavailable here: it needs open_clip (missing: open_clip).")


def test_a_value_that_is_no_number_of_its_slider_is_explained():
    def problem(name, value, mode="maximum_velocity"):
        return out_of_range(mode, list((VALUES | {name: value}).values()))

    assert problem("tau", 0.05) == problem("tau", 0.95) == ""
    for value in (0.04, 0.96, "", "0.5", None, float("nan")):
        assert problem("tau", value) == "`Reach` must be a number from 0.05 to 0.95."
        assert problem("tau", value, "optimal_path") == ""  # which does not read it
    assert problem("seed_quantile", 2) == "`Seed quantile` must be a number from 0 to 1."
