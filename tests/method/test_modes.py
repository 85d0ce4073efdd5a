"""The table of modes, and the Kullback-Leibler discrepancy."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.testing import assert_close

from ovss_refine import RefineConfig, refine
from ovss_refine.method.modes import CONTROLS, MODES, ModeName, Problem
from ovss_refine.method.modes import kl as score
from strategies import random_attention, random_sources


def kl(q):
    return score(Problem(P=q, own=q, q=q, attention=None, config=RefineConfig(), chain=None)).D


def test_sums_to_the_divergence(rng):
    q = random_sources(rng, 2, 3, 30)
    uniform = torch.full_like(q, 1 / 30)
    expected = torch.nn.functional.kl_div(uniform.log(), q, reduction="none").sum(-1)
    assert_close(kl(q).sum(-1), expected)


def test_known_values():
    q = torch.tensor([[[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]]])
    log4 = float(torch.tensor(4.0).log())
    assert_close(kl(q), torch.tensor([[[log4, 0, 0, 0], [0.0, 0, 0, 0]]]))


# Another value of each option that some mode reads, far enough to be seen.
OTHER = {
    "nms": "absolute",  # with a bar that the surest patch is below
    "nms_threshold": 0.05,
    "seed_quantile": 0.9,
    "vote": 0.0,
    "confidence_power": 1.0,
    "pre_propagation": 2,
    "epsilon": 1.0,
    "sinkhorn_iterations": 1,
    "tau": 0.7,
    "criterion": "increment",
    "max_steps": 1,
    "ipf_rounds": 1,
    "propagation_steps": 1,
}
DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_is_complete():
    assert set(MODES) == set(get_args(ModeName))
    assert next(iter(MODES)) == RefineConfig().mode
    assert CONTROLS == ("propagation", "anchored")
    known = {field.name for field in fields(RefineConfig)}
    assert {option for mode in MODES.values() for option in mode.options} == set(OTHER) <= known


@pytest.mark.parametrize("option", OTHER)
@pytest.mark.parametrize("name", MODES)
def test_a_mode_reads_its_options_and_no_others(name, option, rng):
    K = 8 if option == "vote" else 4  # of more classes some are outvoted
    logits = torch.from_numpy(rng.normal(size=(K, 5, 6))).float() * 1.5
    attn = torch.from_numpy(rng.random((30, 30)) ** 4).float()
    attn /= attn.sum(-1, keepdim=True)
    image = torch.from_numpy(rng.random((3, 11, 13))).float()
    # One round is exact on a chain that is doubly stochastic already, so this one is not.
    common = {
        "nms": {"nms_threshold": 0.9},
        "nms_threshold": {"nms": "relative", "vote": 0.0},
        "ipf_rounds": {"vote": 0.0},
        "seed_quantile": {"vote": 0.0},
        "vote": {"logit_scale": 0.3},
    }.get(option, {})
    one, two = (
        refine(logits, attn, image, RefineConfig(mode=name, **common, **options)).discrepancy
        for options in ({}, {option: OTHER[option]})
    )
    assert torch.equal(one, two) == (option not in MODES[name].options)


@pytest.mark.parametrize("name", MODES)
def test_one_class_is_scored_as_beside_a_class_without_prompts(name, rng):
    """Its second confidence is 0; `pre_propagation` takes it away from 1."""
    logits = torch.from_numpy(rng.normal(size=(3, 5, 6))).float()
    attn = torch.from_numpy(random_attention(rng, 30, 4.0)).float()
    config = RefineConfig(mode=name, pre_propagation=2, ipf_rounds=1)
    one, two = (
        refine(logits, attn, torch.zeros(3, 7, 7), config, prompt_index=[index] * 3).discrepancy
        for index in (0, 1)
    )
    assert_close(one[0], two[1])


@pytest.mark.parametrize("name", MODES)
def test_a_mode_has_its_paragraph(name):
    assert re.search(rf"`{name}`", (DOCS / "modes.md").read_text())
    assert re.search(rf"\b{name}\b|{MODES[name].title}", (DOCS / "method.md").read_text())
    assert MODES[name].summary.endswith(".")
