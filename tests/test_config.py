"""`RefineConfig`: its fields are fixed by what users write, and every one is checked."""

import dataclasses
import json
import re
from typing import get_type_hints

import numpy as np
import pytest
import torch

from ovss_refine import RefineConfig, Refiner, Segmenter
from ovss_refine.config import RefineOptions, config_of
from ovss_refine.method.modes import ModeName

DEFAULTS = {
    "mode": "maximum_velocity",
    "logit_scale": 1.0,
    "nms": "classwise",
    "nms_threshold": 0.5,
    "seed_quantile": 0.25,
    "vote": 0.006,
    "confidence_power": 0.25,
    "pre_propagation": 0,
    "min_area": 0.0,
    "epsilon": 0.1,
    "sinkhorn_iterations": 50,
    "tau": 0.3,
    "criterion": "first_passage",
    "max_steps": 100,
    "ipf_rounds": 15,
    "propagation_steps": 3,
    "upsampler": "jbu",
    "sigma_spatial": 1.0,
    "sigma_range": 0.1,
    "radius": 2,
    "background": None,
    "keep_scores": False,
}


def test_fields_and_defaults():
    assert dataclasses.asdict(RefineConfig()) == DEFAULTS


def test_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RefineConfig().tau = 0.5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "velocity"}, r"`mode` must be one of \['kl', .*'anchored'\]; got 'velocity'"),
        ({"nms": None}, r"`nms` must be one of \['classwise', 'relative', 'absolute'\]; got None"),
        ({"criterion": ""}, r"`criterion` must be one of \['first_passage', 'increment'\]"),
        ({"logit_scale": 0}, r"`logit_scale` must be in \[1e-06, 1e\+06\]; got 0"),
        ({"logit_scale": float("inf")}, r"`logit_scale` must be in \[1e-06, 1e\+06\]; got inf"),
        ({"nms_threshold": 1.1}, r"`nms_threshold` must be in \[0, 1\]; got 1.1"),
        ({"min_area": -0.1}, r"`min_area` must be in \[0, 1\]; got -0.1"),
        ({"pre_propagation": -1}, r"`pre_propagation` must be in \[0, 100000\]; got -1"),
        ({"epsilon": 0.01}, r"`epsilon` must be in \[0.02, 1e\+06\]; got 0.01"),
        ({"sinkhorn_iterations": 0}, r"`sinkhorn_iterations` must be in \[1, 100000\]; got 0"),
        ({"tau": 1.0}, r"`tau` must be in \(0, 1\); got 1.0"),
        ({"tau": float("nan")}, r"`tau` must be in \(0, 1\); got nan"),
        ({"max_steps": 0}, r"`max_steps` must be in \[1, 100000\]; got 0"),
        ({"ipf_rounds": 0}, r"`ipf_rounds` must be in \[1, 100000\]; got 0"),
        ({"propagation_steps": -1}, r"`propagation_steps` must be in \[0, 100000\]; got -1"),
        ({"sigma_spatial": -1.0}, r"`sigma_spatial` must be in \[1e-06, 1e\+06\]; got -1.0"),
        ({"sigma_range": 0.0}, r"`sigma_range` must be in \[1e-06, 1e\+06\]; got 0.0"),
        ({"radius": -1}, r"`radius` must be in \[0, 32\]; got -1"),
        (
            {"upsampler": "jub"},
            r"must be one of \['jbu', 'bilinear', 'guided'.* Did you mean 'jbu'",
        ),
        ({"upsampler": ""}, r"`upsampler` must be one of \['jbu', 'bilinear', 'guided'.*; got ''"),
        ({"upsampler": "no_such:f"}, r"`upsampler` must be MODULE:FUNCTION that can .*'no_such:f'"),
        ({"upsampler": "math:pi"}, "`upsampler` must name a function; 'math:pi' is float"),
        ({"background": (-1, 0.5)}, r"`background\[0\]` must be at least 0; got -1"),
        ({"background": (0, 1.5)}, r"`background\[1\]` must be in \[0, 1\]; got 1.5"),
    ],
)
def test_out_of_range(options, match):
    with pytest.raises(ValueError, match=match):
        RefineConfig(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"taus": 0.3}, "unexpected keyword argument 'taus'"),
        ({"tau": np.array([0.3])}, r"`tau` must be a number; got array\(\[0.3\]\)"),
        (
            {"radius": np.float64(2)},
            re.escape(f"`radius` must be a whole number; got {np.float64(2)!r}"),
        ),
        ({"tau": np.True_}, f"`tau` must be a number; got {np.True_!r}"),
        ({"tau": "0.3"}, "`tau` must be a number; got '0.3'"),
        ({"tau": True}, "`tau` must be a number; got True"),
        ({"radius": 2.0}, "`radius` must be a whole number; got 2.0"),
        ({"max_steps": True}, "`max_steps` must be a whole number; got True"),
        ({"background": 0}, r"`background` must be None or \(class index, threshold\); got 0"),
        ({"background": (0,)}, "`background` must be None or"),
        ({"upsampler": dict}, "`upsampler` must be a name or a function of .*got <class 'dict'>"),
        ({"upsampler": 3}, "`upsampler` must be a name or a function of maps and images; got 3"),
        ({"keep_scores": 1}, "`keep_scores` must be True or False; got 1"),
    ],
)
def test_wrong_kind(options, match):
    with pytest.raises(TypeError, match=match):
        RefineConfig(**options)


NUMBERS = {
    field.name: field.default
    for field in dataclasses.fields(RefineConfig)
    if type(field.default) in (int, float)
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("absurd", [1e308, -1e308, 1e200, 10**9, 10**400, -1, float("nan")])
def test_absurd_numbers_are_out_of_range(name, absurd):
    """Of every number there is, whichever is added: each has two ends."""
    if isinstance(NUMBERS[name], int) and isinstance(absurd, float):
        absurd = 10**9 if absurd > 0 else -1
    with pytest.raises(ValueError, match=rf"^`{name}` must be in [\[(].*, .*[\])]; got "):
        RefineConfig(**{name: absurd})


@pytest.mark.parametrize("name", ["logit_scale", "sigma_spatial", "sigma_range", "epsilon"])
@pytest.mark.parametrize("tiny", [1e-200, 5e-324, 1e-7, 0])
def test_what_is_divided_by_or_squared_is_not_tiny(name, tiny):
    with pytest.raises(ValueError, match=f"^`{name}` must be in "):
        RefineConfig(**{name: tiny})


def test_the_help_has_the_range_that_is_checked():
    for field in dataclasses.fields(RefineConfig):
        if field.name in NUMBERS:
            with pytest.raises(ValueError, match="must be") as said:
                RefineConfig(**{field.name: -1})
            span = re.search("must be (in .*); got", str(said.value))[1]
            assert field.metadata["help"].endswith(f", {span}")


def test_ends_that_belong_to_the_range():
    RefineConfig(nms_threshold=0, min_area=1, epsilon=0.02, radius=0, background=(0, 1))


def test_every_field_has_a_line_of_help():
    assert all(field.metadata.get("help") for field in dataclasses.fields(RefineConfig))


def test_numbers_of_numpy_and_torch_are_numbers():
    given = RefineConfig(
        tau=np.float32(0.25),
        radius=np.int64(3),
        epsilon=torch.tensor(0.5),
        max_steps=torch.tensor(7),
        keep_scores=np.bool_(True),
        background=[np.int32(1), np.float64(0.5)],
    )
    plain = RefineConfig(
        tau=0.25, radius=3, epsilon=0.5, max_steps=7, keep_scores=True, background=(1, 0.5)
    )
    assert given == plain
    assert json.loads(json.dumps(dataclasses.asdict(given))) is not None
    kinds = {type(value) for value in dataclasses.asdict(given).values()}
    assert kinds == {str, float, int, bool, tuple}


def test_types_for_editors_are_those_of_the_fields():
    fields = get_type_hints(RefineConfig)
    assert {"mode": ModeName, **get_type_hints(RefineOptions)} == fields


@pytest.mark.parametrize("make", [Refiner, Segmenter, lambda **options: config_of(options)])
def test_a_misspelt_option_names_the_nearest(make):
    with pytest.raises(TypeError, match=r"`sigma_color` must be an option.* `sigma_"):
        make(sigma_color=0.1)
    with pytest.raises(TypeError, match=r"`taus` must be an option.* mean `tau`\?"):
        make(taus=0.1)
    with pytest.raises(TypeError, match=r"`zzz` must be an option of .*Options are \['mode', "):
        make(zzz=1)
