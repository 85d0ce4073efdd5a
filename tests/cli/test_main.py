"""The commands together: which flags each has, what they default to, how the program is started."""

import argparse
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import ovss_refine
from forks import fresh
from ovss_refine import RefineConfig
from ovss_refine.app.request import AppRequest
from ovss_refine.cli import demo, main, parser
from ovss_refine.cli.dataset import CheckRequest, ConvertRequest
from ovss_refine.cli.flags import request_of
from ovss_refine.cli.main import NO_MEMORY
from ovss_refine.cli.refine import DemoRequest, RefineRequest
from ovss_refine.evaluation.dataset import load_dataset
from ovss_refine.evaluation.request import Chosen, EvaluateRequest
from ovss_refine.labels import parse_labels
from ovss_refine.segment.request import SegmentRequest

REFINEMENT = " ".join("--" + field.name.replace("_", "-") for field in fields(RefineConfig))
SOURCES = "--logits --logits-option --attention --attention-option --device --dtype"
FLAGS = {
    "demo": "--out --overwrite",
    "refine": "--image --logits --attention --temperature --labels --maps --out --overwrite "
    + REFINEMENT,
    "sources": "",
    "segment": f"IMAGE --labels --labels-file {SOURCES} --models-dir --out --overwrite --baseline "
    f"--masks --maps --rle --no-rle --batch-size --max-pixels {REFINEMENT}",
    "evaluate": f"--dataset --root --names --first-is-ignored {SOURCES} --limit --rows --prompts "
    "--probability-threshold --area-threshold --drop-background --out --on-error --batch-size "
    f"--workers --pictures {REFINEMENT}",
    "dataset check": "NAME ROOT --names --first-is-ignored",
    "dataset convert": "NAME SOURCE TARGET --names --overwrite",
    "app": "--host --port --device --dtype --models-dir --max-bytes --max-pixels --no-browser",
}
LABELS, VOC = parse_labels("a, b"), load_dataset("voc21")
NPZ = Chosen("npz:x")
# A command line with nothing but what is required, and the request that it stands for.
LEAST = {
    "demo": (DemoRequest(), {}),
    "refine --image i --logits l --attention a --out o": (
        RefineRequest(image=Path("i"), logits=Path("l"), attention=Path("a"), out=Path("o")),
        {},
    ),
    "segment x.png --labels a,b --out o": (
        SegmentRequest(images=("x.png",), labels=LABELS, out=Path("o")),
        {"labels": LABELS},
    ),
    "evaluate --dataset voc21 --root r --logits npz:x --attention npz:x": (
        EvaluateRequest(dataset=VOC, root=Path("r"), logits=NPZ, attention=NPZ),
        {"dataset": VOC},
    ),
    "dataset check voc21 r": (CheckRequest(name="voc21", root=Path("r")), {}),
    "dataset convert context s t": (
        ConvertRequest(name="context", source=Path("s"), target=Path("t")),
        {},
    ),
    "app": (AppRequest(), {}),
}


def commands(within=None, prefix=""):
    """Return the parsers of all commands by name."""
    (action,) = [a for a in (within or parser())._actions if a.nargs == argparse.PARSER] or [None]
    if action is None:
        return {prefix: within}
    found = {}
    for name, inner in action.choices.items():
        found |= commands(inner, f"{prefix} {name}".strip())
    return found


def flags_of(command):
    return {
        flag
        for action in command._actions
        for flag in action.option_strings or [action.metavar]
        if flag not in ("-h", "--help")
    }


def test_every_command_is_listed():
    assert set(commands()) == {*FLAGS, "reproduce"}


@pytest.mark.parametrize("name", FLAGS)
def test_a_command_has_these_flags_and_no_others(name):
    assert flags_of(commands()[name]) == set(FLAGS[name].split())


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_has_its_help(name):
    assert all(action.help for action in commands()[name]._actions)


@pytest.mark.parametrize("words", LEAST)
def test_an_omitted_flag_has_the_default_of_its_field(words):
    request, given = LEAST[words]
    assert request_of(parser().parse_args(words.split()), type(request), **given) == request


def test_requests_import_nothing_heavy(forks):
    code = """
import sys
import ovss_refine.{}
print(sorted({{"torch", "numpy", "PIL", "tqdm"}} & set(sys.modules)))
"""
    requests = "segment.request, ovss_refine.evaluation.request, ovss_refine.app.request"
    assert fresh(code.format(requests)) == "[]\n"
    loaded = forks.printed(code.format("segment.outputs"))
    assert loaded == "['PIL', 'numpy', 'torch', 'tqdm']"  # so the check can fail


def test_the_package_runs_as_the_command():
    def run(*words):
        line = [sys.executable, "-m", "ovss_refine", *words]
        return subprocess.run(line, capture_output=True, text=True)

    assert run("--version").stdout == f"{ovss_refine.__version__}\n"
    refused = run("refine", "--image", "i", "--logits", "l", "--attention", "a", "--out", "o")
    assert refused.returncode == 2
    assert refused.stderr.startswith("ovss-refine: error: `--image` must be")


@pytest.mark.parametrize("text", ["", "no room for 4 TB"])
def test_a_lack_of_memory_is_one_line(capsys, monkeypatch, text):
    def fail(_):
        raise MemoryError(text)

    monkeypatch.setattr(demo, "run_demo", fail)
    assert main(["demo"]) == 2
    error = capsys.readouterr().err
    assert error == f"ovss-refine: error: {text or NO_MEMORY}\n"
