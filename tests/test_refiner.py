"""The whole refinement against the literal reference, and its promises as a function."""

import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close

import reference
from conftest import HALF_TOLERANCE, RANGE_TOLERANCE, TORCH
from fuzzing.compare import map_difference
from ovss_refine import Attention, Logits, RefineConfig, Refiner, refine
from ovss_refine import refiner as refiner_module
from ovss_refine.method import steps as steps_module
from ovss_refine.tensors import blocks as blocks_module
from ovss_refine.tensors import compiled
from strategies import Case, cases, random_attention

MODES = [
    {"mode": "kl"},
    {"mode": "optimal_path"},
    {"mode": "maximum_velocity"},
    {"mode": "maximum_velocity", "criterion": "increment"},
    {"mode": "fusion"},
    {"mode": "propagation"},
    {"mode": "anchored"},
]
each_mode = pytest.mark.parametrize("mode", MODES, ids=lambda m: "-".join(m.values()))


def smooth_case(seed=0, K=5, grid=(6, 7), size=(40, 33), heads=None):
    """An image with confident patches, where no decision hangs by a rounding error."""
    rng = np.random.default_rng(seed)
    N = grid[0] * grid[1]
    return Case(
        logits=rng.normal(size=(K, *grid)) * 4,
        attention=random_attention(rng, N, heads=heads),
        image=rng.random((3, *size)),
        grid=grid,
    )


def assert_same_map(actual, expected, tolerance):
    """Compare where both are finite, as a share of the expected map's range."""
    assert map_difference(actual, expected) <= tolerance


def assert_same_labels(result, expected, scores):
    """Labels must agree wherever the two best classes are not tied to rounding."""
    best = np.sort(np.where(np.isfinite(scores), scores, -1e30), axis=0)[-2:]
    clear = best[-1] - best[0] > 1e-3 * (np.abs(best[-1]) + 1e-6)
    labels = result.labels.numpy()
    np.testing.assert_array_equal(labels[clear], expected[clear])


def assert_same_result(actual, expected, tolerance=0.0):
    for name in ("labels", "kept", "seeds"):
        assert_close(getattr(actual, name), getattr(expected, name))
    assert_same_map(actual.discrepancy, expected.discrepancy, tolerance)
    assert_same_map(actual.scores, expected.scores, tolerance)


@each_mode
def test_equals_the_reference(mode):
    @settings(max_examples=25)
    @given(cases(**mode))
    def check(case):
        # With one class the map is flat, and when a flat map comes to rest is a matter of rounding.
        expected = case.expected()
        q_is_flat = expected["kept"].sum() == 1 and expected["seeds"].sum() == case.N
        if q_is_flat and case.options.get("criterion") == "increment":
            return
        result = Refiner(**case.options, keep_scores=True)(
            *case.tensors(), prompt_index=case.prompt_index
        )
        np.testing.assert_array_equal(result.kept.numpy(), expected["kept"])
        np.testing.assert_array_equal(result.seeds.numpy(), expected["seeds"])
        for name in ("discrepancy", "scores"):
            truth = torch.from_numpy(expected[name])
            assert_same_map(getattr(result, name), truth, RANGE_TOLERANCE)
        assert_same_labels(result, expected["labels"], expected["scores"])

    check()


def test_the_cases_exercise_every_branch():
    seen = set()

    @settings(max_examples=150)
    @given(cases())
    def collect(case):
        logits = reference.resample(case.logits, case.grid)
        options = case.options
        P, assigned = reference.confidence(
            logits, options["logit_scale"], case.prompt_index, options["background"]
        )
        kept, seeds = reference.seeds(
            P, assigned, options["nms"], options["nms_threshold"], options["min_area"]
        )
        winners = {int(c) for c in P.argmax(0)}
        seen.update(
            name
            for name, happened in {
                "class rejected early": len(winners) < len(P),
                "winning class without a seed": kept.sum() < len(winners),
                "area gate": options["min_area"] > 0 and kept.sum() < len(winners),
                "no patch confident": options["nms"] == "absolute"
                and P.max(0).max() < options["nms_threshold"],
                "some patches not seeds": 0 < seeds.sum() < case.N,
                "synonyms": case.prompt_index is not None,
                "background": assigned.any() and not assigned.all(),
                "non-square": case.grid[0] != case.grid[1],
                "resampled": case.logits.shape[1:] != case.grid,
                "fewer pixels than cells": case.image.shape[1] < case.grid[0],
                "heads": case.attention.ndim == 3,
            }.items()
            if happened
        )

    collect()
    assert len(seen) == 11, seen


@each_mode
def test_batch_equals_singles(mode):
    singles = [smooth_case(seed) for seed in range(3)]
    singles[1].logits[:2] -= 20
    refiner = Refiner(**mode, keep_scores=True)
    tensors = [case.tensors() for case in singles]
    batch = refiner(
        torch.stack([t[0] for t in tensors]),
        Attention(torch.stack([t[1].weights for t in tensors]), singles[0].grid),
        torch.stack([t[2] for t in tensors]),
    )
    # The images keep different numbers of classes, so the batch had to pad.
    assert len(set(batch.kept.sum(1).tolist())) > 1
    for b, inputs in enumerate(tensors):
        single = refiner(*inputs)
        assert_same_result(batch[b], single, 1e-5)


@each_mode
def test_results_do_not_depend_on_earlier_calls(mode):
    refiner = Refiner(**mode, keep_scores=True)
    first, second = smooth_case(1).tensors(), smooth_case(2, K=3, grid=(3, 4)).tensors()
    refiner(*first)
    assert_same_result(refiner(*second), Refiner(**mode, keep_scores=True)(*second))


@each_mode
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_inputs(mode, dtype):
    """The same numbers, rounded: the work itself must not be done in half precision."""
    logits, attention, image = smooth_case(3).tensors()
    # Logits that half precision holds exactly, so that a rounded argmax is not what is tested.
    logits = logits.round()
    half = (logits.to(dtype), Attention(attention.weights.to(dtype), attention.grid))
    full = refine(logits, attention, image, RefineConfig(**mode, keep_scores=True))
    result = refine(*half, image.to(dtype), RefineConfig(**mode, keep_scores=True))
    assert result.discrepancy.dtype == result.scores.dtype == torch.float32
    assert_close(result.kept, full.kept)
    if mode.get("criterion") == "increment":  # whole steps: one patch at a bar may move by one
        moved = (result.discrepancy - full.discrepancy)[full.kept].abs() > 0
        assert moved.float().mean() < 0.05
    else:
        assert_same_map(result.discrepancy, full.discrepancy, HALF_TOLERANCE)


def test_float64_inputs_and_uint8_image():
    case = smooth_case(4)
    image = torch.from_numpy(np.round(case.image * 255).astype(np.uint8))
    logits, attention, _ = case.tensors()
    expected = Refiner()(logits, attention, image.float() / 255)
    wide = Attention(attention.weights.double(), attention.grid)
    result = Refiner()(logits.double(), wide, image)
    assert_close(result.labels, expected.labels)
    assert_same_map(result.discrepancy, expected.discrepancy, 1e-5)


def test_shapes_and_dtypes():
    logits, attention, image = smooth_case(5, K=4).tensors()
    config = RefineConfig(keep_scores=True)
    single = refine(logits, attention, image, config)
    batched = Attention(attention.weights[None], attention.grid)
    batch = refine(logits[None], batched, image[None], config)
    for result, lead in ((single, ()), (batch, (1,))):
        assert result.labels.shape == (*lead, 40, 33)
        assert result.labels.dtype == torch.int64
        assert result.discrepancy.shape == (*lead, 4, 6, 7)
        assert result.discrepancy.dtype == torch.float32
        assert result.kept.shape == (*lead, 4)
        assert result.seeds.shape == (*lead, 4, 6, 7)
        assert result.kept.dtype == result.seeds.dtype == torch.bool
        assert result.scores.shape == (*lead, 4, 40, 33)
    assert refine(logits, attention, image, RefineConfig()).scores is None


def test_labels_are_the_argmax_of_the_scores_over_kept_classes():
    case = smooth_case(6)
    case.logits[2] -= 20
    inputs = case.tensors()
    result = Refiner("optimal_path", keep_scores=True)(*inputs)
    assert_close(result.scores.argmax(0), result.labels)
    assert not result.kept.all()
    assert (result.scores[~result.kept] == -torch.inf).all()
    assert (result.discrepancy[~result.kept] == -torch.inf).all()
    assert not result.seeds[~result.kept].any()
    assert_close(Refiner("optimal_path")(*inputs).labels, result.labels)


def test_heads_are_averaged():
    case = smooth_case(7, heads=4)
    logits, _, image = case.tensors()
    heads = torch.from_numpy(case.attention).float()
    grid_logits = logits[None]
    by_heads = Refiner()(grid_logits, heads[None], image[None])
    by_mean = Refiner()(grid_logits, heads.mean(0)[None], image[None])
    assert_close(by_heads.discrepancy, by_mean.discrepancy)


@pytest.mark.parametrize("form", [False, True])
@each_mode
def test_factors_equal_the_reference(mode, form, monkeypatch):
    """Queries and keys, multiplied out ten rows at a time, against the map written out."""
    monkeypatch.setattr(blocks_module, "CPU_BLOCK", 10 * 42)
    rng = np.random.default_rng(16)
    case = smooth_case(16)
    q, k = rng.normal(size=(2, 3, 42, 8))
    scores = np.exp(np.einsum("aid,ajd->aij", q, k) * 0.5)
    heads = scores / scores.sum(-1, keepdims=True)
    expected = reference.refine(case.logits, heads, case.image, case.grid, **mode)
    logits, _, image = case.tensors()
    factors = [torch.from_numpy(x).float() for x in (q, k)]
    attention = Attention.from_factors(*factors, 0.5, case.grid, form=form)
    result = Refiner(**mode, keep_scores=True)(logits, attention, image)
    np.testing.assert_array_equal(result.kept.numpy(), expected["kept"])
    truth = torch.from_numpy(expected["discrepancy"])
    assert_same_map(result.discrepancy, truth, RANGE_TOLERANCE)
    assert_same_labels(result, expected["labels"], expected["scores"])


@pytest.mark.parametrize("steps", [0, 1])
def test_kl_reads_the_attention_only_to_propagate_before(steps, monkeypatch):
    case = smooth_case(17)
    logits, _, image = case.tensors()
    factors = torch.rand(2, 1, len(case.attention), 4)
    read, blocks = [], Attention.blocks
    monkeypatch.setattr(Attention, "blocks", lambda held: read.append(1) or blocks(held))
    attention = Attention.from_factors(*factors, 0.5, case.grid)
    Refiner("kl", pre_propagation=steps)(logits, attention, image)
    assert bool(read) == bool(steps)


WAYS = ["blocks of ten rows", "without a second map", "without numba", "tested seldom"]


@each_mode
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_multiply_equals_the_reference(mode, way, monkeypatch):
    case = smooth_case(18)
    logits, attention, image = case.tensors()
    monkeypatch.setattr(blocks_module, "CPU_BLOCK", 10 * 42)
    monkeypatch.setattr(blocks_module, "MIN_ROWS", 1)
    if way == "without a second map":
        attention = Attention(attention.weights, case.grid, block_divisor=5)
    elif way == "without numba":
        monkeypatch.setattr(compiled, "load_loops", lambda module: None)
    elif way == "tested seldom":
        monkeypatch.setattr(Attention, "test_every", 7)
    expected = reference.refine(case.logits, case.attention, case.image, case.grid, **mode)
    result = Refiner(**mode, keep_scores=True)(logits, attention, image)
    truth = torch.from_numpy(expected["discrepancy"])
    assert_same_map(result.discrepancy, truth, RANGE_TOLERANCE)
    assert_same_labels(result, expected["labels"], expected["scores"])


def out_of_memory_unless(divisor, tried):
    """A `refine_confidence` that runs out of memory, as on a CPU, until blocks are small enough."""
    whole = refiner_module.refine_confidence

    def refine(given, attention, guide, config):
        tried.append(attention.block_divisor)
        if attention.block_divisor < divisor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 64 bytes")
        return whole(given, attention, guide, config)

    return refine


def test_out_of_memory_tries_smaller_blocks(monkeypatch):
    inputs = smooth_case(19).tensors()
    expected = Refiner()(*inputs)
    tried = []
    monkeypatch.setattr(refiner_module, "refine_confidence", out_of_memory_unless(8, tried))
    result = Refiner()(*inputs)
    assert tried == [1, 8]
    assert_close(result.labels, expected.labels)
    assert_close(result.discrepancy, expected.discrepancy)


def test_out_of_memory_says_what_to_do(monkeypatch):
    tried = []
    monkeypatch.setattr(refiner_module, "refine_confidence", out_of_memory_unless(10**6, tried))
    message = (
        r"out of memory for B=1 images of N=42 .*refine fewer .*`Attention.from_factors.*64 by"
    )
    with pytest.raises(torch.OutOfMemoryError, match=message):
        Refiner()(*smooth_case(19).tensors())
    assert tried == [1, 8, 64]


def test_other_errors_are_not_taken_for_it(monkeypatch):
    def broken(*args):
        raise RuntimeError("something else")

    monkeypatch.setattr(refiner_module, "refine_confidence", broken)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        Refiner()(*smooth_case(19).tensors())


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_a_second_map_that_does_not_fit_is_done_without(forks):
    """With memory for the map but not for another, for real."""
    code = """
import resource, torch
from ovss_refine import Attention, Refiner
from ovss_refine import refiner as module

N = 3600
attention = Attention(torch.full((N, N), 1 / N) * (1 + torch.eye(N)) / (1 + 1 / N), (60, 60))
logits, image = torch.randn(2, 60, 60), torch.rand(3, 60, 60)
whole, tried = module.refine_confidence, []
def note(given, attention, *rest):
    tried.append(attention.block_divisor)
    return whole(given, attention, *rest)
module.refine_confidence = note
refiner = Refiner(mode="maximum_velocity")
# In small blocks, so that no freed map is left in the heap for the next call to use.
sparing = Attention(attention.weights, (60, 60), block_divisor=8)
expected = refiner(logits, sparing, image).labels
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (30 << 20),) * 2)  # a map is 52 MB
assert refiner(logits, attention, image).labels.equal(expected)
print(tried)
"""
    assert forks.printed(code) == "[8, 1, 8]"


def test_grid_of_a_bare_tensor():
    rng = np.random.default_rng(8)
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))

    def grid_for(logits_size, N):
        logits = torch.from_numpy(rng.normal(size=(3, *logits_size)) * 4)
        attn = torch.from_numpy(random_attention(rng, N))
        return tuple(Refiner()(logits, attn, image).discrepancy.shape[1:])

    assert grid_for((2, 8), 16) == (2, 8)  # the logits' own
    assert grid_for((2, 3), 16) == (4, 4)  # else square, to within a patch
    with pytest.raises(ValueError, match=r"N = h \* w = 15 tokens .* got N=12. Pass `Attention"):
        grid_for((3, 5), 12)
    # 18 x 32 patches are a square number, of an image that is nowhere near square.
    image = torch.rand(3, 36, 64)
    with pytest.raises(ValueError, match=r"or a square number for a square image .*; got N=576"):
        grid_for((9, 16), 576)


@pytest.mark.parametrize(
    ("grid", "extra"), [((14, 14), 1), ((14, 16), 1), ((22, 38), 5), ((20, 31), 5), ((6, 8), 1)]
)
def test_class_and_register_tokens_are_not_patches(grid, extra):
    """n x (n + 2) patches and a class token are a square number."""
    N = grid[0] * grid[1]
    attn = torch.from_numpy(random_attention(np.random.default_rng(1), N + extra)).float()
    logits, image = torch.randn(2, *grid), torch.rand(3, 4 * grid[0], 4 * grid[1])
    with pytest.raises(
        ValueError, match=f"got N={N + extra}, like a map with {extra} class"
    ) as said:
        Refiner()(logits, attn, image)
    advice = re.search("`(attn = .*?)`", str(said.value))[1]  # does what it promises
    scope = {"attn": attn}
    exec(advice, scope)
    assert Refiner()(logits, scope["attn"], image).discrepancy.shape[1:] == grid


@pytest.mark.parametrize("default", [torch.float64, torch.float16, torch.bfloat16])
@each_mode
def test_the_default_type_of_torch_changes_nothing(mode, default):
    logits, attn, image = smooth_case().tensors()
    logits, attn = logits.float(), Attention(attn.weights.float(), attn.grid)
    q, k = torch.randn(2, 2, 42, 4, generator=torch.Generator().manual_seed(0))
    factors = Attention.from_factors(q, k, 1.0, attn.grid, form=False)
    refiner = Refiner(**mode, keep_scores=True, min_area=0.05, pre_propagation=1)
    wanted = [refiner(logits, held, image) for held in (attn, factors)]
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = [refiner(logits, held, image) for held in (attn, factors)]
    finally:
        torch.set_default_dtype(before)
    for one, two in zip(found, wanted, strict=True):
        assert one.scores.dtype == one.discrepancy.dtype == torch.float32
        assert_same_result(one, two)


class FixedSource:
    """An attention source that gives what it was made with and remembers what it was asked."""

    def __init__(self, attention):
        self.map, self.seen = attention, None

    def attention(self, images):
        self.seen = images
        return self.map


@pytest.mark.parametrize("batched", [False, True])
def test_a_source_stands_for_its_attention(batched):
    logits, attn, image = smooth_case().tensors()
    image = (image * 255).to(torch.uint8)
    source = FixedSource(Attention(attn.weights[None], attn.grid))
    expected = Refiner()(logits, attn, image)
    if batched:
        result = Refiner()(logits[None], source, image[None])
    else:
        result = Refiner()(logits, source, image)
    assert_close(result.labels, expected.labels[None] if batched else expected.labels)
    assert_close(result.discrepancy.reshape_as(expected.discrepancy), expected.discrepancy)
    assert_close(source.seen, image[None].float() / 255)  # always batched, always in [0, 1]


def test_a_source_of_another_batch_is_refused():
    logits, attn, image = smooth_case().tensors()
    source = FixedSource(Attention(attn.weights[None].repeat(2, 1, 1), attn.grid))
    message = r"`attn.attention\(image\)` must have shape \[B=1, N, N\]; got \[2, 42, 42\]"
    with pytest.raises(ValueError, match=message):
        Refiner()(logits, source, image)


def test_logits_bring_their_scale_and_prompts():
    logits, attn, image = smooth_case().tensors()
    index = torch.tensor([0, 0, 1, 2, 2])
    value = Logits(logits, scale=0.5, prompt_index=index, names=("a", "b", "c"))
    result = Refiner(logit_scale=2.0, mode="kl")(value, attn, image)
    expected = Refiner(mode="kl")(logits, attn, image, prompt_index=index)
    assert_close(result.discrepancy, expected.discrepancy, rtol=0, atol=0)
    with pytest.raises(ValueError, match="`prompt_index` must be None with `Logits`"):
        Refiner()(value, attn, image, prompt_index=index)


def test_prompts_of_one_class_add_up():
    logits, attention, image = smooth_case(9, K=2).tensors()
    # Two equal prompts of probability p / 2 each are one prompt of probability p.
    doubled = torch.stack([logits[0] - np.log(2), logits[0] - np.log(2), logits[1]])
    result = Refiner()(doubled, attention, image, prompt_index=[0, 0, 1])
    assert_same_map(result.discrepancy, Refiner()(logits, attention, image).discrepancy, 1e-4)


def test_permuting_classes_permutes_the_result():
    logits, attention, image = smooth_case(10).tensors()
    order = torch.tensor([3, 1, 4, 0, 2])
    plain = Refiner("fusion")(logits, attention, image)
    permuted = Refiner("fusion")(logits[order], attention, image)
    assert_same_map(permuted.discrepancy, plain.discrepancy[order], 1e-5)
    assert_close(order[permuted.labels], plain.labels)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from(MODES))
def test_permuting_patches_permutes_the_discrepancy(seed, mode):
    case = smooth_case(seed)
    logits, attention, image = case.tensors()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(case.N))
    moved = Attention(attention.weights[order][:, order], attention.grid)
    moved_logits = logits.flatten(1)[:, order].view_as(logits)
    plain = Refiner(**mode)(logits, attention, image).discrepancy.flatten(1)
    permuted = Refiner(**mode)(moved_logits, moved, image).discrepancy.flatten(1)
    if mode.get("criterion") == "increment":
        assert ((permuted - plain[:, order]).nan_to_num() != 0).float().mean() < 0.05
    else:
        assert_same_map(permuted, plain[:, order], RANGE_TOLERANCE)


def test_background_class_without_a_prompt():
    logits, attention, image = smooth_case(11, K=2).tensors()
    result = Refiner(background=(0, 0.9))(logits, attention, image, prompt_index=[1, 2])
    assert result.kept.shape == (3,)
    unsure = logits.softmax(0).amax(0) < 0.9
    assert_close(result.seeds[0], unsure)


def test_background_patches_do_not_raise_the_relative_bar():
    """A patch set to the background by rule has confidence 1, but nobody measured it."""
    logits = torch.zeros(5, 1, 4)
    logits[1, 0, 1:] = torch.tensor([0.9, 1.0, 1.1])  # confidences 0.38 to 0.43
    attn = torch.full((4, 4), 0.25)
    refiner = Refiner.paper(background=(0, 0.3))
    result = refiner(logits, attn, torch.rand(3, 4, 8), prompt_index=range(5))
    assert result.seeds[0].flatten().tolist() == [True, False, False, False]
    assert result.seeds[1].flatten().tolist() == [False, True, True, True]


def test_inputs_are_not_changed_and_need_no_gradient():
    logits, attention, image = smooth_case(12).tensors()
    logits.requires_grad_()
    before = [x.detach().clone() for x in (logits, attention.weights, image)]
    for mode in MODES:
        result = Refiner(**mode, keep_scores=True)(logits, attention, image)
        assert not result.discrepancy.requires_grad
        assert not result.scores.requires_grad
    for x, old in zip((logits, attention.weights, image), before, strict=True):
        assert_close(x.detach(), old, rtol=0, atol=0)


def test_autocast_changes_nothing():
    inputs = smooth_case(13).tensors()
    expected = Refiner("fusion", keep_scores=True)(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = Refiner("fusion", keep_scores=True)(*inputs)
    assert_same_result(result, expected)


@pytest.mark.cuda
@each_mode
def test_cuda_equals_cpu(mode):
    logits, attention, image = smooth_case(14).tensors()
    refiner = Refiner(**mode, keep_scores=True)
    on_gpu = refiner(
        logits.cuda(), Attention(attention.weights.cuda(), attention.grid), image.cuda()
    )
    assert on_gpu.labels.device.type == "cuda"
    assert_same_map(on_gpu.scores.cpu(), refiner(logits, attention, image).scores, RANGE_TOLERANCE)


@pytest.mark.skipif(TORCH < (2, 12), reason="torch.compile fails on the loops before torch 2.12")
@pytest.mark.parametrize("mode", ["optimal_path", "maximum_velocity"])
def test_compiled_equals_eager(mode):
    """Traced by torch.compile and run: what a compiler makes of it later is the compiler's."""
    inputs = smooth_case(20).tensors()
    refiner = Refiner(mode=mode)
    result, expected = torch.compile(refiner, backend="eager")(*inputs), refiner(*inputs)
    assert_close(result.labels, expected.labels)
    assert_same_map(result.discrepancy, expected.discrepancy, RANGE_TOLERANCE)


def test_repr_shows_the_options():
    assert repr(Refiner("kl", tau=0.5)).startswith("Refiner(mode='kl', logit_scale=1.0")


class TestBadInput:
    """Every mistake gets a sentence that names the argument and shows what came."""

    def refuse(self, match, *, error=ValueError, prompt_index=None, config=None, **changed):
        logits, attention, image = smooth_case(15).tensors()
        inputs = {"logits": logits, "attn": attention.weights, "image": image} | changed
        with pytest.raises(error, match=match):
            refine(**inputs, config=config or RefineConfig(), prompt_index=prompt_index)

    def test_ranks_and_batches(self):
        logits, attention, image = smooth_case(15).tensors()
        attn = attention.weights
        self.refuse(r"`logits` must have shape \[B, K, h, w\]; got \[6, 7\]", logits=logits[0])
        self.refuse(r"`attn` must have shape \[N, N\]; got \[1, 42, 42\]", attn=attn[None])
        self.refuse(r"`attn` must have shape \[B, N, N\]; got \[42\]", attn=attn[0])
        self.refuse(
            r"`attn` must have shape \[B, N, N\]; got \[1, 42, 41\]", attn=attn[None, :, 1:]
        )
        self.refuse(
            r"must be a tensor \[3, H, W\]; got \[40, 33, 3\]. Pass `image.permute\(2, 0, 1\)`",
            image=image.permute(1, 2, 0),
        )
        self.refuse(r"`image` must have shape \[C, H, W\]; got \[1, 3, 40", image=image[None])
        two = {"logits": torch.stack([logits] * 2), "image": torch.stack([image] * 2)}
        self.refuse(
            r"`attn` must have shape \[B=2, N, N\]; got \[3, 42, 42\]",
            **two,
            attn=attn.expand(3, -1, -1),
        )
        self.refuse(
            r"`image` must have shape \[B=2, C, H, W\]; got \[1, 3",
            logits=two["logits"],
            attn=attn.expand(2, -1, -1),
            image=image[None],
        )

    def test_zero_sized(self):
        self.refuse(r"none of them 0; got \[0, 6, 7\]", logits=torch.zeros(0, 6, 7))
        self.refuse(
            r"`image` must be a tensor \[3, H, W\]; got \[3, 0, 5\]", image=torch.zeros(3, 0, 5)
        )
        self.refuse(r"none of them 0; got \[0, 0\]", attn=torch.zeros(0, 0))

    def test_kinds(self):
        self.refuse("`logits` must be a torch.Tensor; got list", error=TypeError, logits=[1.0])
        self.refuse("`attn` must be a torch.Tensor; got list", error=TypeError, attn=[0.5])
        self.refuse("`image` must be a path, .*; got NoneType", error=TypeError, image=None)
        self.refuse(
            "`logits` must be a floating-point tensor; got torch.int64",
            error=TypeError,
            logits=torch.zeros(5, 6, 7, dtype=torch.int64),
        )
        self.refuse(
            "`attn` must be a floating-point tensor; got torch.int64",
            error=TypeError,
            attn=torch.eye(42, dtype=torch.int64),
        )
        self.refuse(
            "`image` must be uint8 or floating-point; got torch.int32",
            error=TypeError,
            image=torch.zeros(3, 40, 33, dtype=torch.int32),
        )

    def test_attention_values(self):
        attn = smooth_case(15).tensors()[1].weights
        self.refuse(r"got sums from 2 to 2. Divide by .*, or take a softmax .* raw", attn=attn * 2)
        # Probabilities that lost some tokens: a second softmax would flatten them.
        self.refuse(
            r"from 0.5 to 0.5. Divide by `weights.sum\(-1, keepdim=True\)`; row", attn=attn / 2
        )
        self.refuse("must be >= 0; got -.*. Take a softmax", attn=attn - 0.5)
        self.refuse(r"sum to one within 0.01; got sums from 0.98", attn=attn * 0.98)
        negative = attn.clone()
        negative[0, 0] -= 1
        negative[0, 1] += 1
        self.refuse(r"`weights` must be >= 0; got -", attn=negative)
        for bad in (torch.nan, torch.inf, -torch.inf):
            broken = attn.clone()
            broken[3, 4] = bad
            self.refuse("`weights` must be finite; got NaN or infinite", attn=broken)

    def test_rows_may_be_off_by_rounding(self):
        logits, attention, image = smooth_case(15).tensors()
        Refiner()(logits, attention.weights * 1.009, image)

    def test_logits_values(self):
        logits = smooth_case(15).tensors()[0]
        for bad in (torch.nan, torch.inf):
            broken = logits.clone()
            broken[0, 0, 0] = bad
            self.refuse("`logits` must be finite; got 1 NaN or infinite of 210", logits=broken)

    def test_image_values(self):
        image = smooth_case(15).tensors()[2]
        self.refuse(r"in \[0, 1\] .* to 255. .* divide by 255 first", image=(image * 255).round())
        self.refuse("undo the model's normalisation first", image=image - 0.5)
        self.refuse("`image` must be finite", image=image / 0)
        self.refuse("like a float image cast to uint8", image=image.round().to(torch.uint8))

    def test_black_uint8_image_is_fine(self):
        logits, attention, _ = smooth_case(15).tensors()
        Refiner()(logits, attention, torch.zeros(3, 8, 8, dtype=torch.uint8))

    def test_prompt_index(self):
        self.refuse(r"`prompt_index` must have shape \[K=5\]; got \[2\]", prompt_index=[0, 1])
        self.refuse("`prompt_index` must be >= 0; got -1", prompt_index=[0, 1, 2, 3, -1])
        self.refuse(
            "`prompt_index` must hold whole numbers; got torch.float32",
            error=TypeError,
            prompt_index=torch.zeros(5),
        )

    def test_background_class_must_exist(self):
        match = "`background` must name one of the M=5 classes; got 5"
        self.refuse(match, config=RefineConfig(background=(5, 0.5)))
        match = "`background` must name one of the M=2 classes; got 2"
        config = RefineConfig(background=(2, 0.5))
        self.refuse(match, config=config, prompt_index=[0, 0, 0, 1, 1])

    def test_unknown_option(self):
        with pytest.raises(TypeError, match="taus"):
            Refiner(taus=0.3)


class TestCosineWarning:
    """Cosines that nobody scaled make every class equally probable."""

    cosines = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.3
    attn = torch.full((16, 16), 1 / 16)
    image = torch.rand(3, 8, 8)

    def test_it_warns_at_the_callers_line(self):
        for call in (
            lambda: Refiner()(self.cosines, self.attn, self.image),
            lambda: refine(self.cosines, self.attn, self.image, RefineConfig()),
        ):
            with pytest.warns(UserWarning, match="set `logit_scale`, for CLIP to") as caught:
                call()
            assert caught[0].filename == __file__

    def test_scaled_or_confident_logits_do_not_warn(self):
        Refiner(logit_scale=50.0)(self.cosines, self.attn, self.image)
        Refiner()(self.cosines * 40, self.attn, self.image)


def test_a_map_that_is_flat_up_to_rounding_has_no_range():
    noise = torch.rand(1, 2, 50, generator=torch.Generator().manual_seed(0))
    flat = 0.7 * (1 + 4 * torch.finfo(torch.float32).eps * noise)
    assert flat.unique().numel() > 1
    assert torch.equal(steps_module._min_max(flat), torch.zeros_like(flat))
    hilly = steps_module._min_max(0.7 * (1 + 1e-4 * noise))
    assert (hilly.min(), hilly.max()) == (0, 1)


class TestSolvers:
    """What a result says of the solvers: data, not a warning."""

    def test_steps_and_convergence(self):
        case = smooth_case()
        found = Refiner("fusion", tau=0.9)(*case.tensors())
        assert set(found.steps) == {"optimal_path", "maximum_velocity"}
        assert 1 < found.steps["optimal_path"] < 50
        assert found.converged is True
        assert Refiner("kl")(*case.tensors()).steps == {"kl": 0}
        assert Refiner("anchored", propagation_steps=2)(*case.tensors()).steps == {"anchored": 2}

    @pytest.mark.parametrize("mode", ["optimal_path", "maximum_velocity"])
    def test_too_few_steps_are_told(self, mode):
        case = smooth_case()
        few = Refiner(mode, sinkhorn_iterations=1, max_steps=1, tau=0.9)(*case.tensors())
        assert few.steps == {mode: 1}
        assert few.converged is False
        # One solver of two is not enough.
        half = Refiner("fusion", max_steps=1, tau=0.9)(*case.tensors())
        assert half.steps["optimal_path"] < 50
        assert half.converged is False

    def test_they_belong_to_every_image_of_a_batch(self):
        logits, attn, image = smooth_case().tensors()
        found = Refiner()(logits[None], attn.batched(), image[None])
        assert found[0].steps == found.steps
        assert found[0].converged == found.converged

    def test_a_result_is_shown_on_one_line(self):
        logits, attn, image = smooth_case().tensors()
        text = repr(Refiner(logit_scale=2)(logits, attn, image))
        assert re.fullmatch(
            r"RefineResult\(labels=\[40, 33\], discrepancy=\[5, 6, 7\], kept=\d of 5, "
            r"scores=False, steps=\{'maximum_velocity': \d+\}, converged=\w+\)",
            text,
        )


def test_arrays_are_taken_as_tensors_are():
    logits, attn, image = smooth_case().tensors()
    wanted = Refiner()(logits, attn, image, prompt_index=[0, 0, 1, 2, 3])
    index = np.array([0, 0, 1, 2, 3])
    found = Refiner()(logits.numpy(), attn.weights.numpy(), image, prompt_index=index)
    assert torch.equal(found.labels, wanted.labels)
    assert torch.equal(
        refine(Logits(logits.numpy()), attn, image).labels, Refiner()(logits, attn, image).labels
    )


@pytest.mark.parametrize("form", ["tensor", "array", "float array", "PIL", "path"])
@pytest.mark.parametrize("several", [False, True])
def test_every_form_of_an_image_gives_the_same(form, several, tmp_path):
    logits, attn, image = smooth_case().tensors()
    pixels = (image * 255).byte()  # [3, H, W]
    array = pixels.permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "x.png")
    one = {
        "tensor": pixels,
        "array": array,
        "float array": array.astype(np.float64) / 255,
        "PIL": Image.fromarray(array),
        "path": tmp_path / "x.png",
    }[form]
    wanted = Refiner(keep_scores=True)(logits, attn, pixels)
    if several:
        batch = Attention.stack([attn, attn])
        found = Refiner(keep_scores=True)(torch.stack([logits] * 2), batch, [one, one])[1]
    else:
        found = Refiner(keep_scores=True)(logits, attn, one)
    assert_same_result(found, wanted, 1e-5)


def test_images_of_two_sizes_are_refused():
    logits, attn, image = smooth_case().tensors()
    batch = Attention.stack([attn, attn])
    with pytest.raises(ValueError, match="`image` must be images of one size H x W; got 40 x 33, "):
        Refiner()(torch.stack([logits] * 2), batch, [image, image[:, 1:]])


@each_mode
def test_attention_sinks(mode):
    """Maps of every mode stay finite where all patches attend to the first."""
    logits = torch.from_numpy(np.random.default_rng(5).normal(size=(3, 20, 20))) * 4
    attn = torch.zeros(400, 400)
    attn[:, 0] = 1
    options = {**mode, "pre_propagation": 1, "vote": 0}  # all patches tie, up to rounding
    result = Refiner(**options)(logits, attn, torch.full((3, 40, 40), 0.5))
    truth = reference.refine(
        logits.numpy(), attn.double().numpy(), np.full((3, 40, 40), 0.5), (20, 20), **options
    )
    assert_same_map(result.discrepancy, torch.from_numpy(truth["discrepancy"]), RANGE_TOLERANCE)
