"""The one grammar of error messages."""

import pytest
import torch

from ovss_refine import checks


def test_shape_returns_the_sizes():
    assert checks.check_shape("x", torch.zeros(2, 3, 3), "B N N") == {"B": 2, "N": 3}
    assert checks.check_shape("x", torch.zeros(2, 3), "B N", B=2) == {"B": 2, "N": 3}


@pytest.mark.parametrize(
    ("shape", "spec", "known", "wanted"),
    [
        ((2, 3), "B N N", {}, "[B, N, N]; got [2, 3]"),
        ((2, 3, 4), "B N N", {}, "[B, N, N]; got [2, 3, 4]"),
        ((2, 3), "B N", {"B": 4}, "[B=4, N]; got [2, 3]"),
        ((2, 0), "B N", {}, "[B, N], none of them 0; got [2, 0]"),
    ],
)
def test_shape_message(shape, spec, known, wanted):
    with pytest.raises(ValueError, match="`x` must have shape") as caught:
        checks.check_shape("x", torch.zeros(shape), spec, **known)
    assert str(caught.value) == f"`x` must have shape {wanted}."


def test_finite_counts_the_bad_ones():
    checks.check_finite("x", torch.zeros(3))
    bad = torch.tensor([torch.nan, torch.inf, 0])
    with pytest.raises(
        ValueError, match=r"^`x` must be finite; got 2 NaN or infinite of 3 values.$"
    ):
        checks.check_finite("x", bad)


def test_finite_of_several_names_the_first_bad_one():
    good, bad = torch.zeros(3), torch.tensor([[torch.nan, 0]])
    checks.check_all_finite({"a": good, "b": good[None]})
    checks.check_all_finite({"a": good})
    with pytest.raises(
        ValueError, match=r"^`b` must be finite; got 1 NaN or infinite of 2 values.$"
    ):
        checks.check_all_finite({"a": good, "b": bad, "c": bad})
    with pytest.raises(ValueError, match=r"in float32, which ends at 3\.4e38"):
        checks.check_all_finite({"a": good, "b": torch.tensor([1e300], dtype=torch.float64)})


def test_number_accepts_its_ends_only_when_closed():
    checks.check_number("x", 0, 0, 1)
    with pytest.raises(ValueError, match=r"^`x` must be in \(0, 1\); got 0.$"):
        checks.check_number("x", 0, 0, 1, open_ends=True)
