"""The refinement: logits, attention and image in, segmentation out.

Source: J. Li et al., "Direct Segmentation without Logits Optimization for Training-Free
Open-Vocabulary Semantic Segmentation", CVPR 2026, arXiv 2604.07723.

Axes: B images, K prompts, M classes, (h, w) grid of the logits, (gh, gw) grid of the attention,
N = gh * gw patches, (H, W) pixels, m classes that are kept.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from numpy.typing import NDArray
from torch import Tensor

from ovss_refine.attention import Attention, AttentionSource
from ovss_refine.checks import (
    check_dense,
    check_shape,
    check_sizes,
    check_values,
    check_weights_shape,
)
from ovss_refine.config import PAPER, RefineConfig, RefineOptions, config_of
from ovss_refine.images.convert import ImagesLike, as_image_batch, as_tensor
from ovss_refine.logits import Logits, check_prompt_index, count_prompts, doubt_about
from ovss_refine.method.modes import ModeName
from ovss_refine.method.steps import Confidence, refine_confidence, weigh_logits
from ovss_refine.postprocess import post_process_semantic_segmentation
from ovss_refine.result import RefineResult
from ovss_refine.tensors.cells import resize
from ovss_refine.tensors.layout import check_axes, find_grid

# The size of a block is divided by these in turn while memory does not suffice.
BLOCK_DIVISORS = (1, 8, 64)
LogitsLike = Tensor | NDArray[Any] | Logits
AttentionLike = Tensor | NDArray[Any] | Attention | AttentionSource
PromptIndex = Tensor | NDArray[Any] | Sequence[int] | None


class Refiner:
    """Refines any segmenter's logits; holds its options and nothing else.

    Args:
        mode: how classes are scored; see `RefineConfig`, as for all the other options.
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
        >>> Refiner()(logits, attn, torch.full((3, 8, 8), 0.5)).labels[0].tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """

    def __init__(
        self, mode: ModeName = "maximum_velocity", **options: Unpack[RefineOptions]
    ) -> None:
        """Check and keep the options."""
        self.config = config_of({"mode": mode, **options})

    @classmethod
    def paper(
        cls, mode: ModeName = "maximum_velocity", **options: Unpack[RefineOptions]
    ) -> "Refiner":
        """Make a refiner that reads the paper to the letter: one bar for the seeds of all classes.

        Nothing votes and nothing is weighted. Arguments and exceptions are those of `Refiner`.

        Example:
            >>> Refiner.paper("fusion", tau=0.2).config.nms
            'relative'
        """
        return cls(mode, **{**PAPER, **options})

    def __call__(
        self,
        logits: LogitsLike,
        attn: AttentionLike,
        image: ImagesLike,
        *,
        prompt_index: PromptIndex = None,
    ) -> RefineResult:
        """Segment images from coarse logits and self-attention.

        Either all inputs have the leading batch axis or none has. The work is done in float32
        on the attention's device; the result is on the logits' device. Memory is dominated by the
        attention: B * N * N floats, as much again in every mode but "kl", twice as much again in
        "fusion" without numba. Half precision on a CPU and factors need none of that, and where it
        does not fit it is done without: the same result, later.

        Args:
            logits: [B, K, h, w] or [K, h, w] of any segmenter, a tensor or an array of any float
                type; or `Logits`, whose scale multiplies the option `logit_scale`.
            attn: an `Attention`, or [B, N, N], [B, A, N, N] (heads, averaged) or [N, N]
                self-attention; row = query, entries >= 0, rows sum to one within 1e-2. The grid
                of a bare tensor is the logits' where that has N patches, else square if the logits
                or the image are. Or an `AttentionSource`, which is given the image.
            image: [B, 3, H, W] or [3, H, W] tensor, [B, H, W, 3] or [H, W, 3] array, float in
                [0, 1] or uint8; a PIL image or a path; or a list of B images of one size. H, W are
                the output's.
            prompt_index: [K] class of each prompt (synonyms share one), in [0, M), M <= K + 256;
                default: each is its own class. A class may be without a prompt: the background.

        Raises:
            TypeError: if an argument is not of the types above.
            ValueError: on shapes that do not fit together, values that are not finite or out of
                range, or a background class that does not exist.
            torch.OutOfMemoryError: where small blocks do not fit either; names what would help.
        """
        return _run(_check(logits, attn, image, self.config, prompt_index))

    post_process_semantic_segmentation = post_process_semantic_segmentation

    def __repr__(self) -> str:
        """Show the options."""
        return repr(self.config).replace("RefineConfig", "Refiner", 1)


def refine(
    logits: LogitsLike,
    attn: AttentionLike,
    image: ImagesLike,
    config: RefineConfig | None = None,
    *,
    prompt_index: PromptIndex = None,
) -> RefineResult:
    """Segment images from coarse logits and self-attention, as a function.

    Args:
        logits: [B, K, h, w] or [K, h, w], as for `Refiner`, as are all the others.
        attn: [B, N, N], [B, A, N, N] or [N, N], or what stands for it.
        image: [B, 3, H, W] or [3, H, W], or another form of images.
        config: the options; None: the defaults.
        prompt_index: [K] class of each prompt, or None.

    Raises:
        TypeError: as a call of `Refiner` does.
        ValueError: as a call of `Refiner` does.
        torch.OutOfMemoryError: as a call of `Refiner` does.

    Example:
        >>> import torch
        >>> logits, attn = 9 * torch.rand(3, 4, 4), torch.ones(16, 16) / 16
        >>> refine(logits, attn, torch.rand(3, 8, 8), RefineConfig(mode="kl")).labels.shape
        torch.Size([8, 8])
    """
    return _run(_check(logits, attn, image, config or RefineConfig(), prompt_index))


@dataclass(frozen=True, slots=True, eq=False)
class _Checked:
    """The input of one refinement, checked and with a batch axis.

    Attributes:
        logits: [B, K, h, w].
        attention: B maps.
        guide: [B, 3, H, W] float32 image in [0, 1].
        prompts: [K] class of each prompt, or None.
        config: the options, `Logits.scale` multiplied into its logit scale.
        batched: whether the user's input had the batch axis.
    """

    logits: Tensor
    attention: Attention
    guide: Tensor
    prompts: Tensor | None
    config: RefineConfig
    batched: bool


def _check(
    logits: LogitsLike,
    attn: AttentionLike,
    image: ImagesLike,
    config: RefineConfig,
    prompt_index: PromptIndex,
) -> _Checked:
    """Check the input, and make an `Attention` of what stands for it."""
    counted = count_prompts(logits, prompt_index)
    if isinstance(logits, Logits):
        if prompt_index is not None:
            raise ValueError("`prompt_index` must be None with `Logits`, which hold their own.")
        prompt_index = logits.prompt_index
        config = replace(config, logit_scale=logits.scaled(config.logit_scale))
        logits = logits.values
    values = check_dense("logits", as_tensor(logits, "logits"))
    check_values("logits", values)
    guide, several = as_image_batch(image, "image")
    (B, _, H, W), source = guide.shape, isinstance(attn, AttentionSource)
    held = attn.attention(guide) if isinstance(attn, AttentionSource) else attn
    if not isinstance(held, Attention):
        held = check_weights_shape("attn", as_tensor(held, "attn"))
    given = guide.shape if several else guide.shape[1:]
    check_axes("logits", values.shape, given, held.shape[-1], getattr(held, "grid", None), counted)
    batch = "" if values.ndim == 3 else "B "
    sizes = check_shape("logits", values, f"{batch}K h w")
    known = {axis: sizes[axis] for axis in batch.split()}
    try:
        check_sizes("image", given, f"{batch}C H W", **known)
    except ValueError as error:
        raise ValueError(
            f"{error} Its batch axis is that of `logits` {list(values.shape)}."
        ) from None
    prompts = _check_prompts(prompt_index, values, config.background)
    attention = as_attention(held, (sizes["h"], sizes["w"]), (H, W))
    if source:
        check_sizes("attn.attention(image)", attention.shape, "B N N", B=B)
    else:
        check_sizes("attn", attention.shape, f"{batch}N N", **known)
    return _Checked(
        values if batch else values[None], attention, guide, prompts, config, bool(batch)
    )


def as_attention(
    attn: Tensor | NDArray[Any] | Attention,
    logits_size: tuple[int, int],
    image_size: tuple[int, int],
) -> Attention:
    """Give a bare tensor the grid that `find_grid` finds; an `Attention` has its own."""
    if isinstance(attn, Attention):
        return attn
    attn = check_weights_shape("attn", as_tensor(attn, "attn"))
    return Attention(attn, find_grid(attn.shape[-1], logits_size, image_size))


def _run(given: _Checked) -> RefineResult:
    """Refine on the attention's device.

    Must be called directly by a public function: the warning's `stacklevel` relies on it.
    """
    config, device = given.config, given.attention.device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        values = given.logits.to(device, torch.float32)
        prompts = None if given.prompts is None else given.prompts.to(device)
        if values.shape[2:] != given.attention.grid:
            values = resize(values, *given.attention.grid)
        weighed = weigh_logits(values.flatten(2), prompts, config)
        if doubt := doubt_about(given.logits, weighed.P, config.logit_scale):
            warnings.warn(doubt, stacklevel=3)
        result = _refine_in_memory(weighed, given.attention, given.guide.to(device), config)
    return (result if given.batched else result[0]).to(given.logits.device)


def _check_prompts(
    prompt_index: PromptIndex, logits: Tensor, background: tuple[int, float] | None
) -> Tensor | None:
    """Check the class of each prompt, and that the background is one of the classes."""
    index = None
    if prompt_index is not None:
        index = check_prompt_index(prompt_index, "logits", logits.shape)
    M = logits.shape[-3] if index is None else int(index.max()) + 1
    if background is not None and background[0] >= M:
        raise ValueError(f"`background` must name one of the M={M} classes; got {background[0]}.")
    return index


def _refine_in_memory(
    given: Confidence, attention: Attention, guide: Tensor, config: RefineConfig
) -> RefineResult:
    """Do `refine_confidence`, in smaller blocks while memory does not suffice.

    Raises:
        torch.OutOfMemoryError: if the smallest blocks do not help.
    """
    reason = ""
    for divisor in BLOCK_DIVISORS:
        try:
            held = attention if divisor == 1 else attention.in_blocks(divisor)
            return refine_confidence(given, held, guide, config)
        except RuntimeError as error:  # on a CPU the allocator raises nothing more specific
            reason = str(error)
            if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate" in reason):
                raise
    B, M, N = given.P.shape
    raise torch.OutOfMemoryError(
        f"out of memory for B={B} images of N={N} patches and M={M} classes, also in blocks "
        f"{BLOCK_DIVISORS[-1]} times smaller than usual; refine fewer images at a time, hold the "
        "attention in half precision or as `Attention.from_factors(q, k, scale, grid)`, or leave "
        f"`keep_scores` off. It said: {reason}"
    )
