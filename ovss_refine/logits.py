"""Logits: a checked value, one map of scores per prompt, and what makes it.

Axes: B images, K prompts, M classes, (h, w) grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from numpy.typing import NDArray
from torch import Tensor

from ovss_refine.checks import SCALES, check_number, check_shape, check_values
from ovss_refine.images.convert import as_tensor
from ovss_refine.tensors.layout import prompts_last

# Classes that may be without prompts: as many as an 8-bit label map has.
MOST_WITHOUT = 255

# How far the sums of probabilities in half precision, upsampled, may be from one.
SUM_SLACK = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Logits:
    """Scores of every prompt at every patch, and what they mean.

    Attributes:
        values: [B, K, h, w] or [K, h, w], finite, any float type: cosines or raw logits. An array
            becomes a tensor.
        scale: factor that turns them into the argument of a softmax over prompts, in [1e-6, 1e6].
        prompt_index: [K] int64 class of each prompt, in [0, M), M <= K + 256; synonyms share one.
            Given as a tensor or a sequence; None: every prompt is its own class.
        names: M class names, distinct; empty where nobody named them.

    Raises:
        TypeError: if `values` is not a floating-point tensor, `prompt_index` does not hold
            whole numbers, or a name is not a string.
        ValueError: on a wrong shape, values that are not finite, a `scale` out of range, a class
            that is negative or above K + 255, or names that are not one for each class.

    Example:
        >>> import torch
        >>> logits = Logits(torch.rand(3, 14, 14), 40, prompt_index=[0, 0, 1], names=["dog", "sky"])
        >>> logits.names
        ('dog', 'sky')
    """

    values: Tensor
    scale: float = 1.0
    prompt_index: Tensor | Sequence[int] | None = None
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check everything, and make `prompt_index` a tensor and `names` a tuple."""
        object.__setattr__(self, "values", as_tensor(self.values, "values"))
        batch = "" if getattr(self.values, "ndim", 4) == 3 else "B "
        sizes = check_shape("values", self.values, f"{batch}K h w")
        check_values("values", self.values)
        scale = check_number("scale", self.scale, *SCALES)
        object.__setattr__(self, "scale", scale)
        index = None
        if self.prompt_index is not None:
            index = check_prompt_index(self.prompt_index, "values", self.values.shape)
        object.__setattr__(self, "prompt_index", index)
        if not isinstance(self.names, Sequence) and not hasattr(self.names, "shape"):
            raise TypeError(f"`names` must be strings; got {self.names!r}.")
        names = tuple(self.names)
        object.__setattr__(self, "names", names)
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise TypeError(f"`names` must be strings; got {wrong[0]!r}.")
        M = sizes["K"] if index is None else int(index.max()) + 1
        if names and len(names) != M:
            if index is None and len(names) == self.values.shape[-1]:
                raise ValueError(prompts_last("values", self.values.shape, "as many as `names`"))
            raise ValueError(f"`names` must name the M={M} classes; got {len(names)} names.")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"`names` must be distinct; got {twice!r} twice.")

    def scaled(self, factor: float | Literal["auto"]) -> float | Literal["auto"]:
        """Return the scale times the option `logit_scale`, which "auto" replaces."""
        return "auto" if factor == "auto" else factor * self.scale


def check_prompt_index(
    prompt_index: Tensor | NDArray[Any] | Sequence[int], name: str, shape: Sequence[int]
) -> Tensor:
    """Return the class of each prompt as int64, or raise.

    Args:
        prompt_index: [K] class of each prompt.
        name: of the logits, for messages.
        shape: [B, K, h, w] or [K, h, w], the logits'.

    Raises:
        TypeError: if they are not whole numbers.
        ValueError: if there are not K of them, or one is negative or above K + 255: classes may be
            without prompts, but each costs memory.
    """
    K = shape[-3]
    try:
        index = torch.as_tensor(prompt_index, device=getattr(prompt_index, "device", "cpu"))
    except (TypeError, ValueError, RuntimeError):  # as torch has it, also where a number is too big
        raise TypeError(f"`prompt_index` must hold whole numbers; got {prompt_index!r}.") from None
    if index.shape == shape[-1:] != (K,):
        raise ValueError(prompts_last(name, shape, "as many as `prompt_index`"))
    check_shape("prompt_index", index, "K", K=K)
    if index.dtype == torch.bool or not torch.can_cast(index.dtype, torch.int64):
        raise TypeError(f"`prompt_index` must hold whole numbers; got {index.dtype}.")
    index = index.long()
    low, high = (int(x) for x in index.aminmax())
    if low < 0:
        raise ValueError(f"`prompt_index` must be >= 0; got {low}.")
    if high > K + MOST_WITHOUT:
        raise ValueError(
            f"`prompt_index` must be at most {K + MOST_WITHOUT}, for K={K} prompts; got {high}. "
            "Number the classes from 0, and translate the labels of the result."
        )
    return index


def count_prompts(logits: object, prompt_index: object) -> int:
    """Return how many prompts their index, or else their names, count; 0 if nobody has said."""
    index = getattr(logits, "prompt_index", prompt_index)  # `Logits` have their own
    known = getattr(logits, "names", ()) if index is None else index
    # A single number has no length, and is refused as such later.
    return len(known) if hasattr(known, "__len__") and getattr(known, "shape", known) != () else 0


def doubt_about(logits: Tensor, P: Tensor, scale: float | Literal["auto"]) -> str:
    """Say what logits seem to be instead: probabilities, or unscaled cosines; "" if neither.

    Args:
        logits: [B, K, h, w].
        P: [B, M, N] what was made of them.
        scale: the option `logit_scale`; one that was chosen, other than 1, leaves no doubt.
    """
    K, M, top = logits.shape[1], P.shape[1], float(P.max())
    if scale not in (1, "auto") or K == 1 or float(logits.abs().max()) > 1:
        return ""
    sums = logits.sum(dim=1, dtype=torch.float32)
    if float(logits.min()) >= 0 and float((sums - 1).abs().max()) <= SUM_SLACK:
        return (
            "`logits` look like probabilities: none is negative, and they sum to one over the "
            "prompts; pass `logits.clamp_min(1e-6).log()`, with `logit_scale=1`."
        )
    if scale == "auto" or M == 1 or top >= (1 + 1 / M) / 2:
        return ""  # some patch is nearer to certainty than to chance
    return (
        "`logits` are all in [-1, 1] like cosine similarities and no patch is confident of its "
        f'class (at most {top:.2f}); set `logit_scale`, for CLIP to 40 ... 100, or to "auto".'
    )


@runtime_checkable
class LogitsSource(Protocol):
    """Anything that scores prompts at patches; it knows its classes already.

    A source may also have a method `with_classes(classes)`, which returns a source for other
    classes, such as `Labels`, on the same model.
    """

    def logits(self, images: Tensor) -> Logits:
        """Compute the logits of `images`.

        Args:
            images: [B, 3, H, W] RGB in [0, 1]; the source resizes and normalises them. Those of
                this library also take uint8, arrays [B, H, W, 3] and lists of images of one size.

        Returns:
            Values [B, K, h, w] on a grid that the source chooses.

        Raises:
            FileNotFoundError: if an image is a path without a file.
            TypeError, ValueError: on images of another form, shape or range.
        """
        ...
