"""Optimal path: marginals, laws, closed forms, by torch and by the compiled loop."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import reference
from conftest import RANGE_TOLERANCE, SUM_TOLERANCE
from ovss_refine import Attention
from ovss_refine.method.transport import optimal_path
from ovss_refine.tensors import compiled
from strategies import block_attention, random_attention, random_sources


def solve(weights, q, epsilon=0.1, iterations=50):
    return optimal_path(q, Attention(weights, (1, weights.shape[-1])), epsilon, iterations).D


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    B, N = draw(st.integers(1, 3)), draw(st.integers(2, 30))
    sharpness = draw(st.sampled_from([0.2, 1.5, 4.0]))
    maps = np.stack([random_attention(rng, N, sharpness) for _ in range(B)])
    return torch.from_numpy(maps).float(), random_sources(rng, B, draw(st.integers(1, 4)), N)


@given(problems(), st.sampled_from([0.02, 0.1, 1.0]))
def test_equals_the_reference(problem, epsilon):
    weights, q = problem
    result = solve(weights, q, epsilon).numpy()
    for b in range(len(q)):
        expected = reference.optimal_path(
            q[b].double().numpy(), weights[b].double().numpy(), epsilon, 50
        )
        span = max(np.ptp(expected), 0.1 * np.abs(expected).max())
        np.testing.assert_allclose(result[b], expected, atol=RANGE_TOLERANCE * span, rtol=0)


@given(problems(), st.integers(1, 3))
def test_few_iterations_are_counted_like_the_reference(problem, iterations):
    weights, q = problem
    result = solve(weights, q, iterations=iterations)[0].numpy()
    expected = reference.optimal_path(
        q[0].double().numpy(), weights[0].double().numpy(), 0.1, iterations
    )
    span = max(np.ptp(expected), 0.1 * np.abs(expected).max())
    np.testing.assert_allclose(result, expected, atol=RANGE_TOLERANCE * span, rtol=0)


@given(problems())
def test_the_total_is_the_transport_cost_and_bounded_by_the_cost(problem):
    """Every column of the plan holds 1 / N, so D is 1 / N times a mean of costs."""
    weights, q = problem
    carried = solve(weights, q)
    cost = weights / weights.amax(dim=(1, 2), keepdim=True)
    N = weights.shape[-1]
    slack = 1 + SUM_TOLERANCE
    assert (carried <= cost.amax(dim=1)[:, None] / N * slack).all()
    assert (cost.amin(dim=1)[:, None] / N <= carried * slack).all()


def test_a_single_source_carries_its_row_of_the_cost(rng):
    """From one patch there is one plan: 1 / N to everywhere."""
    weights = torch.from_numpy(random_attention(rng, 9)).float()
    q = torch.zeros(1, 1, 9)
    q[..., 4] = 1
    assert_close(solve(weights, q)[0, 0], weights[4] / weights.max() / 9)


def test_large_epsilon_gives_the_product_of_the_marginals(rng):
    weights = torch.from_numpy(random_attention(rng, 9)).float()
    q = random_sources(rng, 1, 2, 9)
    expected = q[0] @ (weights / weights.max()) / 9
    assert_close(solve(weights, q, epsilon=1e4)[0], expected, rtol=1e-3, atol=0)


def test_two_blocks_avoid_the_dear_one():
    """Cost is 1 within a block, 0 across. The half that has mass moves to the other half."""
    weights = block_attention([4, 4])
    q = torch.tensor([[[0.25] * 4 + [0] * 4]])
    D = solve(weights, q, epsilon=0.02)[0, 0]
    # Columns must hold 1/8 each and all mass starts in the first block: no choice is left.
    assert_close(D, torch.tensor([1 / 8] * 4 + [0.0] * 4))


def test_stopping_early_does_not_show(rng):
    weights = torch.from_numpy(random_attention(rng, 64, 3.0)).float()
    q = random_sources(rng, 1, 5, 64)
    short, full = solve(weights, q, iterations=50), solve(weights, q, iterations=500)
    expected = reference.optimal_path(q[0].double().numpy(), weights.double().numpy(), 0.1, 50)
    np.testing.assert_allclose(short[0].numpy(), expected, atol=1e-5 * np.ptp(expected), rtol=0)
    assert_close(full, short)


class TestCompiled:
    """The loop against torch, which the tests above check where numba is not installed."""

    @pytest.fixture(autouse=True)
    def _numba(self):
        pytest.importorskip("numba", reason="numba is not installed ([fast])")

    @staticmethod
    def seeds(B, m, N, generator):
        """Distributions [B, m, N] of which no two share a patch, some patches of nobody."""
        owner = torch.randint(m + 1, (B, 1, N), generator=generator)
        owner[..., :m] = torch.arange(m)
        q = torch.rand(B, m, N, generator=generator) * (owner == torch.arange(m)[:, None])
        return q / q.sum(2, keepdim=True)

    @pytest.mark.parametrize(("B", "m", "N"), [(1, 1, 2), (2, 3, 65), (3, 2, 300), (1, 20, 400)])
    @pytest.mark.parametrize("threads", [1, 3])
    def test_equal_torch_s(self, B, m, N, threads, rng, monkeypatch):
        generator = torch.Generator().manual_seed(N)
        weights = torch.from_numpy(np.stack([random_attention(rng, N, 3) for _ in range(B)]))
        q = self.seeds(B, m, N, generator)
        monkeypatch.setattr(compiled, "THREAD_ENTRIES", 0)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        used = []
        load = compiled.load_loops
        monkeypatch.setattr(compiled, "load_loops", lambda name: used.append(name) or load(name))
        held = Attention(weights.float(), (1, N))
        several, one = optimal_path(q, held, 0.1, 50), optimal_path(q, held, 0.1, 1)
        assert used
        assert several.converged
        assert not one.converged
        monkeypatch.setattr(compiled, "available", lambda _: False)
        for found, most in ((several, 50), (one, 1)):
            expected = optimal_path(q, held, 0.1, most)
            assert_close(found.D, expected.D, rtol=2e-6, atol=1e-12)
            assert found.steps == expected.steps

    def test_a_class_does_not_depend_on_the_others(self, rng):
        weights = torch.from_numpy(random_attention(rng, 90, 3)).float()
        q = self.seeds(1, 4, 90, torch.Generator().manual_seed(0))
        together = solve(weights, q)
        assert torch.equal(
            torch.cat([solve(weights, one[None, None]) for one in q[0]], 1), together
        )

    def test_maps_in_any_layout(self, rng):
        weights = torch.from_numpy(random_attention(rng, 70, 3)).float()
        q = self.seeds(1, 2, 70, torch.Generator().manual_seed(0))
        expected = solve(weights, q)
        loop = compiled.load_loops("ovss_refine.method.transport_loop").transport
        compiled_for = len(loop.signatures)
        assert torch.equal(solve(weights.T.contiguous().T, q.mT.contiguous().mT), expected)
        assert len(loop.signatures) == compiled_for  # not anew, which takes seconds

    def test_every_row_must_be_settled(self, rng):
        weights = random_attention(rng, 40, 3)
        K = np.exp(-10 * weights / weights.max())
        q = self.seeds(1, 1, 40, torch.Generator().manual_seed(0))[0, 0].double().numpy()
        rows = np.flatnonzero(q)
        u = q[rows] / K[rows].sum(1)
        after = q[rows] / (K[rows] @ (1 / (40 * (u @ K[rows]))))
        change = np.abs(after - u) / after
        first = np.argsort(-change)  # the last row has changed least
        order = np.concatenate([rows[first], np.setdiff1d(np.arange(40), rows)])
        tolerance = (change.min() * change.max()) ** 0.5
        assert change.max() > 2 * change.min()
        loop = compiled.load_loops("ovss_refine.method.transport_loop").transport
        rate = -10 * np.log2(np.e) / weights.max()
        arrays = (q[order].astype(np.float32), weights[order][:, order].astype(np.float32))
        D = np.empty(40, np.float32)
        assert loop(*arrays, rate, 2, tolerance, D) == (2, False)
        assert loop(*arrays, rate, 2, 2 * change.max(), D) == (2, True)

    def test_half_precision_is_left_to_torch(self, rng, monkeypatch):
        monkeypatch.setattr(compiled, "load_loops", lambda _: object())
        weights = torch.from_numpy(random_attention(rng, 9)).half()
        assert solve(weights, random_sources(rng, 1, 2, 9)).isfinite().all()
