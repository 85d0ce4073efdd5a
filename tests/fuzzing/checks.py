"""What must hold of every case, and of every hostile call.

Axes: B images, K prompts, M classes, N patches, (H, W) pixels.
"""

import warnings
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from conftest import RANGE_TOLERANCE
from fuzzing.cases import draw
from fuzzing.compare import affordable, by_reference, difference, explained, map_difference
from fuzzing.hostile import ATTACKS
from fuzzing.probe import GRAMMAR, HangError, Probe, shown
from ovss_refine import (
    Attention,
    Logits,
    RefineConfig,
    Refiner,
    RefineResult,
    joint_bilateral_upsample,
    refine,
)

# Of each case, beside what is checked always.
DRAWN_CHECKS = 2
HOSTILE_CALLS = 5


def check(seed):
    """Make the case of a seed and try everything on it; return a `Report`."""
    case, probe, rng = draw(seed), Probe(seed), np.random.default_rng([seed, 1])
    probe.report.traits.update(case.traits)
    attention = probe.valid(Attention, case.weights, case.grid)
    result = None
    if attention is not None:
        result = probe.valid(run, case, case.inputs())
    if result is not None:
        check_result(probe, case, result)
        drawn = rng.permutation(len(DRAWN))[:DRAWN_CHECKS]
        for one in (*ALWAYS, *(DRAWN[i] for i in drawn)):
            one(probe, case, result, rng)
    for _ in range(HOSTILE_CALLS):
        attack = ATTACKS[rng.integers(len(ATTACKS))]
        judge(probe, case, attack(rng, case))
    return probe.report


def run(case, inputs, **options):
    """Refine a case, with scores."""
    return Refiner(**{"keep_scores": True, **case.options, **options})(**inputs)


def plain_run(case):
    """Refine a case of one image; None where that fails, as the reference does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return run(case, case.inputs(), **_in_range(case.options))[0]
        except (TypeError, ValueError):
            return None


def _in_range(options):
    """The background option with a threshold that rounding moved above one put back to it."""
    background = options["background"]
    return {"background": background and (background[0], min(1.0, background[1]))}


def check_result(probe, case, result):
    """Check that a result is what `RefineResult` promises: finite, and of kept classes only."""
    B, M, (H, W) = case.B, case.M, case.image.shape[2:]
    kept, shapes = result.kept, (result.labels.shape, result.discrepancy.shape, result.scores.shape)
    right = ((B, H, W), (B, M, *case.grid), (B, M, H, W))
    if not probe.expect("shapes", shapes == right, lambda: f"shapes {shapes}, not {right}"):
        return
    for name in ("discrepancy", "scores"):
        values = getattr(result, name)
        probe.expect(
            "finite",
            bool(values[kept].isfinite().all() and (values[~kept] == -torch.inf).all()),
            f"{name} not finite for kept classes, or not -inf for the others",
        )
        probe.expect("types", values.dtype == torch.float32, f"{name} of {values.dtype}")
    in_range = bool(((result.labels >= 0) & (result.labels < M)).all())
    label_kept = in_range and bool(kept.gather(1, result.labels.flatten(1)).all())
    probe.expect("labels kept", label_kept, "a label that is not among the kept classes")
    probe.expect("classes kept", bool(kept.any(dim=1).all()), "no class kept")
    seeded = result.seeds.flatten(2).any(dim=2)
    probe.expect("seeds", torch.equal(seeded, kept), "kept classes are not those with seeds")
    one_each = bool((result.seeds.sum(dim=1) <= 1).all())
    probe.expect("seeds", one_each, "a patch is a seed of two classes")
    probe.expect("labels best", difference(result, result) < 1e-5, "a label not of the best score")


def compare(probe, kind, case, actual, expected, rng):
    """Compare two results of one image, unless rounding the inputs explains the difference."""
    if actual is None:
        return
    gap = difference(actual, expected)
    if gap > RANGE_TOLERANCE:
        if not affordable(case):  # what is kept, and its maps, do not depend on the image
            case = replace(case, image=case.image[..., :4, :4])
        if explained(case, by_reference if affordable(case) else plain_run, gap, rng):
            probe.report.explained[kind] += 1
            gap = 0.0
    probe.expect(kind, gap <= RANGE_TOLERANCE, lambda: f"differs by {gap:.2g} of the range")


def equals_reference(probe, case, result, rng):
    """One image equals the float64 reference."""
    b = int(rng.integers(case.B))
    single = case.single(b)
    if not affordable(single):
        return
    expected = by_reference(single)
    if expected is not None:
        compare(probe, "equals the reference", single, result[b], expected, rng)


def batch_equals_singles(probe, case, result, rng):
    """Every image alone, without the batch axis, gives what it gave in the batch."""
    for b in range(case.B):
        single = case.single(b)
        inputs = single.inputs()
        inputs.update(logits=single.logits[0], attn=single.attention[0], image=single.image[0])
        alone = probe.valid(run, single, inputs)
        compare(probe, "batch equals singles", single, alone, result[b], rng)


def factors_equal_dense(probe, case, result, rng):
    """Attention held as factors gives what it gives as a matrix."""
    if case.factors is None:
        return
    other = probe.valid(run, case, {**case.inputs(), "attn": case.held_as_factors()})
    for b in range(case.B if other is not None else 0):
        compare(probe, "factors equal dense", case.single(b), other[b], result[b], rng)


def smaller_blocks_are_equal(probe, case, result, rng):
    """Attention in smaller blocks, without a second map, gives the same."""
    attention = case.attention.in_blocks(int(rng.choice([8, 64, 1000])))
    other = probe.valid(run, case, {**case.inputs(), "attn": attention})
    for b in range(case.B if other is not None else 0):
        compare(probe, "blocks equal whole", case.single(b), other[b], result[b], rng)


def permuted_classes_are_equal(probe, case, result, rng):
    """The classes in another order give the same, in that order."""
    M, K = case.M, case.logits.shape[1]
    index = torch.arange(K) if case.prompt_index is None else torch.tensor(case.prompt_index)
    if M == 1 or len(index.unique()) < M:
        return
    columns = case.weights.float().flatten(1, -2).sum(dim=1)
    if case.options.get("pre_propagation") and not bool(columns.all()):
        return  # a patch that nobody attends to: all classes tie at 0, and the first one wins it
    new = torch.from_numpy(rng.permutation(M))  # [M] of each old class
    options = {}
    if case.options["background"]:
        background, threshold = case.options["background"]
        options["background"] = (int(new[background]), threshold)
    inputs = {**case.inputs(), "prompt_index": new[index]}
    other = probe.valid(run, case, inputs, **options)
    for b in range(case.B if other is not None else 0):
        one = other[b]
        back = RefineResult(
            torch.argsort(new)[one.labels],
            *(getattr(one, name)[new] for name in ("discrepancy", "kept", "seeds", "scores")),
        )
        compare(probe, "classes permuted", case.single(b), back, result[b], rng)


def forms_are_equal(probe, case, result, rng):
    """Other forms of the same inputs give the same."""
    inputs, options = case.inputs(), {}
    if case.logits.dtype != torch.bfloat16 and rng.random() < 0.5:
        inputs["logits"] = case.logits.numpy()
    elif rng.random() < 0.5:
        scale = case.options.get("logit_scale", 1.0)
        index = inputs.pop("prompt_index")
        inputs["logits"], options = Logits(case.logits, scale, index), {"logit_scale": 1.0}
    else:
        inputs["logits"] = case.logits.mT.contiguous().mT
    if case.logits.shape[2:] == case.grid:
        inputs["attn"] = case.weights
        if case.weights.dtype != torch.bfloat16 and rng.random() < 0.5:
            inputs["attn"] = case.weights.numpy()[..., ::-1, :][..., ::-1, :]
    if case.image.dtype != torch.bfloat16 and rng.random() < 0.5:
        inputs["image"] = case.image.permute(0, 2, 3, 1).numpy()
    else:
        inputs["image"] = list(case.image)
    if inputs.get("prompt_index") is not None:
        kind = str(rng.choice(["i2", "i4", "i8", "u1" if case.M <= 256 else "u2"]))
        inputs["prompt_index"] = np.array(case.prompt_index, dtype=kind)
    other = probe.valid(run, case, inputs, **options)
    for b in range(case.B if other is not None else 0):
        compare(probe, "forms equal", case.single(b), other[b], result[b], rng)


def function_is_equal(probe, case, result, rng):
    """The function without scores gives the very same labels as the object with them."""
    inputs = case.inputs()
    index = inputs.pop("prompt_index")
    other = probe.valid(refine, *inputs.values(), RefineConfig(**case.options), prompt_index=index)
    if other is not None:
        same = other.scores is None and torch.equal(other.labels, result.labels)
        probe.expect("scores left out", same, "other labels without scores")


def scores_are_upsampled(probe, case, result, rng):
    """The public upsampling makes the scores of the discrepancy."""
    low = result.discrepancy.where(result.kept[:, :, None, None], 0.0)
    names = ("sigma_spatial", "sigma_range", "radius")
    options = {name: case.options[name] for name in names if name in case.options}
    scores = probe.valid(joint_bilateral_upsample, low, case.image, **options)
    if scores is not None:
        gap = map_difference(scores[result.kept], result.scores[result.kept])
        probe.expect("scores upsampled", gap < 1e-5, lambda: f"differ by {gap:.2g} of the range")


@contextmanager
def _set(setter, value, before):
    setter(value)
    try:
        yield
    finally:
        setter(before)


# By name: settings of torch that a program may have, which change no result.
SETTINGS = {
    "default float64": lambda: _set(torch.set_default_dtype, torch.float64, torch.float32),
    "default float16": lambda: _set(torch.set_default_dtype, torch.float16, torch.float32),
    "default bfloat16": lambda: _set(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "default device": lambda: torch.device("meta"),  # one that gives no values back
    "deterministic": lambda: _set(torch.set_deterministic_debug_mode, "error", "default"),
}


def settings_change_nothing(probe, case, result, rng):
    """A setting of the program, or gradients wanted, changes no result."""
    inputs = case.inputs()
    if case.factors is not None:
        inputs["attn"] = case.held_as_factors()
    name = str(rng.choice([*SETTINGS, "gradients"]))
    if name == "gradients":
        inputs["logits"] = case.logits.clone().requires_grad_()
        other = probe.valid(run, case, inputs)
    else:
        with SETTINGS[name]():
            other = probe.valid(run, case, inputs)
    if other is not None:
        plain = not other.discrepancy.requires_grad and other.discrepancy.dtype == torch.float32
        probe.expect("types", plain, f"a result with gradients, or not float32, under {name}")
    for b in range(case.B if other is not None else 0):
        compare(probe, "settings", case.single(b), other[b], result[b], rng)


ALWAYS = (equals_reference, batch_equals_singles, factors_equal_dense)
DRAWN = (
    smaller_blocks_are_equal,
    permuted_classes_are_equal,
    forms_are_equal,
    function_is_equal,
    scores_are_upsampled,
    settings_change_nothing,
)


def judge(probe, case, attack):
    """Make a hostile call; check that it is refused as the library refuses, or gives a result."""
    result, error = probe.call(attack.function, *attack.args, **(attack.kwargs or {}))
    if error is None:
        if probe.expect("hostile refused", not attack.must_raise, f"{attack.what}: accepted"):
            finite = finite_result(result)
            probe.expect("hostile finite", finite, f"{attack.what}: a result that is not finite")
        return
    missing_file = isinstance(error, FileNotFoundError) and attack.what.startswith("image")
    refused = isinstance(error, (TypeError, ValueError, FileNotFoundError if missing_file else ()))
    kind = "hostile ended" if isinstance(error, HangError) else "hostile refused"
    text = f"{attack.what}: {shown(error)}"
    if not probe.expect(kind, refused, text):
        return
    if not probe.expect("message grammar", GRAMMAR.search(str(error)), text):
        return
    named = not attack.names or any(f"`{name}" in str(error) for name in attack.names)
    probe.expect("message names", named, f"{text} (names none of {attack.names})")


def finite_result(result):
    """Whether what a call returned is finite: a refinement, an attention or an upsampled map."""
    if isinstance(result, RefineResult):
        values = result.discrepancy[result.kept]
        labels = result.labels
        kept = result.kept if labels.ndim == 3 else result.kept[None]
        labels = labels if labels.ndim == 3 else labels[None]
        right = bool(((labels >= 0) & (labels < kept.shape[1])).all())
        return bool(
            values.isfinite().all()
            and right
            and kept.gather(1, labels.flatten(1)).all()
            and not result.scores.isnan().any()
        )
    if isinstance(result, Attention):
        return bool(result.weights.isfinite().all())
    return not isinstance(result, torch.Tensor) or bool(result.isfinite().all())
