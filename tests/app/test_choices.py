"""What the page lets people choose."""

from dataclasses import fields

import pytest

from ovss_refine import RefineConfig, list_attention, list_logits
from ovss_refine.app.choices import (
    NUMBERS,
    describe_choice,
    list_sources,
    options_of,
)
from ovss_refine.method.modes import MODES

VALUES = {number.name: number.default for number in NUMBERS}


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_numbers_have_the_defaults_and_lie_in_range(number):
    assert number.name in {field.name for field in fields(RefineConfig)}
    assert getattr(RefineConfig(), number.name) == number.default
    assert number.low <= number.default <= number.high
    steps = (number.default - number.low) / number.step
    assert steps == pytest.approx(round(steps))  # or the slider could not come back to it
    for mode in number.modes:
        for value in (number.low, number.high):
            RefineConfig(**options_of(mode, VALUES | {number.name: value}))


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_gets_the_numbers_that_it_uses(mode):
    options = options_of(mode, {name: float(value) for name, value in VALUES.items()})
    assert options["mode"] == mode
    assert RefineConfig(**options) == RefineConfig(mode=mode)
    assert ("tau" in options) == (mode in ("maximum_velocity", "fusion"))
    assert ("epsilon" in options) == (mode in ("optimal_path", "fusion"))
    assert ("propagation_steps" in options) == (mode in ("propagation", "anchored"))


def test_sources_that_need_files_are_left_out():
    assert set(list_logits()) - set(list_sources("logits")) == {"npz", "callable"}
    assert set(list_attention()) - set(list_sources("attention")) == {"affinity", "timm"}


def test_a_choice_is_described():
    text = describe_choice("attention", "dinov3-b16")
    assert text.startswith("`dinov3-b16`: timm/vit_base_patch16_dinov3.lvd1689m; 0.3 GB; DINOv3")
    assert "use restrictions" in text


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("ovss_refine.sources.listing.find_spec", lambda name: None)
    text = describe_choice("logits", "sclip")
    assert "(missing: open_clip): run `pip install 'ovss-refine[models]'`" in text
