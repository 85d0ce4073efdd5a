"""The kernels for a GPU against the float64 reference: on a GPU, or in Triton's interpreter.

For a process of its own, as Triton asks once whether it is to interpret: if `TRITON_INTERPRET` is
set before this is imported.
"""

import os

import numpy as np
import torch

import reference
from conftest import RANGE_TOLERANCE
from ovss_refine import Attention, RefineConfig, Refiner
from ovss_refine.method import markov, upsample, upsample_gpu
from ovss_refine.tensors import compiled, gpu_chain, gpu_device
from strategies import block_attention, random_attention, random_sources

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") else "cuda"
# Two computations in float32 of the same weighted mean, of maps in [0, 1].
ROUNDING = 1e-5
np.seterr(divide="ignore", invalid="ignore")  # of lanes whose result is not taken
ON_A_GPU = gpu_device.capable
SCALING = gpu_chain.scaled
if DEVICE == "cpu":  # a CPU takes the GPU's part, and numba's loops stand back
    ON_A_GPU = gpu_device.capable = lambda device: True
    compiled.available = lambda device: False
    upsample.can_compile = lambda low, guide: False


def chain_of(weights, rounds, divisor=1, many_steps=True):
    """Return the kernels' chain of a map [N, N] or [B, N, N]."""
    weights = weights.to(DEVICE).mT.contiguous().mT  # rows that do not lie one after the other
    held = Attention(weights, (1, weights.shape[-1])).batched().in_blocks(divisor)
    calls = []
    gpu_chain.scaled = lambda *given: calls.append(given) or SCALING(*given)
    chain = markov.doubly_stochastic(held, rounds, many_steps=many_steps)
    assert len(calls) == 1
    return chain


def scaling(N, B=1, rounds=3, dtype="float32", groups=512):
    """T, formed or as its factors, is the reference's."""
    gpu_chain.GROUPS = groups
    rng = np.random.default_rng(N)
    weights = torch.from_numpy(random_attention(rng, N, heads=B)).to(DEVICE, getattr(torch, dtype))
    before = weights.clone()
    chain = chain_of(weights, rounds)
    assert torch.equal(weights, before)
    assert chain.T.dtype == torch.float32
    for b in range(B):
        T = reference.doubly_stochastic(weights[b].double().cpu().numpy(), rounds)
        np.testing.assert_allclose(chain.T[b].cpu(), T, rtol=1e-5, atol=1e-8)
        folded = chain.r[b].mT * weights[b].float() * chain.c[b]
        np.testing.assert_allclose(folded.cpu(), T, rtol=1e-5, atol=1e-8)


def unformed(N):
    """No copy is made where it is not wanted or memory is short: the same factors."""
    weights = torch.full((N, N), 1 / N)
    formed = chain_of(weights, 2)
    for held in (chain_of(weights, 2, divisor=8), chain_of(weights, 2, many_steps=False)):
        assert held.T is None
        assert torch.equal(held.r * held.c, formed.r * formed.c)
    assert chain_of(weights.half(), 2, many_steps=False).T is not None


def sinks(weakest):
    """Factors that drift apart by more than float32 holds, but for the power of two."""
    N, rng = 13, np.random.default_rng(0)
    weights = random_attention(rng, N)
    weights[:, 1] += 1e6
    weights[:, 2::3] *= weakest
    held = torch.from_numpy(weights / weights.sum(-1, keepdims=True)).float()
    T = reference.doubly_stochastic(held.double().numpy(), 15)
    np.testing.assert_allclose(chain_of(held, 15).T[0].cpu(), T, rtol=1e-4, atol=1e-7)
    held = torch.zeros(5, 5)  # nobody attends to any other: r would grow five times a round
    held[:, 1] = 1
    chain = chain_of(held, 80)
    np.testing.assert_allclose(chain.T[0].cpu(), held, rtol=1e-5)


def walk(weights, q, tau=0.3, max_steps=100, every=1, block=1024):
    """Times and steps are those of the reference and of torch."""
    gpu_chain.BLOCK, (B, _, N) = block, q.shape
    maps = weights.expand(B, N, N)
    exact = [reference.doubly_stochastic(one.double().numpy(), 3) for one in maps]
    T = torch.from_numpy(np.stack(exact)).float()
    given = q.to(DEVICE).mT.contiguous().mT, T.to(DEVICE)
    assert gpu_chain.can_walk(*given)
    times, steps, done = gpu_chain.first_passage(*given, tau, max_steps, every)
    times = times.cpu()
    chain = markov.Chain(Attention(T, (1, N)), torch.ones(B, 1, N), torch.ones(B, 1, N))
    expected = markov.first_passage(q, chain, tau, max_steps)
    np.testing.assert_allclose(1 / (1 + times), expected.D, atol=1e-5, rtol=0)
    assert steps == min(-(-expected.steps // every) * every, max_steps)
    assert done == expected.converged
    for b in range(B):
        D = reference.maximum_velocity(
            q[b].double().numpy(), exact[b], tau, "first_passage", max_steps
        )
        np.testing.assert_allclose(1 / (1 + times[b]), D, atol=RANGE_TOLERANCE, rtol=0)
    return times, steps, done


def random_walk(N, m, B=1, **options):
    """A walk from random sources."""
    rng = np.random.default_rng(N + m)
    weights = torch.from_numpy(random_attention(rng, N, 4.0, heads=B)).float()
    walk(weights, random_sources(rng, B, m, N), **options)


def unreachable(every):
    """Patches of another block are never reached; those of the same all at the same time."""
    q = torch.zeros(1, 2, 14)
    q[0, 0, 2] = q[0, 1, 7] = 1
    times, steps, done = walk(block_attention([5, 9]), q, max_steps=10, every=every, block=4)
    assert (times[0, 0, 5:] == 10).all()
    assert (times[0, 1, :5] == 10).all()
    assert len(times[0, 1, 5:].unique()) == 2
    assert (steps, done) == (10, False)


def long_walk():
    """A walk that spreads out for 100 steps keeps its mass, and times its order."""
    N = 24
    step = torch.eye(N).roll(1, 1) / 2 + torch.eye(N) / 2  # around a ring, one way
    q = torch.zeros(1, 1, N)
    q[0, 0, 0] = 1
    times, steps, _ = walk(step, q, tau=0.9, max_steps=100, block=16)
    assert steps > 20
    assert (times[0, 0, 1:-1] < times[0, 0, 2:]).all()


def upsampling(K, grid, size, B=1, radius=2, sigma=0.1, rows=None):
    """Means are the reference's, labels where they are largest, in one band or several."""
    generator = torch.Generator().manual_seed(K)
    image = torch.nn.functional.interpolate(torch.rand(B, 3, 4, 5, generator=generator), size) * 0.9
    image += 0.1 * torch.rand(B, 3, *size, generator=generator)
    low = torch.rand(B, K, *grid, generator=generator)
    config = RefineConfig(radius=radius, sigma_range=sigma)
    upsample_gpu.BAND = (rows or size[0]) * B * K * size[1]
    given = (x.to(DEVICE, memory_format=torch.channels_last) for x in (low, image))
    bands = list(upsample.upsample_bands(*given, config))
    assert all(isinstance(band, upsample_gpu.GpuBand) for band in bands)
    assert len(bands) == -(-size[0] // (rows or size[0]))
    means = torch.cat([band.means() for band in bands], 2).cpu()
    labels = torch.cat([band.labels() for band in bands], 1).cpu()
    assert labels.dtype == torch.int64
    for b in range(B):
        expected = reference.joint_bilateral_upsample(
            low[b].double().numpy(), image[b].double().numpy(), 1.0, sigma, radius
        )
        np.testing.assert_allclose(means[b], expected, atol=ROUNDING, rtol=0)
        won = np.take_along_axis(expected, labels[b].numpy()[None], 0)[0]
        assert (won >= expected.max(0) - 2 * ROUNDING).all()


def odd_labels():
    """The first of equal maps wins; no index is made of a NaN."""
    upsample_gpu.BAND = 1 << 26
    low, image = torch.rand(1, 1, 2, 3, device=DEVICE), torch.rand(1, 3, 7, 8, device=DEVICE)
    low = low.expand(-1, 20, -1, -1)
    (band,) = upsample.upsample_bands(low, image, RefineConfig())
    assert not band.labels().any()
    nan = torch.full_like(low, torch.nan)
    (band,) = upsample.upsample_bands(nan, image, RefineConfig())
    assert not band.labels().any()
    assert band.means().isnan().all()


def refinement(mode, dtype="float32"):
    """A whole refinement is that of torch, with attention as it is held."""
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(4 * rng.normal(size=(3, 3, 4))).float()
    attention = torch.from_numpy(random_attention(rng, 12)).to(getattr(torch, dtype))
    image = torch.from_numpy(rng.random((3, 9, 13))).float()
    logits, attention, image = logits.to(DEVICE), attention.to(DEVICE), image.to(DEVICE)
    refiner = Refiner(mode, ipf_rounds=2, keep_scores=True, max_steps=8)
    upsample_gpu.pixel_table.cache_clear()
    upsample_gpu.BAND = 1 << 26
    walks, walk = [], gpu_chain.first_passage
    gpu_chain.first_passage = lambda *given: walks.append(given) or walk(*given)
    found = refiner(logits, attention, image)
    assert bool(walks) == (mode != "anchored")
    assert upsample_gpu.pixel_table.cache_info().currsize == 2
    gpu_device.capable = lambda device: False
    expected = refiner(logits, attention, image)
    gpu_device.capable = ON_A_GPU
    assert torch.equal(found.labels, expected.labels)
    finite = expected.discrepancy.isfinite()
    assert torch.equal(found.discrepancy.isfinite(), finite)
    torch.testing.assert_close(found.discrepancy[finite], expected.discrepancy[finite])
    assert (found.steps, found.converged) == (expected.steps, expected.converged)


def at_full_size():
    """As torch on the same device, at sizes that the interpreter would take hours for."""
    generator, (B, m, N) = torch.Generator().manual_seed(0), (2, 21, 33 * 33)
    weights = torch.rand(B, N, N, generator=generator).pow(8).to(DEVICE)
    weights /= weights.sum(2, keepdim=True)
    chain, q = chain_of(weights, 15), torch.rand(B, m, N, generator=generator).pow(9).to(DEVICE)
    low = torch.rand(B, 35, 33, 33, generator=generator).to(DEVICE)
    image = torch.rand(B, 3, 375, 500, generator=generator).to(DEVICE)
    D = markov.first_passage(q, chain, 0.9, 100).D
    means = upsample.joint_bilateral_upsample(low, image)
    gpu_device.capable = lambda device: False
    torchs = markov.doubly_stochastic(chain.attention, 15, many_steps=True)
    assert torchs.T is None
    eye = torch.eye(N, device=DEVICE).expand(B, -1, -1)
    torch.testing.assert_close(chain.T, torchs.step(eye), rtol=1e-4, atol=1e-7)
    expected = markov.first_passage(q, torchs, 0.9, 100).D
    torch.testing.assert_close(D, expected, rtol=0, atol=RANGE_TOLERANCE)
    expected = upsample.joint_bilateral_upsample(low, image)
    torch.testing.assert_close(means, expected, rtol=0, atol=ROUNDING)
    gpu_device.capable = ON_A_GPU
