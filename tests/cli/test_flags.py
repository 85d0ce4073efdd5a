"""Flags from the fields of a dataclass, and back."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from ovss_refine import RefineConfig
from ovss_refine.cli.flags import add_flags, request_of


def flag(text="what it does", **more):
    return {"metadata": {"help": text, **more}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    name: str = field(metadata={"flag": "--{}", "metavar": "SOURCE"})
    options: Mapping[str, Any] = field(
        default_factory=dict,
        **flag("option, may be repeated", flag="--{}-option", metavar="K=V", example="a=1"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    images: tuple[str, ...] = field(**flag("images", positional=True, metavar="IMAGE"))
    out: Path = field(**flag("100 % of the results", group="results", metavar="DIR"))
    logits: Source = field(**flag("where logits come from", group="sources"))
    attention: Source = field(**flag("where attention comes from", group="sources"))
    config: RefineConfig = field(default_factory=RefineConfig, metadata={"group": "refinement"})
    rows: tuple[str, ...] = field(default=("a", "b"), **flag(choices=("a", "b")))
    on_error: Literal["skip", "stop"] = field(default="stop", **flag())
    limit: int | None = field(default=None, **flag("only the first (default: all)", metavar="N"))
    share: float = field(default=0.0, **flag())
    most: int = field(default=32_000_000, **flag())
    even: int = field(default=2, **flag(parse=lambda text: even(text)))
    browser: bool = field(default=True, **flag("open no browser", flag="--no-browser"))
    rle: bool = field(default=True, **flag())
    masks: bool = field(default=False, **flag())
    unseen: "Nowhere" = None  # noqa: F821 - a type that is known to type checkers alone


CONFIG = RefineConfig(background=(2, 0.5), keep_scores=True)
REQUIRED = "x.png --out o --logits l --attention a"
GIVEN = Everything(
    images=("x.png",), out=Path("o"), logits=Source(name="l"), attention=Source(name="a")
)


def even(text):
    if int(text) % 2:
        raise ValueError(f"must be even; got {text!r}")
    return int(text)


def parser():
    made = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(made, Everything)
    return made


def parsed(words):
    return request_of(parser().parse_args(words.split()), Everything)


def test_omitted_flags_have_the_defaults_of_their_fields():
    assert parsed(REQUIRED) == GIVEN
    assert type(parsed(REQUIRED).logits.options) is dict
    assert type(parsed(REQUIRED).images) is tuple


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("y.png", "images", ("y.png", "x.png")),
        ("--out p/q", "out", Path("p/q")),
        (
            "--logits-option b=[1,2] --logits-option c=no",
            "logits.options",
            {"b": [1, 2], "c": "no"},
        ),
        ("--attention-option b=null", "attention.options", {"b": None}),
        ("--attention z", "attention.name", "z"),
        ("--tau 0.4", "config", RefineConfig(tau=0.4)),
        ("--background 2,0.5 --keep-scores", "config", CONFIG),
        ("--rows b --share 2", "rows", ("b",)),
        ("--on-error skip", "on_error", "skip"),
        ("--limit 3", "limit", 3),
        ("--share 2", "share", 2.0),
        ("--even 4", "even", 4),
        ("--no-browser", "browser", False),
        ("--no-rle", "rle", False),
        ("--no-rle --rle", "rle", True),
        ("--masks", "masks", True),
    ],
)
def test_every_kind_of_flag_reaches_its_field(words, name, value):
    found = parsed(f"{words} {REQUIRED}" if words[0] != "-" else f"{REQUIRED} {words}")
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("x.png", "the following arguments are required: --out, --logits, --attention"),
        ("--out o --logits l --attention a", "the following arguments are required: IMAGE"),
        (f"{REQUIRED} --logits-option b", "must be K=V such as a=1; got 'b'"),
        (f"{REQUIRED} --logits-option a-b=1", "must be K=V such as a=1; got 'a-b=1'"),
        (f"{REQUIRED} --logits-option a=" + "[" * 3000, "must be K=V such as a=1; got 'a=[[["),
        (f"{REQUIRED} --logits-option a=" + "9" * 5000, "must be K=V such as a=1; got 'a=999"),
        (f"{REQUIRED} --background 1", "must be INDEX,THRESHOLD such as 0,0.4; got '1'"),
        (f"{REQUIRED} --background 1,2,3", "must be INDEX,THRESHOLD such as 0,0.4; got '1,2,3'"),
        (f"{REQUIRED} --even 3", "argument --even: must be even; got '3'"),
        (f"{REQUIRED} --on-error go", "argument --on-error: invalid choice: 'go'"),
        (f"{REQUIRED} --rows c", "argument --rows: invalid choice: 'c'"),
        (f"{REQUIRED} --limit 1.5", "argument --limit: invalid int value: '1.5'"),
        (f"{REQUIRED} --browser", "unrecognized arguments: --browser"),
        (f"{REQUIRED} --unseen 1", "unrecognized arguments: --unseen 1"),
    ],
)
def test_unparsable_text_is_a_usage_error(capsys, words, text):
    with pytest.raises(SystemExit, match="2"):
        parsed(words)
    error = capsys.readouterr().err
    assert text in error
    assert len(error.splitlines()[-1]) < 300


def test_values_are_checked_by_the_dataclass():
    with pytest.raises(ValueError, match="`tau` must be in"):
        parsed(f"{REQUIRED} --tau 2")


def test_fields_without_a_flag_are_passed():
    args = parser().parse_args(REQUIRED.split())
    assert request_of(args, Everything, unseen=5).unseen == 5


def test_the_help_has_every_default_once_and_every_group(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = [" ".join(line.split()) for line in parser().format_help().splitlines()]
    for line in (
        *("results:", "sources:", "refinement:"),
        "IMAGE images",
        "--out DIR 100 % of the results",
        "--logits SOURCE where logits come from",
        "--attention SOURCE where attention comes from",
        "--attention-option K=V",
        "--tau FLOAT share of the largest mass that counts as reached, in (0, 1) (default: 0.3)",
        "--share FLOAT what it does (default: 0.0)",
        "--most INT what it does (default: 32_000_000)",
        "--rows {a,b} [{a,b} ...]",
        "what it does (default: all)",
        "--on-error {skip,stop}",
        "what it does (default: stop)",
        "--limit N only the first (default: all)",
        "--no-browser open no browser",
        "--rle, --no-rle what it does (default: yes)",
        "--masks what it does",
    ):
        assert line in lines


@pytest.mark.parametrize("hint", [set[str], "int", list, complex])
def test_a_type_that_cannot_be_parsed_is_refused(hint):
    @dataclass(frozen=True)
    class Odd:
        value: hint = field(**flag())

    with pytest.raises(TypeError, match="`value` must have a type"):
        add_flags(argparse.ArgumentParser(), Odd)
