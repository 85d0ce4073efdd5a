"""What a function depends on, as far as it can be seen: its code, numbers and weights."""

import functools
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from ovss_refine.evaluation.functions import code_digest, referenced
from ovss_refine.evaluation.inputs import weights_digest, weights_of


def made(text, **names):
    """Return the function `f` of a text."""
    exec(textwrap.dedent(text), names)
    return names["f"]


BASE = """
scale, unused = 2.0, 1.0
def helper(x):
    return 3 * x
def f(x, power=2):
    return scale * helper(x) ** power
"""
CHANGES = {
    "code": BASE.replace("scale * helper", "scale + helper"),
    "a constant": BASE.replace("3 * x", "4 * x"),
    "a global number": BASE.replace("2.0", "2.5"),
    "a default": BASE.replace("power=2", "power=3"),
    "another function": BASE.replace("return 3 * x", "return x / 3"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_change_the_digest(change):
    assert code_digest(made(CHANGES[change])) != code_digest(made(BASE))


def test_what_does_not_matter():
    moved = "\n\n# a comment\n" + BASE.replace("unused = 2.0, 1.0", "unused = 2.0, 7.0")
    assert code_digest(made(moved)) == code_digest(made(BASE))
    other = "import torch\ndef f(x):\n    return torch.nn.functional.relu(x)"
    assert [*referenced(made(other))] == []  # a module


def test_functions_of_installed_packages_are_not_followed():
    text = "from torch.nn.functional import interpolate\ndef f(x):\n    return interpolate(x)"
    assert "interpolate" not in referenced(made(text))


def test_variables_around_a_function_count():
    def outer(gain):
        return lambda x: gain * x

    assert code_digest(outer(1.0)) == code_digest(outer(1.0)) != code_digest(outer(2.0))

    def partial(gain):
        return functools.partial(lambda x, gain: gain * x, gain=gain)

    assert code_digest(partial(1.0)) == code_digest(partial(1.0)) != code_digest(partial(2.0))


def test_functions_that_call_each_other_end():
    text = "def g(x):\n    return f(x)\ndef f(x):\n    return g(x)"
    assert len(code_digest(made(text))) == 16

    def unassigned():
        return later

    assert referenced(unassigned) == {}
    later = 1
    assert referenced(unassigned) == {"later": later}


def test_other_objects_have_none():
    assert code_digest(nn.Identity()) is None
    assert code_digest(3) is None


MODEL = nn.Linear(2, 2)


class Holder:
    def __init__(self, thing):
        self.thing = thing

    def method(self, x):
        return self.thing(x)


def test_weights_that_a_function_refers_to():
    array = np.arange(3.0)

    def nested(x):
        def inner(x):
            return MODEL(x)

        return inner(x) + torch.from_numpy(array).sum()

    found = list(weights_of(nested))
    assert any(one is MODEL for one in found)
    assert any(torch.equal(one, torch.arange(3.0).double()) for one in found if one is not MODEL)
    for function in (Holder(MODEL).method, functools.partial(MODEL), Holder(nested).method):
        assert any(one is MODEL for one in weights_of(function)), function
    before = weights_digest(nested)
    array += 1
    assert weights_digest(nested) != before
    assert weights_digest(lambda x: x) is None
