"""`Attention`: what it accepts, what it refuses, and its products."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ovss_refine import Attention, Refiner
from ovss_refine import attention as attention_module
from ovss_refine.attention import affinity
from ovss_refine.refiner import as_attention
from ovss_refine.tensors import blocks as blocks_module
from ovss_refine.tensors import compiled
from strategies import random_attention


@pytest.fixture
def weights(rng):
    return torch.from_numpy(random_attention(rng, 12, heads=3)).float()


def test_heads_are_averaged_once(weights):
    attention = Attention(weights[None].expand(2, -1, -1, -1), (3, 4))
    assert_close(attention.weights, weights.mean(0).expand(2, -1, -1))


def test_half_precision_heads_are_averaged_in_float32(weights):
    assert Attention(weights[None].half(), (3, 4)).weights.dtype == torch.float32


@pytest.mark.parametrize("row", [0, 5, 11])
@pytest.mark.parametrize(("change", "word"), [(-1, "0"), (1, "sum to one"), (torch.nan, "finite")])
def test_every_block_of_rows_is_checked(weights, row, change, word, monkeypatch):
    monkeypatch.setattr("ovss_refine.checks.ROWS_BLOCK", 5 * 12)
    Attention(weights, (3, 4))
    weights[1, row, 2] += change
    with pytest.raises(ValueError, match=f"must be .*{word}|must {word}"):
        Attention(weights, (3, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_map_is_checked_under_autocast(weights, dtype):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Attention(weights.to(dtype), (3, 4))


def test_a_negative_entry_cannot_hide_behind_another_head(weights):
    weights[0, 0, 0] -= 1
    weights[0, 0, 1] += 1
    with pytest.raises(ValueError, match="must be >= 0; got -"):
        Attention(weights[None], (3, 4))


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda A: A[:, 1:, 1:].mean(0), "Divide by `weights.sum(-1, keepdim=True)`; row"),
        (lambda A: A.sum(0), "Divide by `weights.sum(-1, keepdim=True)`, or take"),
        (lambda A: A[0] * 100, "Divide by `weights.sum(-1, keepdim=True)`, or take"),
        (lambda A: A[0].mT, "The columns do: pass `weights.mT`; row"),
        (lambda A: A.mT, "The columns do: pass `weights.mT`; row"),
        (lambda A: A[0] * torch.arange(12)[:, None], "Remove tokens that attend to nothing"),
        (lambda A: 9 * A[0].sqrt(), "Take a softmax over the last axis of raw scores; row"),
        (lambda A: A[0].sqrt(), "Divide by `weights.sum(-1, keepdim=True)`, or take a softmax"),
    ],
)
def test_the_advice_fits_the_values(change, advice):
    A = (2 * torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(0))).softmax(-1)
    wrong = change(A)
    with pytest.raises(ValueError, match="must sum to one") as said:
        Attention(wrong if wrong.ndim == 2 else wrong[None], (1, wrong.shape[-1]))
    assert advice in str(said.value)


def test_float32_weights_are_not_copied(weights):
    assert Attention(weights, (3, 4)).weights.data_ptr() == weights.data_ptr()


def test_grid_may_be_any_sequence_and_is_kept_as_a_tuple(weights):
    for grid in ([4, 3], np.array([4, 3], np.int16), torch.tensor([4, 3]), torch.Size([4, 3])):
        assert Attention(weights[0], grid).grid == (4, 3)
        assert {type(side) for side in Attention(weights[0], grid).grid} == {int}


@pytest.mark.parametrize(
    "grid", [(3, 5), (12,), (-3, -4), (3, 2, 2), (0, 12), (), {}, [2**70, 6]], ids=str
)
def test_bad_grid(weights, grid):
    with pytest.raises(ValueError, match=r"`grid` must be \(gh, gw\) with gh \* gw = N=12"):
        Attention(weights, grid)


@pytest.mark.parametrize(
    "grid", [None, 12, "34", ("3", "4"), (None, None), (3.0, 4.0), (3.5, 4), {3.0}, 4j], ids=str
)
def test_grid_of_other_things(weights, grid):
    with pytest.raises(TypeError, match=r"^`grid` must be \(gh, gw\), whole numbers; got "):
        Attention(weights, grid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("divisor", [1, 5, 100])
def test_left_product_in_blocks(weights, dtype, divisor, monkeypatch):
    monkeypatch.setattr(blocks_module, "CPU_BLOCK", 3 * 12 * 5)  # five rows of three images
    monkeypatch.setattr(blocks_module, "MIN_ROWS", 1)
    attention = Attention(weights.to(dtype), (3, 4), block_divisor=divisor)
    x = torch.rand(3, 2, 12)
    assert_close(attention.left_matmul(x), x @ weights.to(dtype).float())
    blocks = list(attention.blocks())
    assert len(blocks) == (3 if divisor == 1 else 12)
    assert_close(torch.cat([block for _, block in blocks], dim=1), weights.to(dtype).float())


def test_only_a_float32_map_with_room_fits_twice(weights):
    assert Attention(weights, (3, 4)).fits_twice
    assert not Attention(weights.half(), (3, 4)).fits_twice
    assert not Attention(weights, (3, 4), block_divisor=8).fits_twice
    assert not Attention.from_factors(*torch.rand(2, 2, 12, 5), 1.0, (3, 4)).fits_twice


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["optimal_path", "maximum_velocity"])
def test_half_precision_is_widened_once_on_a_gpu(mode, dtype, weights, monkeypatch):
    """Here a CPU takes the GPU's part: the same result as of the widened map, in few readings."""
    logits, image = torch.randn(3, 3, 4), torch.rand(3, 9, 12)
    read, blocks = [], Attention.blocks
    monkeypatch.setattr(Attention, "blocks", lambda self: read.append(1) or blocks(self))
    monkeypatch.setattr(compiled, "available", lambda device: False)
    refiner = Refiner(mode, ipf_rounds=2, vote=0)
    weights = weights.mean(0).to(dtype)
    expected = refiner(logits, Attention(weights.float(), (3, 4)), image)
    few = len(read)
    monkeypatch.setattr(blocks_module, "WIDENED_ONCE", ("cpu",))
    one = Attention(weights, (3, 4))
    result = refiner(logits, one, image)
    assert len(read) == 2 * few
    assert few <= 3
    assert torch.equal(result.discrepancy, expected.discrepancy)
    assert one.fits_twice
    assert not one.in_blocks(8).fits_twice
    assert not Attention(weights.double(), (3, 4)).fits_twice


def test_affinity_is_the_softmax_of_cosines():
    features = torch.rand(2, 5, 3, 4) - 0.5
    attention = affinity(features, 0.1)
    f = features.flatten(2).mT.double()  # [B, N, C]
    cosine = torch.cosine_similarity(f[:, :, None], f[:, None], dim=-1)
    assert attention.grid == (3, 4)
    assert_close(attention.weights.double(), (cosine / 0.1).softmax(-1), rtol=1e-4, atol=1e-6)
    assert_close(affinity(features[0], 0.1).weights, attention.weights[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_affinity_is_float32_under_autocast(dtype):
    features = torch.rand(2, 5, 3, 4) - 0.5
    wanted = affinity(features, 0.1)
    with torch.autocast("cpu", dtype=dtype):
        found = affinity(features, 0.1)
    assert found.weights.dtype == torch.float32
    assert torch.equal(found.weights, wanted.weights)


def test_affinity_refuses():
    with pytest.raises(ValueError, match=r"`temperature` must be in \[1e-06, 1e\+06\]; got 0"):
        affinity(torch.rand(5, 3, 4), 0)
    with pytest.raises(ValueError, match=r"`features` must have shape \[B, C, gh, gw\]; got \[4\]"):
        affinity(torch.rand(4), 0.1)
    with pytest.raises(ValueError, match="`features` must be finite"):
        affinity(torch.full((5, 3, 4), torch.nan), 0.1)


@pytest.fixture(params=["dense", "factors"])
def batch(request, rng):
    """Three maps over a 3 x 4 grid, held in either way."""
    if request.param == "dense":
        maps = [random_attention(rng, 12) for _ in range(3)]
        return Attention(torch.tensor(np.stack(maps)).float(), (3, 4))
    q, k = torch.from_numpy(rng.normal(size=(2, 3, 2, 12, 5))).float()
    return Attention.from_factors(q, k, 0.7, (3, 4))


def rows_of(attention):
    return torch.cat([block for _, block in attention.blocks()], dim=1)


class TestMapsOfABatch:
    def test_one_by_one_and_together_again(self, batch):
        maps = list(batch)
        assert [one.shape for one in maps] == [(12, 12)] * 3
        for b, one in enumerate(maps):
            assert_close(rows_of(one)[0], rows_of(batch)[b])
        again = Attention.stack(maps)
        assert again.shape == batch.shape
        assert again.grid == batch.grid
        assert torch.equal(rows_of(again), rows_of(batch))

    def test_indices_count_from_the_end_too(self, batch):
        assert torch.equal(rows_of(batch[-1]), rows_of(batch[2]))
        with pytest.raises(IndexError):
            batch[3]
        with pytest.raises(TypeError, match=r"`attention\[b\]` must be of a batch"):
            batch[0][0]

    def test_nothing_is_copied_or_checked_again(self, batch, monkeypatch):
        monkeypatch.setattr(Attention, "__post_init__", None)
        held = batch.weights if batch.factors is None else batch.factors[0]
        one = batch[1].batched()
        part = one.weights if one.factors is None else one.factors[0]
        assert part.data_ptr() == held[1].data_ptr()
        assert one.batched() is one

    def test_what_does_not_fit_together_is_refused(self, batch):
        other = Attention(torch.eye(12), (4, 3))
        for maps in ([], [batch], [batch[0], other]):
            with pytest.raises(ValueError, match="`maps` must be maps without batch axis"):
                Attention.stack(maps)

    def test_blocks_stay_small(self, batch):
        assert batch.in_blocks(8)[0].block_divisor == 8
        assert batch.block_divisor == 1


def test_arrays_are_taken():
    array = np.eye(6, dtype=np.float32)[::-1]  # a negative stride
    attention = Attention(array, (2, 3))
    assert torch.equal(attention.weights, torch.eye(6).flip(0))
    assert as_attention(array, (2, 3), (20, 30)).grid == (2, 3)


class TestFactors:
    """Attention as queries and keys, multiplied out a block of rows at a time."""

    @pytest.fixture
    def qk(self, rng):
        return tuple(torch.from_numpy(rng.normal(size=(2, 3, 12, 5))).float() for _ in range(2))

    def dense(self, q, k):
        return (0.7 * q @ k.mT).softmax(-1).mean(-3)

    @pytest.mark.parametrize("rows", [1, 5, 12])
    def test_blocks_are_the_rows_of_the_map(self, qk, rows, monkeypatch):
        monkeypatch.setattr(blocks_module, "CPU_BLOCK", rows * 2 * 12)
        attention = Attention.from_factors(*qk, 0.7, (3, 4))
        blocks = list(attention.blocks())
        assert len(blocks) == -(-12 // rows)
        assert_close(torch.cat([block for _, block in blocks], dim=1), self.dense(*qk))
        x = torch.rand(2, 4, 12)
        assert_close(attention.left_matmul(x), x @ self.dense(*qk))

    def test_the_map_is_formed_where_memory_is_plentiful(self, qk, monkeypatch):
        attention = Attention.from_factors(*qk, 0.7, (3, 4))
        needed = 4 * (2 * 4 * 2 * 12 * 12)  # a quarter holds it and a copy
        monkeypatch.setattr(attention_module, "free_bytes", lambda _: needed)
        assert_close(attention.formed().weights, self.dense(*qk))
        assert attention[1].formed().shape == (1, 12, 12)
        assert attention.factors is not None
        monkeypatch.setattr(attention_module, "free_bytes", lambda _: needed - 1)
        assert attention.formed() is attention

    def test_the_map_is_not_formed(self, qk):
        forbidden = Attention.from_factors(*qk, 0.7, (3, 4), form=False)
        assert forbidden.formed().weights is None
        assert forbidden[0].formed().weights is None
        blocks = Attention.from_factors(*qk, 0.7, (3, 4)).in_blocks(8)
        assert blocks.formed().weights is None
        held = Attention(torch.eye(6), (2, 3))
        assert held.formed() is held

    def test_shape_and_grid(self, qk):
        q, k = qk
        assert Attention.from_factors(q, k, 0.7, (3, 4)).shape == (2, 12, 12)
        single = Attention.from_factors(q[0], k[0], 0.7, [4, 3])
        assert single.shape == (12, 12)
        assert single.grid == (4, 3)
        assert_close(next(single.blocks())[1], self.dense(q[:1], k[:1]))

    def test_half_precision_factors_are_widened(self, qk):
        q, k = (x.half() for x in qk)
        block = next(Attention.from_factors(q, k, 0.7, (3, 4)).blocks())[1]
        assert_close(block, self.dense(q.float(), k.float()))

    @pytest.mark.parametrize(
        ("changed", "match"),
        [
            ({"k": torch.zeros(2, 3, 11, 5)}, r"`k` must have shape \[B=2, A=3, N=12, d=5\]"),
            ({"q": torch.zeros(12, 5)}, r"`q` must have shape \[B, A, N, d\]; got \[12, 5\]"),
            ({"q": torch.full((2, 3, 12, 5), torch.nan)}, "`q` must be finite"),
            ({"scale": 0.0}, r"`scale` must be in \[1e-06, 1e\+06\]; got 0.0"),
            ({"grid": (3, 5)}, r"`grid` must be \(gh, gw\) with gh \* gw = N=12"),
        ],
    )
    def test_bad_factors(self, qk, changed, match):
        given = {"q": qk[0], "k": qk[1], "scale": 0.7, "grid": (3, 4)} | changed
        with pytest.raises(ValueError, match=match):
            Attention.from_factors(**given)

    def test_both_forms_at_once(self, qk):
        with pytest.raises(ValueError, match="`weights` must be None with `factors`"):
            Attention(self.dense(*qk), (3, 4), factors=qk)

    def test_neither_form(self):
        with pytest.raises(TypeError, match=r"`weights` must be a torch.Tensor; got NoneType"):
            Attention(None, (3, 4))
