"""CASS: spectra, pairs, low-rank graphs, DINO's input, the whole formula, conformance."""

import functools
import itertools
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapters import tiny_models
from adapters.tiny_clip import images, make, tiny_clip
from ovss_refine import load_logits
from ovss_refine.testing.logits import check_logits_source
from ovss_refine_adapters.backbones.timm import TimmBackbone
from ovss_refine_adapters.logits import cass, cass_graph, proxyclip
from ovss_refine_adapters.logits.cass import CassLogits
from ovss_refine_adapters.logits.clip import gaussian


@functools.cache
def model():
    return tiny_clip()


@functools.cache
def dino():
    return TimmBackbone(tiny_models.tiny_vit("dino"))


def make_cass(**options):
    return make(CassLogits, **({"model": model(), "proxy": dino()} | options))


class Keys:
    """Fixed keys on a fixed grid, the same for every image."""

    def __init__(self, heads, grid, d=8, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.held = torch.randn(heads, grid[0] * grid[1], d, generator=generator)
        self.size = grid

    def keys(self, batch):
        self.input = batch
        return self.held[None].expand(len(batch), -1, -1, -1)

    def grid(self, batch):
        return self.size


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def reference_spectrum(graph):
    values = np.sort(np.linalg.eigvalsh(graph))[-20:]
    values = values / np.linalg.norm(values)
    return values / np.abs(values).sum()


def onto(x, low, high):
    return (x - x.min()) / (x.max() - x.min()) * (high - low) + low


def best_pairs(worth):
    """By exhaustive search; ties go to the pairs closest to the order of the heads."""

    def total(pairs):
        return sum(float(worth[i, j]) - 1e-6 * (i - j) ** 2 for i, j in enumerate(pairs))

    return max(itertools.permutations(range(len(worth))), key=total)


def reference(source, pixels):
    """Features [N, D] of one image in float64, and the pairs, without `faithful`."""
    tower = source.tower
    last, grid = tower.layers - 1, tower.grid(*pixels.shape[-2:])
    with torch.no_grad():
        x, _ = tower.blocks(tower.stem(pixels), 0, last)
        k, v = (part[0, :, 1:].double().numpy() for part in tower.qkv(last, x)[1:])
        proxy = source.proxy_keys(pixels, grid)[0].double().numpy()
    proxy = onto(proxy, k.min(), k.max())
    C, D = ([one @ one.T / np.sqrt(one.shape[1]) for one in keys] for keys in (k, proxy))
    W = np.array(
        [[np.abs(reference_spectrum(d) - reference_spectrum(c)).sum() for d in D] for c in C]
    )
    best = best_pairs(W)
    out = []
    for i, j in enumerate(best):
        u, s, vh = np.linalg.svd(D[j])
        u, s, vh = u[:, :10], s[:10], vh[:10]
        if source.spectrum_stretch:
            s = onto(s, 0.5 * s.min(), 1.5 * s.max())
        R = u @ np.diag(s) @ vh
        np.fill_diagonal(R, 0)
        R = onto(R, C[i].min(), C[i].max())
        joined = (10 * W[i, j] * R + C[i]) / (10 * W[i, j] + 1)
        out.append(softmax(joined + gaussian(grid, 5.0)[1:, 1:].double().numpy()) @ v[i])
    with torch.no_grad():
        y = tower.project(last, torch.from_numpy(np.stack(out)).float()[None])
        return tower.head(y)[0], W


@pytest.mark.parametrize("spectrum_stretch", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (24, 56), (56, 24)])
def test_formula(size, spectrum_stretch):
    source = make_cass(
        model=tiny_clip(head_width=16),
        proxy=Keys(4, (5, 9), d=24),
        faithful=False,
        spectrum_stretch=spectrum_stretch,
    )
    pixels = source.prepare(images(1, *size))
    wanted, W = reference(source, pixels)
    assert np.abs(W - W.T).max() > 1e-3  # else swapped rows and columns would go unnoticed
    with torch.no_grad():
        maps, own = source.encode(pixels)
        assert_close(source.class_embedding(pixels), own)
    assert_close(maps[0].flatten(1).mT, wanted, atol=2e-5, rtol=0)


def test_keys_keep_their_position():
    """Keys equal to their position, (row, column) as fractions of the image, on a 4 x 10 grid."""
    proxy = Keys(2, (4, 10), d=2)
    rows, columns = torch.meshgrid(
        (torch.arange(4) + 0.5) / 4, (torch.arange(10) + 0.5) / 10, indexing="ij"
    )
    proxy.held = torch.stack([rows, columns], dim=-1).view(1, 40, 2) * torch.tensor(
        [[[1.0]], [[2.0]]]
    )
    source = make_cass(proxy=proxy)
    got = source.proxy_keys(source.prepare(images(1, 24, 48)), (3, 6))[0].view(2, 3, 6, 2)
    # The middle is a mean of equals on both sides; bilinear weights keep linear functions.
    assert_close(got[0, :, 3, 0], torch.tensor([1 / 6, 3 / 6, 5 / 6]))
    assert_close(got[0, 1, :, 1], (torch.arange(6) + 0.5) / 6)
    assert_close(got[1], 2 * got[0])


def test_class_embedding_equals_clips():
    batch = images(2, 32, 32)
    source = make_cass()
    pixels = source.prepare(batch)
    with torch.no_grad():
        assert_close(source.class_embedding(pixels), model().encode_image(pixels))


@pytest.mark.parametrize("shape", [(3, 30, 8), (3, 12, 16)])
def test_spectrum(rng, shape):
    keys = rng.normal(size=(1, *shape))
    got = cass_graph.spectrum(torch.from_numpy(keys).float())
    N = shape[1]
    assert got.shape == (1, 3, min(20, N))
    for head in range(3):
        wanted = reference_spectrum(keys[0, head] @ keys[0, head].T)
        assert_close(got[0, head], torch.from_numpy(wanted), atol=1e-7, rtol=0)


def test_pairs_differ_most():
    """By exhaustive search; `faithful` swaps rows and columns, as the released code does."""
    proxy = Keys(5, (6, 6), d=7).held[None] * torch.linspace(0.2, 3, 7)
    own = Keys(5, (6, 6), d=7, seed=1).held[None] * torch.linspace(2, 0.1, 7)
    p, c = (cass_graph.spectrum(x)[0] for x in (proxy, own))
    W = torch.stack([(p - one).abs().sum(dim=-1) for one in c]).float()  # rows: CLIP
    for faithful, rows in ((False, W), (True, W.mT)):
        source = make_cass(
            model=tiny_clip(width=80, head_width=16), proxy=Keys(5, (6, 6)), faithful=faithful
        )
        pairing = source.pair(proxy, own)
        assert_close(pairing.cost[0], 1 - W.mT)
        best = best_pairs(rows)
        assert pairing.heads[0].tolist() == list(best)
        assert_close(pairing.weight[0], torch.stack([rows[i, j] for i, j in enumerate(best)]))
    assert W.argmax(dim=0).tolist() != W.argmax(dim=1).tolist()


def test_equally_good_pairs_keep_the_order():
    """Whatever the rounding."""
    a, b = torch.rand(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = 1e-7 * torch.rand(5, 12, 12, generator=torch.Generator().manual_seed(1))
    heads = cass_graph.assign(a[:, :, None] + b[:, None] + noise)
    assert heads.tolist() == [list(range(12))] * 5
    assert cass_graph.assign(torch.tensor([[[0.0, 1e-3], [1e-3, 0.0]]])).tolist() == [[1, 0]]


def test_a_given_assignment_is_used():
    one, two = (make_cass(assignment=a).logits(images(1)).values for a in ([0, 1], [1, 0]))
    assert float((one - two).abs().max()) > 1e-4
    free = make_cass().logits(images(1)).values
    assert min(float((free - x).abs().max()) for x in (one, two)) == 0


def test_randomised_svd_equals_torchs(rng):
    factor = torch.from_numpy(rng.normal(size=(2, 3, 40, 9)))
    u, s, v = cass_graph.randomised_svd(factor, 4, seed=5)
    for image in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            for head in range(3):
                graph = factor[image, head] @ factor[image, head].mT
                U, S, V = torch.svd_lowrank(graph, q=4)
                assert_close(s[image, head], S)
                product = (u[image, head] * s[image, head]) @ v[image, head].mT
                assert_close(product, U @ S.diag() @ V.mT)


def test_low_rank(rng):
    """Exact if the graph has that rank, for any seed; the diagonal is 0."""
    keys = torch.from_numpy(rng.normal(size=(1, 2, 30, 10))).float()
    graph = keys @ keys.mT / 10**0.5
    graph = graph.masked_fill(torch.eye(30, dtype=torch.bool), 0)
    for options in ({"seed": 1}, {"seed": 2}, {"faithful": False}):
        got = make_cass(spectrum_stretch=False, **options).low_rank(keys)
        assert_close(got, graph, atol=1e-5, rtol=1e-5)


def test_the_seed_matters_if_the_rank_is_higher():
    """Without `faithful` it does not."""
    one, two = (make_cass(seed=seed).logits(images(1)).values for seed in (1, 2))
    assert float((one - two).abs().max()) > 1e-6
    one, two = (make_cass(seed=s, faithful=False).logits(images(1)).values for s in (1, 2))
    assert_close(one, two, atol=0, rtol=0)


def test_stretch():
    values = torch.tensor([9.0, 5.0, 1.0])
    # From [1, 9] to [0.5, 13.5].
    assert_close(cass_graph.stretch(values), torch.tensor([13.5, 7.0, 0.5]))
    assert_close(cass_graph.stretch(torch.full((3,), 2.0)), torch.full((3,), 2.0))
    assert_close(cass_graph.stretch(torch.zeros(3)), torch.zeros(3))


def test_match_range():
    x = torch.tensor([[[[0.0, 1.0]], [[2.0, 4.0]]]])  # two heads
    like = torch.tensor([[[[10.0, 20.0]], [[30.0, 50.0]]]])
    assert_close(cass_graph.match_range(x, like), torch.tensor([[[[10.0, 20.0]], [[30.0, 50.0]]]]))
    each = cass_graph.match_range(x, like, per_head=True)
    assert_close(each, torch.tensor([[[[10.0, 20.0]], [[30.0, 50.0]]]]))
    apart = cass_graph.match_range(torch.cat([x, 10 * x]), torch.cat([like, -like]))
    assert_close(apart[1].flatten(), torch.tensor([-50.0, -40.0, -30.0, -10.0]))
    assert cass_graph.match_range(torch.ones(1, 1, 2), like[0, :1]).tolist() == [[[10.0, 10.0]]]


def test_match_range_per_head():
    x = torch.tensor([[[[0.0, 1.0]], [[0.0, 10.0]]]])
    like = torch.tensor([[[[0.0, 5.0]], [[1.0, 2.0]]]])
    assert_close(cass_graph.match_range(x, like)[0, 0, 0], torch.tensor([0.0, 0.5]))
    each = cass_graph.match_range(x, like, per_head=True)[0, :, 0]
    assert_close(each, torch.tensor([[0.0, 5.0], [1.0, 2.0]]))


@pytest.mark.parametrize("size", [(40, 40), (40, 70), (61, 33)])
def test_dinos_input(size):
    """8-bit false colours, resized by Pillow to a square."""
    batch = images(1, *size)
    keys = Keys(2, (4, 4))
    source = make_cass(proxy=keys)
    source.logits(batch)
    pixels = source.prepare(batch)[0].permute(1, 2, 0).double().numpy()
    colours = pixels * [0.229, 0.224, 0.255] + [0.485, 0.456, 0.406]
    assert 0 <= colours.min() < colours.max() <= 1
    pil_image = Image.fromarray((colours * 255).astype(np.uint8))
    side = min(size)
    wanted = torch.from_numpy(np.array(pil_image.resize((side, side), Image.Resampling.BICUBIC)))
    levels = keys.input[0].permute(1, 2, 0) * 255
    assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    gap = (levels - wanted).abs()
    # Pillow rounds its own weights to multiples of 2^-22; halves may round either way.
    assert float(gap.max()) < 1.01
    assert float((gap > 0.5).float().mean()) < (0.02 if size[0] != size[1] else 1e-4)


def test_dinos_input_without_faithful():
    keys, batch = Keys(2, (5, 8)), images(1, 43, 70)
    make_cass(proxy=keys, faithful=False).logits(batch)
    assert_close(keys.input, batch[..., :40, :64], atol=1e-6, rtol=0)


def test_dinos_input_is_cropped_to_whole_patches():
    class Recording(TimmBackbone):
        def keys(self, batch, layer=-1):
            self.input = batch
            return super().keys(batch, layer)

    backbone = Recording(tiny_models.tiny_vit("registers"))
    make_cass(proxy=backbone).logits(images(1, 50, 83))
    assert backbone.input.shape[-2:] == (42, 42)  # 50 cropped to patches of 14


def test_published_constants():
    source = make_cass(short_side=336, window=224)
    options = source.options
    got = (options.short_side, options.window, options.stride, options.logit_scale)
    assert got == (336, 224, 112, 40.0)
    assert (source.seed, source.gaussian_std, source.spectrum_stretch) == (42, 5.0, True)
    assert source.linkage == "ward"
    assert (cass_graph.EIGENVALUES, cass.RANK, cass.GRAPH_WEIGHT) == (20, 10, 10.0)


def test_default_proxy(monkeypatch):
    asked = []

    def load(name, device, dtype):
        asked.append((name, dtype))
        return dino()

    monkeypatch.setattr(cass, "as_backbone", load)
    make(CassLogits, model=model())
    assert asked == [("dino-b8", None)]
    assert proxyclip.BACKBONES["dino-b8"] == ("vit_base_patch8_224.dino", "reference")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"faithful": False},
        {"window": 32, "stride": 24, "short_side": 48},
        {"window": 32, "stride": 24, "global_from": "window", "spectrum_stretch": False},
        {"proxy": tiny_models.tiny_vit("registers")},
    ],
)
def test_conformance(options):
    check_logits_source(lambda: make_cass(**options))


def test_one_colour_and_one_patch():
    for batch in (torch.zeros(1, 3, 48, 80), torch.ones(1, 3, 48, 80), images(1, 9, 9)):
        assert bool(make_cass().logits(batch).values.isfinite().all())


def test_by_name():
    source = make(functools.partial(load_logits, "cass"), model=model(), proxy=dino())
    assert_close(source.logits(images(1)).values, make_cass().logits(images(1)).values)


def test_half_precision_tower():
    half = make_cass(model=tiny_clip().to(torch.bfloat16), assignment=[0, 1])
    wanted = make_cass(assignment=[0, 1]).logits(images(1)).values
    got = half.logits(images(1)).values
    assert got.dtype == torch.float32
    assert float((got - wanted).abs().max()) < 0.1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"proxy": 7}, TypeError, r"`proxy` must be a name, a model, or have `keys` and `grid`"),
        ({"proxy": "dino"}, ValueError, r"`proxy` must be one of \['dino-b16', .*got 'dino'"),
        (
            {"proxy": tiny_models.tiny_vit(num_heads=4)},
            ValueError,
            r"`proxy` must have as many heads in its last block as CLIP, 2; got 4",
        ),
        ({"assignment": [0, 0]}, ValueError, r"`assignment` must name each of the 2 heads once"),
        ({"assignment": [0]}, ValueError, r"`assignment` must name.*; got \[0\]"),
        ({"gaussian_std": 0.0}, ValueError, r"`gaussian_std` must be a finite number > 0"),
        ({"seed": -1}, ValueError, r"`seed` must be at least 0; got -1"),
        ({"seed": None}, TypeError, r"`seed` must be a whole number; got None"),
        ({"sead": 1}, TypeError, r"unexpected keyword argument 'sead'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        make_cass(**options)


@pytest.mark.parametrize("proxy", [Keys(3, (4, 4)), Keys(2, (4, 4))])
def test_keys_that_do_not_fit(proxy):
    if len(proxy.held) == 2:
        proxy.size = (4, 5)
    with pytest.raises(ValueError, match=r"`keys of the proxy` must have shape \[B=1, A=2, N="):
        make_cass(proxy=proxy).logits(images(1))


class NoFloat64OnMps(TorchDispatchMode):
    """Raise as Apple's devices do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.device.type == "mps" and x.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return out


@pytest.mark.parametrize("faithful", [False, True])
def test_a_device_without_float64_computes_float64_on_the_cpu(faithful, monkeypatch):
    source = make_cass(faithful=faithful)
    monkeypatch.setattr(cass, "assign", lambda worth: worth.cpu().argmax(dim=-1))
    with FakeTensorMode(allow_non_fake_inputs=True), NoFloat64OnMps():
        keys = torch.rand(2, 2, 30, 8, device="mps")
        with pytest.raises(TypeError, match="MPS"):
            keys.double()
        pairing = source.pair(keys, keys)
        found = [source.low_rank(keys), *(getattr(pairing, x.name) for x in fields(pairing))]
    assert [x.device.type for x in found] == ["mps"] * 4
    assert [x.dtype for x in found] == [torch.float32, torch.float32, torch.int64, torch.float32]
