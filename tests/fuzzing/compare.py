"""How far two results are apart, and whether rounding explains it.

Axes: M classes, N patches, (gh, gw) grid, (H, W) pixels.
"""

from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
import torch

import reference
from ovss_refine import RefineResult

# How far rounding may move a number, relative to its size: a few units of float32.
ROUNDING = 3e-7
# Sums of rounded numbers move further than this.
HEADROOM = 10
# A tie goes either way: a handful of trials could miss the one that a result took.
TRIALS = 16
# How far rounding may move a number too small for float32's full precision: steps between those.
SMALLEST = 2.0**-149
# Operations of the reference that a case may take, half a microsecond each.
AFFORDABLE = 150_000


def map_difference(actual, expected):
    """Largest difference where both are finite, as a share of the range of `expected`.

    Infinite where they are not finite in the same places.
    """
    if not torch.equal(actual.isfinite(), expected.isfinite()):
        return float("inf")
    actual, expected = (x[expected.isfinite()].double() for x in (actual, expected))
    span = float(expected.max() - expected.min())
    # A map that is flat up to rounding has no range to speak of, and no float32 number made
    # from probabilities of size one is known to better than 1e-7.
    scale = max(span, 0.1 * float(expected.abs().max()), 1e-3)
    return float((actual - expected).abs().max()) / scale


def regret(labels, scores):
    """How much less the scores of `labels` are than the best, as a share of the scores' range."""
    finite = scores[scores.isfinite()].double()
    scale = max(float(finite.max() - finite.min()), 0.1 * float(finite.abs().max()), 1e-3)
    chosen = scores.gather(-3, labels.unsqueeze(-3)).squeeze(-3)
    return float((scores.amax(dim=-3) - chosen).max()) / scale


def difference(actual, expected):
    """How far `actual` is from `expected`, both with scores; infinite where other classes are kept.

    Labels may differ where the scores of two classes are as close as the maps are.
    """
    for name in ("kept", "seeds"):
        if not torch.equal(getattr(actual, name), getattr(expected, name)):
            return float("inf")
    return max(
        map_difference(actual.discrepancy, expected.discrepancy),
        map_difference(actual.scores, expected.scores),
        regret(actual.labels, expected.scores),
    )


def affordable(case):
    """Whether the reference takes no more than a fraction of a second."""
    N, (H, W) = case.grid[0] * case.grid[1], case.image.shape[2:]
    window = (2 * case.options.get("radius", 2) + 1) ** 2
    steps = case.options.get("max_steps", 100)
    resampling = case.logits[0].numel() * N
    walks = min(case.M, N) * N * (steps + N)
    return 16 * H * W * window + walks + 40 * case.M * N + resampling < AFFORDABLE


def by_reference(case):
    """The float64 reference's result of a case of one image; None where it is not finite."""
    image = case.image.double().numpy()[0]
    with np.errstate(all="ignore"):
        expected = reference.refine(
            case.logits.double().numpy()[0],
            case.weights.double().numpy()[0],
            image / 255 if case.image.dtype == torch.uint8 else image,
            case.grid,
            prompt_index=case.prompt_index,
            **case.options,
        )
    parts = ("labels", "discrepancy", "kept", "seeds", "scores")
    result = RefineResult(*(torch.from_numpy(expected[name]) for name in parts))
    finite = result.discrepancy[result.kept].isfinite().all() and not result.scores.isnan().any()
    return result if finite else None


def rounded(case, rng):
    """The case with its inputs rounded at random, again and again.

    Weights below 1e-38 are rounded to float32's steps there. A column of none but these is known as
    badly as its largest weight, and once it is scaled to sum to one, it shows.
    """
    logits, weights = case.logits.double(), case.weights.double()
    image = case.image.double() / (255 if case.image.dtype == torch.uint8 else 1)
    size = 1.0
    if case.factors:  # rounding moves a score by a share of its size, its exponential by as much
        q, k, scale = case.factors
        size = 1 + (scale * q.double() @ k.double().mT).abs().amax(dim=1)
    reach = logits.abs() + 1 / case.options.get("logit_scale", 1.0)
    for trial in range(TRIALS):
        # Every other time alike in all patches: so does a tie go to one class everywhere.
        noise = _noise(logits if trial % 2 else logits[:, :, :1, :1], rng)
        yield replace(
            case,
            logits=logits + reach * noise,
            weights=(weights * (1 + size * _noise(weights, rng)) + _steps(weights, rng)).clamp_min(
                0
            ),
            image=(image * (1 + _noise(image, rng))).clamp(0, 1),
            options=case.options | _rounded_bars(case.options, rng),
        )


def _rounded_bars(options, rng):
    """The options that a confidence is compared with, moved by a rounding error.

    Down: at or above the bar counts. The background's both ways: nothing moves what it is compared
    with, a sum of probabilities that is one but for rounding.
    """
    down = 1 - ROUNDING * float(rng.random())
    bars = {"nms_threshold": down * options.get("nms_threshold", 0.5)}
    if options["background"]:
        index, threshold = options["background"]
        bars["background"] = (index, threshold * (1 + ROUNDING * rng.uniform(-1, 1)))
    return bars


def _steps(weights, rng):
    """Errors of a step of float32's smallest, but for the weights that are 0, which it holds."""
    steps = SMALLEST * torch.from_numpy(rng.normal(size=tuple(weights.shape)))
    return steps.where(weights > 0, 0.0)


def _noise(x, rng):
    return ROUNDING * torch.from_numpy(rng.normal(size=tuple(x.shape)))


@contextmanager
def _rounding(rng):
    """Round what the reference hands from one step to the next, which its inputs may not reach."""

    def spoil(name):
        step = getattr(reference, name)

        def spoiled(*args):
            out = step(*args)
            P, *rest = out if isinstance(out, tuple) else (out,)
            # Sums of many terms are wrong by a share of the largest: zeros, too.
            size = np.abs(P) + 1e-3 * P.max() if name == "propagation" else P
            P = P + size * ROUNDING * rng.normal(size=P.shape)
            if name == "propagation":
                P = np.maximum(P, 0)  # sums of what is not negative
            return (P, *rest) if rest else P

        return spoiled

    steps = ("resample", "confidence", "doubly_stochastic", "propagation", "normalise")
    with mock.patch.multiple(reference, **{name: spoil(name) for name in steps}):
        yield


def explained(case, run, gap, rng):
    """Whether rounding moves `run(case)` of one image as far as `gap`."""
    before = run(case)
    if before is None:
        return True
    for other in rounded(case, rng):
        with _rounding(rng):
            after = run(other)
        if after is None or difference(after, before) * HEADROOM >= gap:
            return True
    return False
