"""Load and run a source of logits and one of attention, in one pass if they are one.

Axes: B images, (H, W) pixels.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ovss_refine.attention import Attention, AttentionSource
from ovss_refine.labels import Labels
from ovss_refine.logits import Logits, LogitsSource
from ovss_refine.sources import OWN
from ovss_refine.sources.device import Placement
from ovss_refine.sources.lazy import LazySource, OnLoad
from ovss_refine.sources.stages import Stages


def make_pair(
    logits: str | LogitsSource,
    attention: str | AttentionSource,
    logits_options: Mapping[str, Any],
    attention_options: Mapping[str, Any],
    place: Placement,
    models_dir: Path | None,
) -> tuple[LazySource, LazySource]:
    """Make both sources, to be loaded at first use; one and the same for the attention "own".

    Arguments and exceptions are those of `LazySource`.
    """
    first = LazySource("logits", logits, logits_options, place, models_dir)
    if attention != OWN:
        return first, LazySource("attention", attention, attention_options, place, models_dir)
    if attention_options:
        raise TypeError(f"`attention_options` must be empty with {OWN!r}; got {attention_options}.")
    return first, first


def load_pair(
    logits: LazySource, attention: LazySource, labels: Labels | None, on_load: OnLoad
) -> tuple[LogitsSource, AttentionSource]:
    """Return both sources; arguments and exceptions are those of `LazySource.logits`.

    Raises:
        ValueError: also on the attention "own" of a source of logits that computes none.
    """
    source = logits.logits(labels, on_load)
    if attention is not logits:
        return source, attention.attention(on_load)
    return source, own_attention(source, logits.given)


def own_attention(logits: object, name: object) -> AttentionSource:
    """Return a source of logits as one of attention, or raise ValueError if it computes none."""
    if isinstance(logits, AttentionSource):
        return logits
    kind = name if isinstance(name, str) else type(logits).__name__
    raise ValueError(
        f"`attention` must be the name of a source or a ready one for the logits {kind!r}, which "
        f"give no attention; got {OWN!r}."
    )


def both_of(
    logits: object, attention: object
) -> Callable[[Tensor], tuple[Logits, Attention]] | None:
    """Return the method that computes both in one pass, if they are one source that has it."""
    return getattr(logits, "logits_and_attention", None) if logits is attention else None


def run_sources(
    logits: LazySource,
    attention: LazySource,
    sources: tuple[LogitsSource, AttentionSource],
    images: Tensor,
    stages: Stages,
) -> tuple[Logits, Attention]:
    """Run both, as the stages "logits" and "attention".

    A ready source that was given for both, and one whose own attention is taken, runs once, in the
    first stage, if it has a method `logits_and_attention(images)`.

    Args:
        logits: holds the lock of the source of logits.
        attention: holds that of the source of attention.
        sources: the sources themselves.
        images: [B, 3, H, W] in [0, 1].
        stages: times them.
    """
    # A ready source may have been replaced by one for other classes on the same model.
    twice = logits.given is attention.given and not isinstance(logits.given, str)
    both = both_of(sources[0], sources[0] if twice else sources[1])
    if both is None:
        with logits.lock, stages("logits"):
            found = sources[0].logits(images)
        with attention.lock, stages("attention"):
            return found, sources[1].attention(images)
    with logits.lock, attention.lock, stages("logits"):
        found, maps = both(images)
    with stages("attention"):
        return found, maps
