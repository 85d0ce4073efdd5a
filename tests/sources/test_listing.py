"""What is known about a source without loading it."""

import pytest

from forks import fresh
from ovss_refine.sources import listing as sources
from ovss_refine.sources.listing import COLUMNS, facts, list_sources


def test_facts_are_those_of_the_table():
    found = facts("attention", "dinov2-b14-reg")
    assert tuple(found) == COLUMNS
    assert found["weights"] == "timm/vit_base_patch14_reg4_dinov2.lvd142m"
    assert found["download"] == "0.3 GB"
    row = next(line for line in list_sources().splitlines() if line.startswith("dinov2-b14-reg "))
    assert all(text in row for text in found.values())


def test_missing_libraries_are_named(monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda name: None if name == "timm" else "there")
    assert facts("attention", "dino-b8")["needs"] == "timm (missing: timm)"
    assert facts("logits", "kk-mean")["needs"] == "open_clip"


def test_an_unknown_source():
    with pytest.raises(ValueError, match=r"`logits` must be one of .*; got 'dino-b8'"):
        facts("logits", "dino-b8")


def test_a_package_without_facts(monkeypatch):
    monkeypatch.setattr(sources, "_about", lambda package: {})
    assert facts("logits", "kk") == dict.fromkeys(COLUMNS, "not stated")


def test_kinds_of_models_are_listed_below_their_source(monkeypatch):
    own, small = (dict.fromkeys(COLUMNS, text) | {"needs": "-"} for text in ("own", "small"))
    stated = {"logits": {"kk: small": small, "kk": own, "kk-mean: other": small}}
    monkeypatch.setattr(sources, "_about", lambda package: stated)
    lines = [line.split() for line in list_sources().splitlines()]
    below = lines.index(["kk", *["own"] * 4, "-"]) + 1
    assert lines[below] == ["kk:", *["small"] * 5, "-"]
    assert [line[0] for line in lines if line].count("kk:") == 1


def test_no_torch_is_needed():
    code = (
        "import sys; from ovss_refine.sources.listing import facts; facts('logits', 'kk-mean'); "
        "print('torch' in sys.modules)"
    )
    assert fresh(code) == "False\n"
