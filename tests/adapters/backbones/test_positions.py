"""The reference rule for position embeddings, against the outputs of the released code."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from adapters.peer_vectors import TOLERANCE, load
from ovss_refine_adapters.backbones.positions import resize_positions, resize_positions_to


def cubic(t):
    """Keys' kernel with a = -0.75, used by bicubic resizing."""
    t, a = abs(t), -0.75
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def sampling(old, new):
    """[new, old] float64 weights of one axis: cell i lies at (i + 0.5) old / (new + 0.1) - 0.5."""
    weights = np.zeros((new, old))
    for i in range(new):
        at = (i + 0.5) * old / (new + 0.1) - 0.5
        for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            weights[i, min(max(j, 0), old - 1)] += cubic(at - j)
    return weights


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("grid", [(6, 9), (3, 3), (2, 8), (12, 5)])
def test_equals_the_formula_written_out(grid, prefix):
    g, C = 4, 3
    table = np.random.default_rng(0).normal(size=(prefix + g * g, C))
    rows, columns = sampling(g, grid[0]), sampling(g, grid[1])
    wanted = np.einsum("ia,jb,abc->ijc", rows, columns, table[prefix:].reshape(g, g, C))
    got = resize_positions(
        torch.tensor(table).float(), grid, skip="count and square", prefix=prefix
    )
    assert_close(got[:prefix].numpy(), table[:prefix].astype(np.float32))
    assert_close(got[prefix:].double().numpy(), wanted.reshape(-1, C), atol=1e-5, rtol=0)


def test_equals_the_released_clip_code():
    table = load("visual_tower_fp16")["visual.positional_embedding"]
    cases = load("pos_embed")
    assert len(cases) == 3
    for name, wanted in cases.items():
        grid = tuple(int(x) for x in name.split("_")[1].split("x"))
        assert_close(resize_positions(table, grid, skip="count"), wanted, atol=TOLERANCE, rtol=0)


def test_equals_the_released_dino_code():
    cases = dict(load("dino_pos_embed"))
    table = cases.pop("dinopos_table")
    assert len(cases) == 4
    for name, wanted in cases.items():
        grid = tuple(int(x) for x in name.split("_")[-1].split("x"))
        got = resize_positions(table, grid, skip="count and square")
        assert_close(got, wanted, atol=TOLERANCE, rtol=0)


def test_when_the_table_is_returned_unchanged():
    table = torch.randn(17, 3)
    assert resize_positions(table, (4, 4), skip="count") is table
    assert resize_positions(table, (4, 4), skip="count and square") is table
    assert resize_positions(table, (2, 8), skip="count") is table
    assert not resize_positions(table, (2, 8), skip="count and square").equal(table)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype):
    table = torch.randn(17, 3)
    got = resize_positions(table.to(dtype), (5, 6), skip="count")
    assert got.dtype == dtype
    wanted = resize_positions(table, (5, 6), skip="count")
    assert_close(got.float(), wanted, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"table": torch.zeros(17)}, ValueError, r"`table` must have shape \[T, C\]"),
        ({"table": torch.zeros(17, 3).long()}, TypeError, "`table` must be a floating-point"),
        ({"table": torch.zeros(18, 3)}, ValueError, "square number of tokens .* 1; got 17"),
        ({"prefix": 0}, ValueError, "square number of tokens .* 0; got 17"),
        ({"table": torch.zeros(1, 3)}, ValueError, "got 0"),
        ({"grid": (0, 4)}, ValueError, r"`grid\[0\]` must be at least 1; got 0"),
        ({"grid": (4, 2.5)}, TypeError, r"`grid\[1\]` must be a whole number"),
        ({"skip": "always"}, ValueError, "`skip` must be one of"),
    ],
)
def test_bad_input(change, error, message):
    given = {"table": torch.zeros(17, 3), "grid": (4, 4), "skip": "count", "prefix": 1} | change
    with pytest.raises(error, match=message):
        resize_positions(given.pop("table"), given.pop("grid"), **given)


def linear(t):
    return max(1 - abs(t), 0.0)


def widened(t):
    """The cubic kernel with a = -0.5, which antialiased resizing uses."""
    t, a = abs(t), -0.5
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def sampling_to(old, new, kernel, antialias):
    """[new, old] float64 weights of one axis with half-pixel centres."""
    weights, wide = np.zeros((new, old)), max(old / new, 1) if antialias else 1
    for i in range(new):
        at = (i + 0.5) * old / new - 0.5
        for j in range(0, old) if antialias else range(-2, old + 2):
            # Cells outside repeat the border, or do not count.
            weights[i, min(max(j, 0), old - 1)] += kernel((at - j) / wide)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("grid", [(6, 9), (4, 4), (2, 8), (12, 3)])
@pytest.mark.parametrize(
    ("mode", "antialias", "kernel"),
    [("bilinear", False, linear), ("bicubic", False, cubic), ("bicubic", True, widened)],
)
def test_resizing_to_a_size_equals_the_formula(mode, antialias, kernel, grid, prefix):
    g, C = 4, 3
    table = np.random.default_rng(0).normal(size=(prefix + g * g, C))
    rows, columns = (sampling_to(g, n, kernel, antialias) for n in grid)
    wanted = np.einsum("ia,jb,abc->ijc", rows, columns, table[prefix:].reshape(g, g, C))
    how = {"mode": mode, "antialias": antialias, "prefix": prefix}
    got = resize_positions_to(torch.tensor(table).float(), grid, **how)
    assert_close(got[:prefix].numpy(), table[:prefix].astype(np.float32))
    assert_close(got[prefix:].double().numpy(), wanted.reshape(-1, C), atol=1e-5, rtol=0)


def test_resizing_to_a_size_checks_its_arguments():
    table = torch.rand(17, 3)
    with pytest.raises(ValueError, match="`mode` must be one of"):
        resize_positions_to(table, (2, 2), mode="nearest")
    with pytest.raises(ValueError, match="square number of tokens after its prefix of 0; got 17"):
        resize_positions_to(table, (2, 2), prefix=0)
