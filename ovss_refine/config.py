"""Every option of the refinement, with its default, range and one line of help.

This file imports no torch: the command line makes its flags from the fields below.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from ovss_refine.checks import check_choice, check_count, check_number

Mode = Literal["kl", "optimal_path", "maximum_velocity", "fusion", "propagation", "anchored"]
NMS = Literal["relative", "absolute"]
Criterion = Literal["first_passage", "increment"]

# exp(-cost / epsilon), cost at most 1, and its products with the scaling vectors stay well
# inside float32's normal range (1e-38) down to exp(-50) = 2e-22.
MIN_EPSILON = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineConfig:
    """How to refine. The defaults are the paper's, where the paper has one.

    Attributes:
        mode: how the discrepancy of a class from the uniform map is measured:
            "kl", "optimal_path", "maximum_velocity", "fusion" of the last two, or one of the
            controls "propagation" and "anchored", which use no discrepancy at all.
        logit_scale: factor on the logits before the softmax over prompts, > 0. CLIP cosines
            need 40 to 100; logits of an ordinary segmenter need 1.
        nms: a patch is a seed where its confidence reaches `nms_threshold` times the image's
            highest confidence ("relative"), or `nms_threshold` itself ("absolute").
        nms_threshold: the bar of `nms`, in [0, 1].
        pre_propagation: steps of the attention's Markov chain that the confidence takes
            before anything else, >= 0. Helps large objects, hurts small ones.
            Not applied in mode "propagation", which is that very thing.
        min_area: a class must win at this share of the patches to go on, in [0, 1].
            0.002 is nearly free, 0.02 removes small objects. Not applied to an image
            where it would leave no class.
        epsilon: entropy weight of the optimal path, >= 0.02, in units of the largest cost.
        sinkhorn_iterations: upper bound on Sinkhorn updates, >= 1.
        tau: a patch is reached once its mass passes this share of the largest, in (0, 1).
        criterion: reading of maximum velocity: "first_passage" or "increment" (see the docs).
        max_steps: upper bound on the steps of maximum velocity, >= 1.
        ipf_rounds: rounds that make the attention doubly stochastic, >= 1.
        propagation_steps: steps of the modes "propagation" and "anchored", >= 0.
        sigma_spatial: spatial spread of the upsampling, in patches, > 0.
        sigma_range: colour spread of the upsampling, > 0; RGB in [0, 1], Euclidean.
        radius: reach of the upsampling, in patches, >= 0: (2 * radius + 1)^2 neighbours.
        background: None, or (class index, threshold in [0, 1]): patches whose best class
            confidence is under the threshold become that class.
        keep_scores: return the upsampled scores [B, M, H, W] too.

    Raises:
        TypeError: on an unknown option or a value of the wrong kind.
        ValueError: on a value out of range.
    """

    mode: Mode = field(
        default="maximum_velocity", metadata={"help": "how the discrepancy is measured"}
    )
    logit_scale: float = field(
        default=1.0, metadata={"help": "factor on the logits, > 0; CLIP cosines need 40 to 100"}
    )
    nms: NMS = field(default="relative", metadata={"help": "what nms_threshold is a share of"})
    nms_threshold: float = field(
        default=0.5, metadata={"help": "confidence that makes a patch a seed, in [0, 1]"}
    )
    pre_propagation: int = field(
        default=0, metadata={"help": "Markov steps of the confidence before all else, >= 0"}
    )
    min_area: float = field(
        default=0.0, metadata={"help": "share of the patches a class must win, in [0, 1]"}
    )
    epsilon: float = field(
        default=0.1, metadata={"help": "entropy weight of the optimal path, >= 0.02"}
    )
    sinkhorn_iterations: int = field(default=50, metadata={"help": "most Sinkhorn updates, >= 1"})
    tau: float = field(
        default=0.3,
        metadata={"help": "share of the largest mass that counts as reached, in (0, 1)"},
    )
    criterion: Criterion = field(
        default="first_passage", metadata={"help": "reading of maximum velocity"}
    )
    max_steps: int = field(default=100, metadata={"help": "most steps of maximum velocity, >= 1"})
    ipf_rounds: int = field(
        default=15, metadata={"help": "rounds that make the attention doubly stochastic, >= 1"}
    )
    propagation_steps: int = field(
        default=3, metadata={"help": "steps of propagation and anchored, >= 0"}
    )
    sigma_spatial: float = field(
        default=1.0, metadata={"help": "spatial spread of the upsampling in patches, > 0"}
    )
    sigma_range: float = field(
        default=0.1, metadata={"help": "colour spread of the upsampling, > 0, RGB in [0, 1]"}
    )
    radius: int = field(default=2, metadata={"help": "reach of the upsampling in patches, >= 0"})
    background: tuple[int, float] | None = field(
        default=None,
        metadata={"help": "INDEX,THRESHOLD: patches less confident become class INDEX"},
    )
    keep_scores: bool = field(
        default=False, metadata={"help": "keep the upsampled scores of every class"}
    )

    def __post_init__(self) -> None:
        """Check every field."""
        check_choice("mode", self.mode, get_args(Mode))
        check_choice("nms", self.nms, get_args(NMS))
        check_choice("criterion", self.criterion, get_args(Criterion))
        check_number("epsilon", self.epsilon, MIN_EPSILON)
        check_number("tau", self.tau, 0, 1, open_ends=True)
        for name in ("nms_threshold", "min_area"):
            check_number(name, getattr(self, name), 0, 1)
        for name in ("logit_scale", "sigma_spatial", "sigma_range"):
            check_number(name, getattr(self, name), 0, open_ends=True)
        for name in ("pre_propagation", "propagation_steps", "radius"):
            check_count(name, getattr(self, name), 0)
        for name in ("sinkhorn_iterations", "max_steps", "ipf_rounds"):
            check_count(name, getattr(self, name), 1)
        if not isinstance(self.keep_scores, bool):
            raise TypeError(f"`keep_scores` must be True or False; got {self.keep_scores!r}.")
        if self.background is not None:
            _check_background(self.background)


def _check_background(background: object) -> None:
    if not isinstance(background, tuple) or len(background) != 2:
        raise TypeError(
            f"`background` must be None or (class index, threshold); got {background!r}."
        )
    check_count("background[0]", background[0], 0)
    check_number("background[1]", background[1], 0, 1)
