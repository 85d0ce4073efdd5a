"""Run a source of logits and one of attention on the same images, in one pass if they are one.

Axes: B images, (H, W) pixels.
"""

from typing import Any

from torch import Tensor

from ovss_refine.attention import Attention, AttentionSource
from ovss_refine.logits import Logits, LogitsSource
from ovss_refine.sources.lazy import LazySource
from ovss_refine.sources.stages import Stages


def run_sources(
    logits: LazySource,
    attention: LazySource,
    sources: tuple[LogitsSource, AttentionSource],
    images: Tensor,
    stages: Stages,
) -> tuple[Logits, Attention]:
    """Run both, as the stages "logits" and "attention".

    A ready source that was given for both runs once, in the first stage, if it has a method
    `logits_and_attention(images)`.

    Args:
        logits: holds the lock of the source of logits.
        attention: holds that of the source of attention.
        sources: the sources themselves.
        images: [B, 3, H, W] in [0, 1].
        stages: times them.
    """
    both: Any = getattr(sources[0], "logits_and_attention", None)
    shared = logits.given is attention.given and not isinstance(logits.given, str)
    if both is None or not shared:
        with logits.lock, stages("logits"):
            found = sources[0].logits(images)
        with attention.lock, stages("attention"):
            return found, sources[1].attention(images)
    with logits.lock, attention.lock, stages("logits"):
        found, maps = both(images)
    with stages("attention"):
        return found, maps
