"""Markov chains on the attention graph: laws, closed forms, the reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import reference
from conftest import RANGE_TOLERANCE, SUM_TOLERANCE
from ovss_refine import Attention
from ovss_refine.method.markov import (
    anchored,
    doubly_stochastic,
    first_passage,
    increment,
    propagate,
)
from strategies import block_attention, random_attention, random_sources


def chain_of(weights, rounds=15):
    return doubly_stochastic(Attention(weights, (1, weights.shape[-1])), rounds)


def matrix(chain, N):
    """T itself: what a step does to the unit vectors."""
    return chain.step(torch.eye(N).expand(len(chain.r), -1, -1))


@st.composite
def maps(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    B, N = draw(st.integers(1, 3)), draw(st.integers(2, 30))
    sharpness = draw(st.sampled_from([0.2, 1.5, 4.0]))
    weights = np.stack([random_attention(rng, N, sharpness) for _ in range(B)])
    return torch.from_numpy(weights).float(), random_sources(rng, B, draw(st.integers(1, 4)), N)


@given(maps(), st.integers(1, 15))
def test_scaling_equals_the_reference(problem, rounds):
    weights, _ = problem
    T = matrix(chain_of(weights, rounds), weights.shape[-1])
    for b in range(len(weights)):
        expected = reference.doubly_stochastic(weights[b].double().numpy(), rounds)
        np.testing.assert_allclose(T[b].numpy(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("many_steps", [False, True])
@pytest.mark.parametrize(("side", "sinks"), [(19, 1), (33, 1), (33, 3), (40, 6)])
def test_attention_sinks_leave_the_range_of_float32_alone(side, sinks, many_steps):
    """All patches attend to a few: r grows and c shrinks by N / sinks in every round."""
    N = side * side
    weights = torch.zeros(N, N)
    weights[:, :sinks] = 1 / sinks
    weights = 0.9 * weights + 0.1 * torch.eye(N) if sinks == 6 else weights
    chain = doubly_stochastic(Attention(weights, (side, side)), 15, many_steps=many_steps)
    assert bool(chain.r.isfinite().all())
    T = weights.double().numpy()
    for _ in range(15):  # the reference without its loops, which take a minute here
        T = T / np.where(T.sum(0) > 0, T.sum(0), 1)
        T = T / T.sum(1, keepdims=True)
    x = torch.rand(1, 2, N, generator=torch.Generator().manual_seed(0))
    expected = x[0].double().numpy() @ T
    np.testing.assert_allclose(chain.step(x)[0].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("many_steps", [False, True])
@pytest.mark.parametrize("sinks", [0, 1])
@pytest.mark.parametrize("weakest", [1e-31, 1e-37, 1e-42])
def test_weak_columns_are_scaled_like_any_other(weakest, sinks, many_steps, rng):
    """Those that nobody attends to but faintly; beside a sink, factors drift apart further."""
    N = 37
    weights = random_attention(rng, N)
    weights[:, 1] += sinks * 1e6
    weights[:, 2::3] *= weakest
    held = torch.from_numpy(weights / weights.sum(-1, keepdims=True)).float()
    chain = doubly_stochastic(Attention(held, (1, N)), 15, many_steps=many_steps)
    T = reference.doubly_stochastic(held.double().numpy(), 15)
    np.testing.assert_allclose(matrix(chain, N)[0].numpy(), T, rtol=1e-4, atol=1e-7)


@given(maps())
def test_rows_sum_to_one_and_constants_stay(problem):
    weights, _ = problem
    N = weights.shape[-1]
    T = matrix(chain_of(weights), N)
    assert_close(T.sum(-1), torch.ones(len(T), N), rtol=0, atol=SUM_TOLERANCE)
    # A constant map is at rest as far as the columns sum to one.
    columns = T.sum(-2)
    assert_close(propagate(torch.ones(len(T), 1, N), chain_of(weights), 1)[:, 0], columns)


def test_columns_approach_one(rng):
    weights = torch.from_numpy(random_attention(rng, 40, 1.0)).float()
    errors = [float((matrix(chain_of(weights, k), 40).sum(-2) - 1).abs().max()) for k in (1, 3, 15)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2] - 1e-4
    assert errors[2] < 1e-5


@given(maps())
def test_propagation_keeps_the_mass_of_every_class(problem):
    weights, q = problem
    assert_close(propagate(q, chain_of(weights), 4).sum(-1), q.sum(-1))


@settings(max_examples=20)
@given(maps(), st.sampled_from([0.1, 0.3, 0.7]), st.sampled_from([1, 4, 100]))
def test_first_passage_equals_the_reference(problem, tau, max_steps):
    weights, q = problem
    D = first_passage(q, chain_of(weights), tau, max_steps).D
    for b in range(len(q)):
        T = reference.doubly_stochastic(weights[b].double().numpy(), 15)
        expected = reference.maximum_velocity(
            q[b].double().numpy(), T, tau, "first_passage", max_steps
        )
        np.testing.assert_allclose(D[b].numpy(), expected, atol=RANGE_TOLERANCE, rtol=0)


def test_first_passage_in_two_blocks():
    """Inside its block a seed reaches everybody in one step, outside nobody ever."""
    q = torch.tensor([[[1.0, 0, 0, 0, 0, 0, 0]]])
    D = first_passage(q, chain_of(block_attention([3, 4])), 0.3, 25).D[0, 0]
    assert D[0] == 1  # there from the start: l = 0
    assert_close(D[1:3], torch.full((2,), 1 / 1.3))  # 0 -> 1 in one step, 0.3 on the way
    assert_close(D[3:], torch.full((4,), 1 / 26))  # never: l = max_steps


def test_crossings_are_interpolated():
    """A lazy walk on two patches; f of the far one is 0, 1/4, ... after scaling by the max."""
    T = torch.tensor([[0.8, 0.2], [0.2, 0.8]])
    q = torch.tensor([[[1.0, 0.0]]])
    second = (0.8 * 0.2 + 0.2 * 0.8) / (0.8**2 + 0.2**2)
    time = 1 + (0.3 - 0.25) / (second - 0.25)
    assert_close(first_passage(q, chain_of(T), 0.3, 50).D[0, 0, 1], torch.tensor(1 / (1 + time)))


def test_increment_on_two_patches():
    """The near patch stays the largest, so f = 1 there at all times: at rest after step 1."""
    T = torch.tensor([[0.8, 0.2], [0.2, 0.8]])
    q = torch.tensor([[[1.0, 0.0]]])
    f, far = torch.tensor([1.0, 0.0]), [0.0]
    for _ in range(20):
        f = f @ T
        far.append(float(f[1] / f[0]))
    bar = 0.3 * (far[1] - far[0])
    rest = next(t for t in range(1, 20) if far[t] - far[t - 1] <= bar)
    assert rest > 1
    assert increment(q, chain_of(T), 0.3, 100).D[0, 0].tolist() == [1, rest]
    assert increment(q, chain_of(T), 0.3, 1).D[0, 0].tolist() == [1, 1]


@pytest.mark.parametrize("tau", [0.01, 0.3, 0.9])
def test_a_walk_that_changes_by_rounding_alone_is_at_rest(tau, rng):
    N = 31
    chain = chain_of(torch.from_numpy(random_attention(rng, N)).float(), rounds=200)
    assert (increment(torch.full((1, 1, N), 1 / N), chain, tau, 50).D == 1).all()


def test_anchors():
    T = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    x = torch.tensor([[[0.9, 0.1]]])
    moved = anchored(x, torch.tensor([[[1.0, 0.0]]]), chain_of(T), 1)
    assert_close(moved, torch.tensor([[[0.9, 0.5]]]))  # sure: its own; unsure: the mean
    free = anchored(x, torch.zeros(1, 1, 2), chain_of(T), 3)
    assert_close(free, propagate(x, chain_of(T), 3))


@given(maps())
def test_anchored_equals_the_reference(problem):
    weights, q = problem
    P = q / q.sum(1, keepdim=True).clamp_min(1e-3)
    best = torch.cat([P, torch.zeros_like(P[:, :1])], dim=1).topk(2, dim=1).values
    w = best[:, :1] - best[:, 1:]
    result = anchored(P, w, chain_of(weights), 3)
    for b in range(len(P)):
        T = reference.doubly_stochastic(weights[b].double().numpy(), 15)
        expected = reference.anchored(P[b].double().numpy(), T, 3)
        np.testing.assert_allclose(result[b].numpy(), expected, atol=RANGE_TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("walk", "criterion"), [(first_passage, "first_passage"), (increment, "increment")]
)
def test_a_patch_that_nobody_attends_to(walk, criterion):
    """Its column is all zeros and cannot be scaled; the others must not turn into NaN."""
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.4, 0.6, 0.0], [0.2, 0.8, 0.0]])
    q = torch.tensor([[[1.0, 0, 0]]])
    D = walk(q, chain_of(weights), 0.3, 10).D
    T = reference.doubly_stochastic(weights.double().numpy(), 15)
    expected = reference.maximum_velocity(q[0].double().numpy(), T, 0.3, criterion, 10)
    np.testing.assert_allclose(D[0].numpy(), expected, atol=RANGE_TOLERANCE)
