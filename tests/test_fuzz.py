"""Random and hostile calls; `benchmarks/fuzz.py --seed S --cases 1` repeats the one of seed S."""

import dataclasses
import random
from collections import Counter

import pytest
import torch

import ovss_refine.refiner
from fuzzing import check
from fuzzing.cases import ATTENTION, LOGITS, draw
from ovss_refine.method import steps
from ovss_refine.method.modes import MODES

SEEDS = range(300)


@pytest.mark.parametrize("seed", SEEDS)
def test_case(seed):
    report = check(seed)
    assert report.checks["valid calls"] > 0
    assert report.failures == []


def test_the_cases_have_every_trait():
    seen = Counter(trait for seed in SEEDS for trait in draw(seed).traits)
    wanted = {
        *MODES,
        *(f"{name} logits" for name in LOGITS),
        *(f"{name} attention" for name in (*ATTENTION, "factored", "heads")),
        *(
            f"{name} of torch.{dtype}"
            for name in ("logits", "attention", "image")
            for dtype in ("float16", "bfloat16", "float32", "float64")
        ),
        *("one patch", "a row", "a column", "square", "rectangle", "prime", "large"),
        *("image of torch.uint8", "a batch", "one image", "synonyms", "background", "resampled"),
        *("one prompt", "few prompts", "many prompts"),
    }
    assert wanted - set(seen) == set()


def wrap(monkeypatch, module, name, change):
    """Have `change` see, and may be replace, what a function returns."""
    whole = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **more: change(whole(*args, **more), *args))


def shift_scores(D, maps):
    return D * torch.linspace(0.9, 1.1, D.shape[-1])


def lose_one(D, maps):
    return D.index_fill(2, torch.tensor(0), float("nan"))


def set_dtype(D, maps):
    torch.set_default_dtype(torch.float64)
    return D


def draw_a_number(D, maps):
    random.random()
    return D


def fail(D, maps):
    raise IndexError("index 7 is out of bounds for dimension 0 with size 7")


def batch_matters(result, given, attention, *_):
    if attention.batch == 1:
        return result
    slope = torch.linspace(1, 2, result.discrepancy.shape[-1])
    return dataclasses.replace(result, discrepancy=result.discrepancy * slope)


FAULTS = {
    shift_scores: "equals the reference",
    lose_one: "valid calls",
    set_dtype: "global state",
    draw_a_number: "global state",
    fail: "valid calls",
    batch_matters: "batch equals singles",
}


def found(kind, what="", seeds=range(30)):
    """Whether a case of the seeds fails by a check of the kind, with `what` in its message."""
    failures = (failure for seed in seeds for failure in check(seed).failures)
    return any(one == kind and what in text for _, one, text in failures)


@pytest.mark.parametrize(("fault", "kind"), FAULTS.items(), ids=lambda x: getattr(x, "__name__", x))
def test_a_planted_fault_is_found(fault, kind, monkeypatch):
    if fault is batch_matters:
        wrap(monkeypatch, ovss_refine.refiner, "refine_confidence", fault)
    else:
        wrap(monkeypatch, steps, "_mean", fault)
    try:
        assert found(kind)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_changed_input_is_found(monkeypatch):
    wrap(monkeypatch, ovss_refine.refiner, "as_tensor", lambda x, given, name: x.mul_(2))
    assert found("inputs unchanged")


def test_a_foreign_error_is_found(monkeypatch):
    def check_values(name, tensor):
        if not bool(tensor.isfinite().all()):
            raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(ovss_refine.refiner, "check_values", check_values)
    assert found("hostile refused", "ZeroDivisionError")
