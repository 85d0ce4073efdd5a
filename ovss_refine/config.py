"""Every option of the refinement, with its default, range and one line of help.

This module does not import torch: the command line makes its flags from the fields below.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict, get_args

from ovss_refine.checks import (
    SCALES,
    check_choice,
    check_count,
    check_flag,
    check_number,
    number_range,
)
from ovss_refine.method.modes import ModeName
from ovss_refine.upsamplers.names import HELP, Upsampler, as_upsampler

NMS = Literal["classwise", "relative", "absolute"]
Criterion = Literal["first_passage", "increment"]

# exp(-cost / epsilon), cost at most 1, and its products with the scaling vectors stay well
# inside float32's normal range (1e-38) down to exp(-50) = 2e-22.
EPSILONS = (0.02, 1e6)
# Past these a run hardly ends, and the neighbours of a patch hardly fit into memory.
MOST_STEPS, MOST_RADIUS = 100_000, 32
# The options that read steps 3 and 4 as the paper does, with one bar for all classes.
PAPER: Mapping[str, Any] = {"nms": "relative", "vote": 0.0, "confidence_power": 0.0}


class RefineOptions(TypedDict, total=False):
    """The types of all options but `mode`, for editors and type checkers: see `RefineConfig`."""

    logit_scale: float | Literal["auto"]
    nms: NMS
    nms_threshold: float
    seed_quantile: float
    vote: float
    confidence_power: float
    pre_propagation: int
    min_area: float
    epsilon: float
    sinkhorn_iterations: int
    tau: float
    criterion: Criterion
    max_steps: int
    ipf_rounds: int
    propagation_steps: int
    upsampler: Upsampler | str
    sigma_spatial: float
    sigma_range: float
    radius: int
    background: tuple[int, float] | None
    keep_scores: bool


def _check_background(name: str, background: Any) -> tuple[int, float] | None:
    if background is None:
        return None
    if not isinstance(background, (tuple, list)) or len(background) != 2:
        raise TypeError(f"`{name}` must be None or (class index, threshold); got {background!r}.")
    index, threshold = background
    return check_count(f"{name}[0]", index, 0), check_number(f"{name}[1]", threshold, 0, 1)


def _field(default: object, help: str, check: Callable[[str, Any], object], **more: object) -> Any:
    return field(default=default, metadata={"help": help, "check": check, **more})


def _choice(default: str, help: str, choices: object) -> Any:
    return _field(default, help, lambda name, x: check_choice(name, x, get_args(choices)))


def _number(default: float, help: str, low: float, high: float, **ends: bool) -> Any:
    return _field(
        default,
        f"{help}, {number_range(low, high, **ends)}",
        lambda name, x: check_number(name, x, low, high, **ends),
    )


def _count(default: int, help: str, low: int, high: int = MOST_STEPS) -> Any:
    return _field(
        default,
        f"{help}, in [{low}, {high}]",
        lambda name, x: check_count(name, x, low, high),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineConfig:
    """How to refine. The defaults are the paper's but for `nms`, `vote` and `confidence_power`.

    Attributes:
        mode: how classes are scored: a row of `method.modes.MODES`, of the paper's or of the two
            controls, which measure no discrepancy.
        logit_scale: factor on the logits before the softmax over prompts, in [1e-6, 1e6]. CLIP
            cosines need 40 to 100; logits of an ordinary segmenter need 1. "auto": the factor with
            which an image's patches give their best prompt a probability of 0.9 on average, so
            that the result is the same for the logits times any factor.
        nms: a patch is a seed of the class that it is most confident of where that confidence
            reaches the `seed_quantile` of those at all patches of the class ("classwise"),
            `nms_threshold` times the image's highest confidence ("relative"), or `nms_threshold`
            itself ("absolute"). The last two are readings of the paper: see `Refiner.paper`.
        nms_threshold: the bar of "relative" and "absolute", in [0, 1].
        seed_quantile: the bar of "classwise", in [0, 1]: the share of a class's patches that are
            no seeds.
        vote: a class is dropped if giving its region to the best of the others costs the image
            less than this in log confidence, in nats per patch, in [0, 1]; the others are then
            scored again. 0: no vote.
        confidence_power: the power of a patch's confidence that multiplies the score of maximum
            velocity, in [0, 1]; 0: the score alone.
        pre_propagation: steps of the attention's Markov chain that the confidence takes
            before anything else, in [0, 100000]. Helps large objects, hurts small ones.
            Not applied in mode "propagation", which is that very thing.
        min_area: a class must win at this share of the patches to go on, in [0, 1].
            0.002 is nearly free, 0.02 removes small objects. Not applied to an image
            where it would leave no class.
        epsilon: entropy weight of the optimal path, in [0.02, 1e6], in units of the largest cost.
        sinkhorn_iterations: upper bound on Sinkhorn updates, in [1, 100000].
        tau: a patch is reached once its mass passes this share of the largest, in (0, 1).
        criterion: reading of maximum velocity: "first_passage" or "increment" (see the docs).
        max_steps: upper bound on the steps of maximum velocity, in [1, 100000].
        ipf_rounds: rounds that make the attention doubly stochastic, in [1, 100000].
        propagation_steps: steps of the modes "propagation" and "anchored", in [0, 100000].
        upsampler: what makes pixels of the scores of patches: "jbu", joint bilateral upsampling;
            "bilinear"; "guided", a guided filter; the name of a registered one; MODULE:FUNCTION;
            or a function itself, see `upsamplers.names.Upsampler`.
        sigma_spatial: spatial spread of "jbu", in patches, in [1e-6, 1e6].
        sigma_range: colour spread of "jbu", in [1e-6, 1e6]; RGB in [0, 1], Euclidean.
        radius: reach of "jbu", in patches, in [0, 32]: (2 * radius + 1)^2 neighbours.
        background: None, or (class index, threshold in [0, 1]): patches whose best class
            confidence is under the threshold become that class.
        keep_scores: return the upsampled scores [B, M, H, W] too.

    Raises:
        TypeError: on an unknown option or a value of the wrong kind.
        ValueError: on a value out of range.

    Example:
        >>> config = RefineConfig(mode="optimal_path", background=(0, 0.3))
        >>> config.mode, config.tau
        ('optimal_path', 0.3)
    """

    mode: ModeName = _choice("maximum_velocity", "how classes are scored", ModeName)
    logit_scale: float | Literal["auto"] = _field(
        1.0,
        f"factor on the logits, or auto; CLIP cosines need 40 to 100, {number_range(*SCALES)}",
        lambda name, x: x if isinstance(x, str) and x == "auto" else check_number(name, x, *SCALES),
        parse=lambda text: text if text == "auto" else float(text),
        metavar="FLOAT|auto",
    )
    nms: NMS = _choice("classwise", "which bar the seeds of a class have to reach", NMS)
    nms_threshold: float = _number(0.5, "bar of nms relative and absolute", 0, 1)
    seed_quantile: float = _number(0.25, "bar of nms classwise, a quantile", 0, 1)
    vote: float = _number(0.006, "evidence that a class needs, in nats per patch", 0, 1)
    confidence_power: float = _number(0.25, "power of the confidence in maximum velocity", 0, 1)
    pre_propagation: int = _count(0, "Markov steps of the confidence before all else", 0)
    min_area: float = _number(0.0, "share of the patches a class must win", 0, 1)
    epsilon: float = _number(0.1, "entropy weight of the optimal path", *EPSILONS)
    sinkhorn_iterations: int = _count(50, "most Sinkhorn updates", 1)
    tau: float = _number(
        0.3, "share of the largest mass that counts as reached", 0, 1, open_ends=True
    )
    criterion: Criterion = _choice("first_passage", "reading of maximum velocity", Criterion)
    max_steps: int = _count(100, "most steps of maximum velocity", 1)
    ipf_rounds: int = _count(15, "rounds that make the attention doubly stochastic", 1)
    propagation_steps: int = _count(3, "steps of propagation and anchored", 0)
    upsampler: Upsampler | str = _field("jbu", HELP, as_upsampler, parse=str, metavar="UPSAMPLER")
    sigma_spatial: float = _number(1.0, "spatial spread of the upsampling in patches", *SCALES)
    sigma_range: float = _number(0.1, "colour spread of the upsampling, RGB in [0, 1]", *SCALES)
    radius: int = _count(2, "reach of the upsampling in patches", 0, MOST_RADIUS)
    background: tuple[int, float] | None = _field(
        None,
        "patches less confident than THRESHOLD become class INDEX",
        _check_background,
        metavar="INDEX,THRESHOLD",
        example="0,0.4",
    )
    keep_scores: bool = _field(False, "keep the upsampled scores of every class", check_flag)

    def __post_init__(self) -> None:
        """Check every field; numbers of NumPy and torch become Python's."""
        for one in fields(self):
            checked = one.metadata["check"](one.name, getattr(self, one.name))
            object.__setattr__(self, one.name, checked)


def config_of(options: Mapping[str, Any]) -> RefineConfig:
    """Make a configuration of options given by name.

    Raises:
        TypeError: on an unknown option, naming the nearest, or a value of the wrong kind.
        ValueError: on a value out of range.
    """
    known = [one.name for one in fields(RefineConfig)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean `{near[0]}`?" if near else f" Options are {known}."
            raise TypeError(f"`{name}` must be an option of the refinement; it is not one.{hint}")
    return RefineConfig(**options)
