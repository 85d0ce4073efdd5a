"""Compiled loops: as the same written in torch, at any size, from any thread and process."""

import importlib.util
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.testing import assert_close

from ovss_refine import Attention, Refiner
from ovss_refine.method import markov
from ovss_refine.tensors import compiled
from strategies import block_attention

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba is not installed"
)


def random_map(N, generator):
    weights = torch.rand(N, N, generator=generator) ** 6
    return weights / weights.sum(1, keepdim=True)


def both_ways(weights, monkeypatch, use):
    """What `use` makes of the chain by the loops, and by torch."""
    held = Attention(weights, (1, len(weights))).batched()
    ours = use(markov.doubly_stochastic(held, 15, many_steps=True))
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "load_loops", lambda _: None)
        return ours, use(markov.doubly_stochastic(held, 15, many_steps=True))


@needs_numba
@pytest.mark.parametrize("N", [1, 2, 7, 8, 9, 16, 17, 100, 545])
@pytest.mark.parametrize("m", [1, 3])
def test_equal_torch_s(N, m, monkeypatch):
    generator = torch.Generator().manual_seed(N)
    x = torch.rand(1, m, N, generator=generator) ** 8
    q = x / x.sum(2, keepdim=True)

    def use(chain):
        passages = [
            markov.first_passage(q, chain, tau, steps)
            for tau, steps in ((0.3, 100), (0.9, 100), (0.3, 1))
        ]
        maps = [chain.T[..., :N], chain.step(x), markov.increment(q, chain, 0.5, 100).D]
        return passages, maps

    (ours, our_maps), (torchs, torch_maps) = both_ways(random_map(N, generator), monkeypatch, use)
    assert_close(our_maps, torch_maps, rtol=1e-5, atol=1e-6)
    for found, expected in zip(ours, torchs, strict=True):
        assert_close(found.D, expected.D, rtol=1e-4, atol=1e-5)
        assert (found.steps, found.converged) == (expected.steps, expected.converged)


@needs_numba
@pytest.mark.parametrize("many", [0, 1 << 30])
def test_patches_that_are_never_reached(many, monkeypatch):
    monkeypatch.setattr(compiled, "MANY", many)
    q = torch.zeros(1, 2, 14)
    q[0, 0, 2] = q[0, 1, 7] = 1

    def use(chain):
        return markov.first_passage(q, chain, 0.3, 20)

    found, expected = both_ways(block_attention([5, 9]), monkeypatch, use)
    assert_close(found.D, expected.D)
    assert (found.D[0, 0, 5:] == 1 / 21).all()
    assert (found.steps, found.converged) == (20, False)


@needs_numba
@pytest.mark.parametrize(("B", "rounds"), [(1, 15), (1, 1), (3, 15)])
def test_rows_or_images_parted_among_threads_scale_as_in_one(B, rounds, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    maps = torch.stack([random_map(77, generator) for _ in range(B)])
    alone = compiled.scaled(maps, rounds, markov.LARGE)[2]
    monkeypatch.setattr(compiled, "THREAD_ENTRIES", 0)
    monkeypatch.setattr(compiled, "SHARED_ENTRIES", 0)
    used, shared = [], compiled._scale_shared
    monkeypatch.setattr(compiled, "_scale_shared", lambda *a: used.append(1) or shared(*a))
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        used.clear()
        T = compiled.scaled(maps, rounds, markov.LARGE)[2]
        assert len(used) == (B if B == 1 or threads == 1 else 0)
        assert_close(T, alone, rtol=1e-6, atol=0)
        assert (T[..., 77:] == 0).all()


@needs_numba
def test_many_classes_walk_as_few(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    _, _, (T,) = compiled.scaled(random_map(70, generator)[None], 15, markov.LARGE)
    q = torch.rand(9, 70, generator=generator) ** torch.arange(1, 10)[:, None]
    q[4] = 1 / 70  # is everywhere at once
    for tau, most in ((0.3, 100), (0.9, 4), (0.9, 1)):
        few = compiled.first_passage(q, T, tau, most)
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "MANY", 0)
            many = compiled.first_passage(q, T, tau, most)
        assert_close(many[0], few[0], rtol=1e-4, atol=1e-5)
        assert many[1:] == few[1:]


@needs_numba
def test_classes_parted_among_threads_are_as_in_one(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    _, _, (T,) = compiled.scaled(random_map(300, generator)[None], 15, markov.LARGE)
    q = torch.rand(5, 300, generator=generator) ** 20
    q[0] = 1 / 300  # is everywhere at once
    monkeypatch.setattr(compiled, "THREAD_ENTRIES", 0)
    found = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        found.append(compiled.first_passage(q, T, 0.3, 50))
    for times, steps, done in found:
        assert torch.equal(times, found[0][0])
        assert (steps, done) == found[0][1:]


@needs_numba
def test_many_callers_and_a_fork():
    generator = torch.Generator().manual_seed(1)
    attention = Attention(random_map(100, generator), (10, 10))
    logits, image = torch.randn(3, 10, 10, generator=generator), torch.rand(3, 20, 20)

    def labels(_=None):
        return Refiner()(logits, attention, image).labels.tolist()

    expected = labels()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(labels, range(16))) == [expected] * 16
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: sender.send(labels()))
    child.start()
    assert receiver.poll(60)
    assert receiver.recv() == expected
    child.join(60)
    assert child.exitcode == 0


@needs_numba
def test_the_map_itself_is_left_alone():
    weights = random_map(40, torch.Generator().manual_seed(2))
    before = weights.clone()
    markov.doubly_stochastic(Attention(weights, (5, 8)).batched(), 15, many_steps=True)
    assert torch.equal(weights, before)


RUN = """
import sys, warnings, torch
{prepare}
from ovss_refine import Refiner
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        Refiner()(9 * torch.rand(2, 3, 3), torch.full((9, 9), 1 / 9), torch.rand(3, 9, 9))
caught = [str(w.message) for w in caught if 'numba' in str(w.message)]
print(set(caught), len(caught))
print([name for name in sys.modules if name.endswith(("loops", "upsample_loop"))])
"""


def test_without_numba_torch_does_the_work(forks):
    assert forks.printed(RUN.format(prepare="sys.modules['numba'] = None")) == "set() 0\n[]"


def test_a_broken_numba_is_a_warning_for_each_of_the_loops(forks, tmp_path):
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 1.0')")
    printed = forks.printed(RUN.format(prepare=f"sys.path.insert(0, {str(tmp_path)!r})"))
    assert printed == (
        "{'numba is installed and does not work, so torch does its work, which is slower: "
        "ImportError: Numba needs NumPy 1.0'} 2\n[]"
    )


def test_other_devices_do_not_take_them():
    assert not compiled.available(torch.device("meta"))
