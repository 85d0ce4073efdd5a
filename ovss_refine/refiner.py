"""The refinement: logits, attention and image in, segmentation out.

Source: J. Li et al., "Direct Segmentation without Logits Optimization for Training-Free
Open-Vocabulary Semantic Segmentation", CVPR 2026, arXiv 2604.07723.

Axes: B images, K prompts, M classes, (h, w) grid of the logits, (gh, gw) grid of the attention,
N = gh * gw patches, (H, W) pixels, m classes that are kept.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.attention import Attention, AttentionSource, as_attention
from ovss_refine.checks import check_finite, check_float, check_shape, check_sizes
from ovss_refine.config import Mode, RefineConfig
from ovss_refine.logits import Logits, check_prompt_index
from ovss_refine.method.distribution import confidence, find_seeds, kept_index, normalise
from ovss_refine.method.divergence import kl
from ovss_refine.method.markov import (
    Chain,
    anchored,
    doubly_stochastic,
    first_passage,
    increment,
    propagate,
)
from ovss_refine.method.transport import optimal_path
from ovss_refine.method.upsample import as_guide, upsample_bands
from ovss_refine.postprocess import Attentions, TargetSizes, label_maps
from ovss_refine.result import RefineResult

# What the size of a block is divided by, one try after the other, where memory does not suffice.
SHRINK = (1, 8, 64)


class Refiner:
    """Refines any segmenter's scores; holds its options and nothing else.

    Args:
        mode: see `RefineConfig`, as are all the other options.
        options: the other fields of `RefineConfig`.

    Raises:
        TypeError: on an unknown option or a value of the wrong kind.
        ValueError: on a value out of range.

    Example:
        >>> import torch
        >>> logits = torch.zeros(2, 4, 4)
        >>> logits[0, :, :2] = logits[1, :, 2:] = 4.0
        >>> attn = torch.eye(16) + 0.1
        >>> attn /= attn.sum(-1, keepdim=True)
        >>> Refiner()(logits, attn, torch.rand(3, 8, 8)).labels[0].tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """

    def __init__(self, mode: Mode = "maximum_velocity", **options: Any) -> None:
        """Check and keep the options."""
        self.config = RefineConfig(mode=mode, **options)

    def __call__(
        self,
        logits: Tensor | Logits,
        attn: Tensor | Attention | AttentionSource,
        image: Tensor,
        *,
        prompt_index: Tensor | Sequence[int] | None = None,
    ) -> RefineResult:
        """Refine; see `refine`."""
        return _run(logits, attn, image, self.config, prompt_index)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: TargetSizes = None,
        *,
        attn: Attentions,
        images: Tensor | Sequence[Any],
    ) -> list[Tensor]:
        """Refine what a Hugging Face model returns, as its image processor's method of that name.

        Args:
            outputs: of a `*ForSemanticSegmentation`, MaskFormer or alike; or logits [B, K, h, w].
            target_sizes: (H, W) of each label map, or [B, 2]; None: each image's own size.
            attn: as for `refine`, of B images; or one `Attention` or [N, N] tensor for each.
            images: B of them, not normalised, of any sizes: [B, 3, H, W], or a sequence of
                [3, H, W] tensors (float in [0, 1] or uint8), PIL images or [H, W, 3] uint8 arrays.

        Returns:
            B label maps [H, W] int64, on the device of the logits.

        Raises:
            TypeError: if `outputs` has no logits, or as `refine` does.
            ValueError: if there are not B images, maps or sizes, or as `refine` does.
        """
        return label_maps(self, outputs, target_sizes, attn, images)

    def __repr__(self) -> str:
        """Show the options."""
        return repr(self.config).replace("RefineConfig", "Refiner", 1)


def refine(
    logits: Tensor | Logits,
    attn: Tensor | Attention | AttentionSource,
    image: Tensor,
    config: RefineConfig,
    *,
    prompt_index: Tensor | Sequence[int] | None = None,
) -> RefineResult:
    """Segment an image from coarse scores and self-attention.

    Either all inputs have the leading batch axis or none has. The work is done in float32
    on the attention's device; the result is on the logits' device. Memory is dominated by the
    attention: B * N * N floats, as much again in modes "optimal_path" and (on a CPU)
    "maximum_velocity", twice as much again in "fusion". Half precision and factors need none of
    that, and where it does not fit it is done without: the same result, later.

    Args:
        logits: [B, K, h, w] or [K, h, w] scores of any segmenter, any float type; or `Logits`,
            whose scale multiplies `config.logit_scale`.
        attn: an `Attention`, or [B, N, N], [B, A, N, N] (heads, averaged) or [N, N]
            self-attention; row = query, entries >= 0, rows sum to one within 1e-2. The grid
            of a bare tensor is the logits' where it has N patches, else square. Or an
            `AttentionSource`, which is given the image.
        image: [B, 3, H, W] or [3, H, W], float in [0, 1] or uint8. H, W are the output's.
        config: the options.
        prompt_index: [K] class of each prompt (synonyms share one), in [0, M); default: every
            prompt is its own class. A class may be without a prompt: the background.

    Raises:
        TypeError: if an argument is not a tensor of the types above.
        ValueError: on shapes that do not fit together, values that are not finite or out of
            range, or a background class that does not exist.
        torch.OutOfMemoryError: where small blocks do not fit either; names what would help.
    """
    return _run(logits, attn, image, config, prompt_index)


@dataclass(frozen=True, slots=True, eq=False)
class _Checked:
    """The input of one refinement, checked and with a batch axis.

    Attributes:
        logits: [B, K, h, w] scores.
        attention: B maps.
        guide: [B, 3, H, W] float32 image in [0, 1].
        prompts: [K] class of each prompt, or None.
        config: the options, its logit scale the whole one.
        batched: whether the user's input had the batch axis.
    """

    logits: Tensor
    attention: Attention
    guide: Tensor
    prompts: Tensor | None
    config: RefineConfig
    batched: bool


def _check(
    logits: Tensor | Logits,
    attn: Tensor | Attention | AttentionSource,
    image: Tensor,
    config: RefineConfig,
    prompt_index: Tensor | Sequence[int] | None,
) -> _Checked:
    """Check the input, and make attention of whatever stands for it."""
    if isinstance(logits, Logits):
        if prompt_index is not None:
            raise ValueError("`prompt_index` must be None beside `Logits`, which hold their own.")
        prompt_index = logits.prompt_index
        config = replace(config, logit_scale=config.logit_scale * logits.scale)
        logits = logits.values
    batch = "" if getattr(logits, "ndim", 4) == 3 else "B "
    sizes = check_shape("logits", logits, f"{batch}K h w")
    known = {axis: sizes[axis] for axis in batch.split()}
    check_float("logits", logits)
    check_finite("logits", logits)
    check_shape("image", image, f"{batch}C H W", C=3, **known)
    prompts = _check_prompts(prompt_index, sizes["K"], config.background)
    guide = as_guide(image if batch else image[None])
    if isinstance(attn, AttentionSource):
        attention = attn.attention(guide)
        check_sizes("attn.attention(image)", attention.shape, "B N N", B=len(guide))
    else:
        attention = as_attention(attn, (sizes["h"], sizes["w"]))
        check_sizes("attn", attention.shape, f"{batch}N N", **known)
    return _Checked(
        logits if batch else logits[None], attention, guide, prompts, config, bool(batch)
    )


def _run(
    logits: Tensor | Logits,
    attn: Tensor | Attention | AttentionSource,
    image: Tensor,
    config: RefineConfig,
    prompt_index: Tensor | Sequence[int] | None,
) -> RefineResult:
    """Check the input, then refine it on the attention's device. Called by the user's callee."""
    given = _check(logits, attn, image, config, prompt_index)
    config, device = given.config, given.attention.device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        scores = given.logits.to(device, torch.float32)
        prompts = None if given.prompts is None else given.prompts.to(device)
        scores = F.interpolate(
            scores, given.attention.grid, mode="bilinear", align_corners=False
        ).flatten(2)
        P, assigned = confidence(scores, prompts, config.logit_scale, config.background)
        if _looks_unscaled(given.logits, P, config):
            warnings.warn(
                "`logits` are all in [-1, 1] like cosine similarities and no patch is confident "
                f"of its class (at most {float(P.max()):.2f}); set `logit_scale`, for CLIP to "
                "40 ... 100.",
                stacklevel=3,
            )
        result = _refine_in_memory(P, assigned, given.attention, given.guide.to(device), config)
    return _deliver(result, given.logits.device, batched=given.batched)


def _check_prompts(
    prompt_index: Tensor | Sequence[int] | None, K: int, background: tuple[int, float] | None
) -> Tensor | None:
    """Check the class of each prompt and that the background is one of the classes."""
    index = None
    if prompt_index is not None:
        index = check_prompt_index(prompt_index, K)
    M = K if index is None else int(index.max()) + 1
    if background is not None and background[0] >= M:
        raise ValueError(f"`background` must name one of the M={M} classes; got {background[0]}.")
    return index


def _looks_unscaled(logits: Tensor, P: Tensor, config: RefineConfig) -> bool:
    """Whether `logits` look like cosines that nobody scaled.

    No patch is confident: all are nearer to chance than to certainty.
    """
    M = P.shape[1]
    return (
        config.logit_scale == 1
        and M > 1
        and float(P.max()) < (1 + 1 / M) / 2
        and float(logits.abs().max()) <= 1
    )


def _refine_in_memory(
    P: Tensor, assigned: Tensor, attention: Attention, guide: Tensor, config: RefineConfig
) -> RefineResult:
    """Do `_refine`, in smaller blocks where memory does not suffice.

    Raises:
        torch.OutOfMemoryError: where the smallest blocks do not help.
    """
    reason = ""
    for shrink in SHRINK:
        try:
            room = attention if shrink == 1 else replace(attention, shrink=shrink)
            return _refine(P, assigned, room, guide, config)
        except RuntimeError as error:  # on a CPU it is no more special than that
            reason = str(error)
            if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate" in reason):
                raise
    B, M, N = P.shape
    raise torch.OutOfMemoryError(
        f"out of memory for B={B} images of N={N} patches and M={M} classes, also in blocks "
        f"{SHRINK[-1]} times smaller than usual; refine fewer images at a time, hold the attention "
        "in half precision or as `Attention.from_factors(q, k, scale, grid)`, or leave "
        f"`keep_scores` off. It said: {reason}"
    )


def _refine(
    P: Tensor, assigned: Tensor, attention: Attention, guide: Tensor, config: RefineConfig
) -> RefineResult:
    """Do the method's steps 3 to 8.

    Args:
        P: [B, M, N] class confidence.
        assigned: [B, N] bool, the patches that the background rule decided.
        attention: B maps over N patches.
        guide: [B, 3, H, W] float32 image.
        config: the options.
    """
    controls = config.mode in ("propagation", "anchored")
    pre_propagation = 0 if config.mode == "propagation" else config.pre_propagation
    chain = None
    if pre_propagation or config.mode not in ("kl", "optimal_path"):
        walks = config.mode in ("maximum_velocity", "fusion")
        chain = doubly_stochastic(attention, config.ipf_rounds, many_steps=walks)
        P = propagate(P, chain, pre_propagation)
    seeds = find_seeds(
        P,
        assigned,
        suppress=not controls,
        nms=config.nms,
        nms_threshold=config.nms_threshold,
        min_area=config.min_area,
    )
    classes = kept_index(seeds.kept)  # [B, m]
    if controls:
        D = _control(P, classes, chain, config)
    else:
        q = normalise(_take(P, classes), _take(seeds.mask, classes))
        D = _discrepancy(q, attention, chain, config)
    labels, scores = _upsample(
        D, classes, P.shape[1], attention.grid, guide, config, attention.shrink
    )
    full = torch.full_like(P, -torch.inf).scatter_(1, classes[:, :, None].expand_as(D), D)
    return RefineResult(
        labels=labels,
        discrepancy=full.reshape(*P.shape[:2], *attention.grid),
        kept=seeds.kept,
        seeds=seeds.mask.reshape(*P.shape[:2], *attention.grid),
        scores=scores,
    )


def _take(x: Tensor, classes: Tensor) -> Tensor:
    """Pick [B, m] `classes` from [B, M, N] `x`: [B, m, N]."""
    return x.gather(1, classes[:, :, None].expand(-1, -1, x.shape[2]))


def _discrepancy(
    q: Tensor, attention: Attention, chain: Chain | None, config: RefineConfig
) -> Tensor:
    """Discrepancy of `q` [B, m, N] from the uniform map, in the paper's modes: [B, m, N]."""
    if config.mode == "kl":
        return kl(q)
    if config.mode == "optimal_path":
        return optimal_path(q, attention, config.epsilon, config.sinkhorn_iterations)
    assert chain is not None  # noqa: S101 - made for every mode that is left
    walk = first_passage if config.criterion == "first_passage" else increment
    velocity = walk(q, chain, config.tau, config.max_steps)
    if config.mode == "maximum_velocity":
        return velocity
    path = optimal_path(q, attention, config.epsilon, config.sinkhorn_iterations)
    return (_min_max(path) + _min_max(velocity)) / 2


def _control(P: Tensor, classes: Tensor, chain: Chain | None, config: RefineConfig) -> Tensor:
    """Scores [B, m, N] of the modes that measure no discrepancy."""
    assert chain is not None  # noqa: S101 - made for every mode but two
    own = _take(P, classes)
    if config.mode == "propagation":
        return propagate(own, chain, config.propagation_steps)
    if P.shape[1] == 1:
        return own
    best = P.topk(2, dim=1).values  # [B, 2, N]
    return anchored(own, best[:, :1] - best[:, 1:], chain, config.propagation_steps)


def _min_max(D: Tensor) -> Tensor:
    """Scale [B, m, N] to [0, 1] per image; a map that is constant up to rounding becomes 0."""
    low, high = D.amin(dim=(1, 2), keepdim=True), D.amax(dim=(1, 2), keepdim=True)
    span = high - low
    flat = span <= 16 * torch.finfo(D.dtype).eps * high.abs()
    return torch.where(flat, 0.0, (D - low) / span)


def _upsample(
    D: Tensor,
    classes: Tensor,
    M: int,
    grid: tuple[int, int],
    guide: Tensor,
    config: RefineConfig,
    shrink: int,
) -> tuple[Tensor, Tensor | None]:
    """Upsample `D` [B, m, N] and label every pixel: [B, H, W], and [B, M, H, W] or None."""
    B, H, W = D.shape[0], *guide.shape[2:]
    labels = classes.new_empty(B, H, W)
    scores = D.new_full((B, M, H, W), -torch.inf) if config.keep_scores else None
    low = D.reshape(*D.shape[:2], *grid)
    spread = (config.sigma_spatial, config.sigma_range, config.radius)
    for band in upsample_bands(low, guide, *spread, shrink=shrink):
        winner = band.labels()  # [B, rows, W], indices into the kept classes
        labels[:, band.rows] = classes.gather(1, winner.flatten(1)).view_as(winner)
        if scores is not None:
            means = band.means()
            scores[:, :, band.rows].scatter_(1, classes[:, :, None, None].expand_as(means), means)
    return labels, scores


def _deliver(result: RefineResult, device: torch.device, *, batched: bool) -> RefineResult:
    """Move the result to the caller's device and drop the batch axis that the input had not."""
    tensors: dict[str, Any] = {field.name: getattr(result, field.name) for field in fields(result)}
    for name, x in tensors.items():
        if x is not None:
            tensors[name] = (x if batched else x[0]).to(device)
    return RefineResult(**tensors)
