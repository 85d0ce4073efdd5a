"""Sources that the caller made: a function, a model, or an object with a source's method.

Axes: B images, A heads, K prompts, (h, w) grid, N patches, (H, W) pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ovss_refine.attention import Attention, AttentionSource
from ovss_refine.checks import check_sizes, check_weights_shape
from ovss_refine.evaluation.functions import code_digest
from ovss_refine.evaluation.inputs import (
    AttentionFrom,
    LogitsFrom,
    NoAttention,
    PerImage,
    weights_of,
)
from ovss_refine.evaluation.request import Chosen
from ovss_refine.images.convert import as_tensor
from ovss_refine.labels import Labels
from ovss_refine.logits import Logits, LogitsSource
from ovss_refine.registry import find
from ovss_refine.sources.device import Placement

# What behaves otherwise in training mode.
TRAINED = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True, slots=True)
class Given(Chosen):
    """A source that the caller made; it knows its classes and stays where it is."""

    source: Any = field(kw_only=True)
    pair: bool = field(default=False, kw_only=True)  # a function may return attention as well

    @property
    def takes_classes(self) -> bool:
        """Whether the source is made for the classes of the data set."""
        return False

    def logits(self, labels: Labels, place: Placement) -> LogitsFrom:
        """Return the source of logits."""
        if _is_source(self.source, LogitsSource, "logits") or isinstance(self.source, PerImage):
            source: LogitsFrom = self.source
            return source
        return WithAttention(self.source, self.pair)

    def attention(self, place: Placement) -> AttentionFrom:
        """Return the source of attention."""
        if _is_source(self.source, AttentionSource, "attention"):
            ready: AttentionSource = self.source
            return ready
        if isinstance(self.source, PerImage):
            return self.source
        return CallableAttention(self.source)

    def settings(self) -> dict[str, Any]:
        """Return what two runs must agree on, besides the weights."""
        return {"name": self.name, "code": code_digest(self.source)}

    @property
    def device(self) -> torch.device | None:
        """The device of the weights that the source holds, or that a function refers to."""
        for weights in weights_of(self.source):
            tensors = [weights] if isinstance(weights, Tensor) else weights.parameters()
            for one in tensors:
                return one.device
        return None


def as_given(source: object, name: str, *, pair: bool = False) -> Given:
    """Check a source that the caller made.

    Args:
        source: a function, a model, or an object with the method `name` or `for_image`.
        name: "logits" or "attention".
        pair: a function of `name` "logits" may return attention as well.

    Raises:
        TypeError: on something else.
        ValueError: on a model in training mode.
    """
    if isinstance(source, type):
        raise TypeError(f"`{name}` must be an object; got the class {source.__name__}. Make one.")
    protocol = LogitsSource if name == "logits" else AttentionSource
    ready = _is_source(source, protocol, name) or isinstance(source, PerImage)
    if not ready:
        if not callable(source):
            raise TypeError(
                f"`{name}` must be a name, a function of images [B, 3, H, W], or an object with a "
                f"method `{name}(images)` or `for_image(image_id)`; got {type(source).__name__}."
            )
        _check_evaluating(source, name)
    thing = source if hasattr(source, "__qualname__") else type(source)
    return Given(f"{thing.__module__}.{thing.__qualname__}", source=source, pair=pair)


class WithAttention:
    """A function that returns logits, or, if `pair`, logits and attention."""

    def __init__(self, fn: Callable[[Tensor], Any], pair: bool) -> None:
        """Keep the function, and what checks its results."""
        self.fn, self.pair = fn, pair
        self._checked = find("logits", "callable").load()

    def logits(self, images: Tensor) -> Logits:
        """Return the logits of [B, 3, H, W] `images` alone."""
        return self.both(images)[0]

    def both(self, images: Tensor) -> tuple[Logits, Attention | Tensor | None]:
        """Call the function once.

        Returns:
            [B, K, h, w] logits, and attention as `CallableAttention` returns it; None: the function
            returned logits only.

        Raises:
            TypeError, ValueError: on a result of another form or shape.
        """
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            made = self.fn(images)
        pair = isinstance(made, tuple) and len(made) == 2
        if pair and not self.pair:
            raise ValueError(
                "`logits` must return logits alone where `attention` is given; got a pair."
            )
        values, attention = made if pair else (made, None)
        logits: Logits = self._checked(fn=lambda _: values).logits(images)
        return logits, _attention(attention, images) if pair else None


class CallableAttention:
    """A function as a source of attention, which need not know the grid.

    Args:
        fn: [B, 3, H, W] float32 images in [0, 1] to an `Attention`, or to a map [B, N, N] or
            [B, A, N, N] of patches, whose rows sum to one. Called without gradient or autocast.
    """

    def __init__(self, fn: Callable[[Tensor], Any]) -> None:
        """Keep the function."""
        self.fn = fn

    def attention(self, images: Tensor) -> Attention | Tensor:
        """Call the function; raises TypeError or ValueError on a result of another form."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return _attention(self.fn(images), images)


class MissingAttention(AttentionSource):
    """No attention, where a row needs it."""

    def __init__(self, rows: tuple[str, ...]) -> None:
        """Keep the names of the rows."""
        self.rows = rows

    def attention(self, images: Tensor) -> Attention:
        """Raise ValueError."""
        raise ValueError(
            f"`attention` must be given for the rows {[*self.rows]}, as a function, a source or a "
            "name such as 'dinov2-b14-reg'; or `logits` must return a pair (logits, attention)."
        )


def without_attention(rows: tuple[str, ...], needed: bool) -> Given:
    """Return what stands for attention that the caller did not give."""
    return Given("none", source=MissingAttention(rows) if needed else NoAttention())


def _attention(made: Any, images: Tensor) -> Attention | Tensor:
    """Check what a function returned for attention, and move it to the device of the images."""
    B = len(images)
    if isinstance(made, Attention):
        check_sizes("attention", made.shape, "B N N", B=B)
        return made.to(images.device)
    if hasattr(made, "attentions"):
        raise TypeError(
            "`attention` must return an `Attention` or a tensor; got the outputs of a model. Pass "
            "them to `ovss_refine.sources.outputs.from_hugging_face`."
        )
    if not isinstance(made, (Tensor, np.ndarray)):
        raise TypeError(
            "`attention` must return an `Attention`, or a tensor [B, N, N] or [B, A, N, N]; got "
            f"{type(made).__name__}."
        )
    weights = check_weights_shape("attention", as_tensor(made, "attention"))
    check_sizes("attention", weights.shape, "B A N N" if weights.ndim == 4 else "B N N", B=B)
    return weights.to(images.device)


def _is_source(source: object, protocol: Any, method: str) -> bool:
    """Whether an object has a source's method, and not a layer of that name."""
    return isinstance(source, protocol) and not isinstance(getattr(source, method), nn.Module)


def _check_evaluating(source: object, name: str) -> None:
    """Raise ValueError if a model that a function refers to drops or normalises as in training."""
    for model in weights_of(source):
        if isinstance(model, nn.Module) and any(
            part.training and isinstance(part, TRAINED) for part in model.modules()
        ):
            raise ValueError(
                f"`{name}` must be of a model in evaluation mode; got {type(model).__name__} in "
                "training mode. Call its method `eval()` first."
            )
