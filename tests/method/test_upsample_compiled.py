"""The compiled upsampling against torch's; when it is used, and in which threads and processes."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ovss_refine import RefineConfig
from ovss_refine.method import upsample, upsample_compiled
from ovss_refine.method.upsample import upsample_bands

pytest.importorskip("numba", reason="numba is not installed ([fast])")
loop = pytest.importorskip("ovss_refine.method.upsample_loop")

# Two float32 computations of the same weighted mean, of maps in [0, 1].
ROUNDING = 1e-5


def problem(K=5, grid=(7, 6), size=(40, 50), B=1, seed=0):
    """Random maps [B, K, gh, gw], and images [B, 3, H, W] with regions of one colour."""
    rng = torch.Generator().manual_seed(seed)
    image = torch.rand(B, 3, 4, 5, generator=rng)
    image = torch.nn.functional.interpolate(image, size) * 0.9
    noise = 0.1 * torch.rand(B, 3, *size, generator=rng)
    return torch.rand(B, K, *grid, generator=rng), image + noise


def both(low, image, config=None):
    """Return labels and means of all bands."""
    bands = list(upsample_bands(low, image, config or RefineConfig()))
    assert all(isinstance(band, upsample_compiled.CompiledBand) for band in bands)
    return torch.cat([b.labels() for b in bands], 1), torch.cat([b.means() for b in bands], 2)


def by_torch(low, image, config=None):
    """Return the means that torch computes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsample, "can_compile", lambda *_: False)
        bands = upsample_bands(low, image, config or RefineConfig())
        return torch.cat([band.means() for band in bands], 2)


@given(
    K=st.integers(1, 9),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 200)),
    B=st.integers(1, 3),
    radius=st.integers(0, 3),
    seed=st.integers(0, 999),
)
def test_equals_torch(K, grid, size, B, radius, seed):
    low, image = problem(K, grid, size, B, seed)
    config = RefineConfig(radius=radius)
    labels, means = both(low, image, config)
    expected = by_torch(low, image, config)
    assert_close(means, expected, rtol=0, atol=ROUNDING)
    assert labels.dtype == torch.int64
    assert labels.shape == (B, *size)
    won = expected.gather(1, labels[:, None])[:, 0]
    assert (won >= expected.amax(dim=1) - 2 * ROUNDING).all()


def test_labels_are_where_the_means_are_largest():
    labels, means = both(*problem(K=30, size=(64, 64)))
    assert (labels == means.argmax(dim=1)).float().mean() > 0.999
    assert len(labels.unique()) > 10


@pytest.mark.parametrize("K", [2, 5, 21])
def test_the_first_of_equal_maps_wins(K):
    low, image = problem(K=1)
    labels, _ = both(low.expand(-1, K, -1, -1).contiguous(), image)
    assert (labels == 0).all()


def test_no_index_is_made_of_a_nan():
    low, image = problem()
    labels, means = both(torch.full_like(low, torch.nan), image)
    assert ((labels >= 0) & (labels < low.shape[1])).all()
    assert means.isnan().all()


@pytest.mark.parametrize("grid", [(7, 6), (1, 1)])
def test_threads_do_not_show(grid, monkeypatch):
    inputs = problem(B=2, grid=grid)
    one = both(*inputs)
    monkeypatch.setattr(upsample_compiled, "GRAIN", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    used = []
    pool = upsample_compiled.ThreadPoolExecutor
    monkeypatch.setattr(
        upsample_compiled, "ThreadPoolExecutor", lambda n: used.append(n) or pool(n)
    )
    many = both(*inputs)
    assert set(used) == {min(5, 2 * grid[0] * grid[1])}
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


def test_many_callers_at_once():
    inputs = [problem(seed=seed) for seed in range(8)]
    expected = [both(*x) for x in inputs]
    with upsample_compiled.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: both(*x), inputs * 4))
    for a, b in zip(expected * 4, found, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_a_fork_can_go_on(monkeypatch):
    monkeypatch.setattr(upsample_compiled, "GRAIN", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    inputs = problem()
    expected = both(*inputs)[0]
    child = os.fork()
    if not child:
        os._exit(0 if torch.equal(both(*inputs)[0], expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_only_plain_float32_on_a_cpu_is_compiled():
    low, image = problem()
    can = upsample_compiled.can_compile
    assert can(low, image)
    assert not can(low.double(), image)
    assert not can(low, image.to("meta"))
    assert not can(torch.nn.Parameter(low), image)
    assert not can(low.requires_grad_(), image)
    with torch.no_grad():
        assert can(low, image)


def test_torch_compile_sees_torch():
    low, image = problem()
    compiled = torch.compile(lambda x: x + upsample_compiled.can_compile(x, image), backend="eager")
    assert torch.equal(compiled(low), low)
