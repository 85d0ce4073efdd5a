"""Upsamplers by name: built in, registered, as MODULE:FUNCTION; names for manifests."""

import json
import sys
from functools import partial
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from forks import fresh
from ovss_refine import RefineConfig, joint_bilateral_upsample, registry
from ovss_refine.upsamplers import names
from ovss_refine.upsamplers.bilinear import bilinear_upsample
from ovss_refine.upsamplers.guided import guided_upsample
from ovss_refine.upsamplers.names import (
    BUILT_IN,
    list_upsamplers,
    load_upsampler,
    name_of,
    resolved,
    settings_of,
)


class Mine:
    def __call__(self, low, image):
        return bilinear_upsample(low, image)


@pytest.fixture
def registered(monkeypatch):
    """One upsampler that another package registers."""
    module = ModuleType("their_package")
    module.sharp, module.number = Mine(), 3
    monkeypatch.setitem(sys.modules, "their_package", module)
    point = EntryPoint("sharp", "their_package:sharp", "ovss_refine.upsampler")
    monkeypatch.setattr(registry, "_registered", lambda kind: {"sharp": point})
    monkeypatch.setattr(names, "entry_points", lambda group: [point])
    return module.sharp


def test_built_in():
    functions = [joint_bilateral_upsample, bilinear_upsample, guided_upsample]
    assert [load_upsampler(name) for name in BUILT_IN] == functions
    assert list_upsamplers()[:3] == ["jbu", "bilinear", "guided"]


def test_registered_ones_are_found_like_sources(registered):
    assert list_upsamplers() == ["jbu", "bilinear", "guided", "sharp"]
    assert load_upsampler("sharp") is registered
    assert RefineConfig(upsampler="sharp").upsampler == "sharp"
    with pytest.raises(ValueError, match=r"'guided', 'sharp'\]; got 'shar'. Did you mean 'sharp'"):
        RefineConfig(upsampler="shar")


@pytest.mark.usefixtures("registered")
def test_module_and_function():
    config = RefineConfig(upsampler="their_package:sharp")
    assert config.upsampler == "their_package:sharp"
    assert isinstance(resolved(config.upsampler), Mine)
    for wrong in (
        "their_package:blunt",
        "their_packages:sharp",
        ":sharp",
        "their_package:",
        "a b:c",
    ):
        with pytest.raises(ValueError, match=f"that can be imported; got '{wrong}'"):
            load_upsampler(wrong)
    with pytest.raises(ValueError, match="must name a function; 'their_package:number' is int"):
        load_upsampler("their_package:number")


def test_a_function_stays_itself():
    mine = Mine()
    assert RefineConfig(upsampler=mine).upsampler is mine
    assert resolved(mine) is mine


def test_settings_are_names():
    home = "ovss_refine.upsamplers.guided:guided_upsample"
    assert name_of("guided") == "guided"
    assert name_of(guided_upsample) == home
    assert name_of(partial(guided_upsample, radius=1)) == f"{home}(radius=1)"
    assert name_of(Mine()) == f"{Mine.__module__}:Mine"
    settings = settings_of(RefineConfig(upsampler=Mine(), tau=0.5))
    assert (settings["upsampler"], settings["tau"]) == (f"{Mine.__module__}:Mine", 0.5)
    assert list(settings) == list(RefineConfig.__dataclass_fields__)
    assert json.loads(json.dumps(settings))["upsampler"] == settings["upsampler"]


def test_names_are_known_without_torch():
    code = (
        "import sys; from ovss_refine.config import RefineConfig; RefineConfig(upsampler='guided');"
        "print('torch' in sys.modules)"
    )
    assert fresh(code) == "False\n"
    function = "'ovss_refine.upsamplers.guided:guided_upsample'"
    assert fresh(code.replace("'guided'", function)) == "True\n"  # it can fail
