"""The conformance suite for sources of logits."""

from collections.abc import Callable

import torch

from ovss_refine.logits import Logits, LogitsSource
from ovss_refine.testing.models import SIZES, demand
from ovss_refine.testing.suite import Suite, check_grid


def check_logits_source(make: Callable[[], LogitsSource]) -> None:
    """Check that a source keeps the promises of `LogitsSource`.

    It is given images of several sizes, types and batches. The logits must be one float32 map for
    each image and prompt, on a grid with the image's orientation, on the images' device, without
    gradient; scale, prompts and names must be the same for all images; the logits must be
    repeatable, not depend on autocast or on the other images of the batch, and differ between
    images and between prompts. The modules that the source holds must be left as they were found
    (hooks, mode, `forward`, parameters), even if one of their parts raises. Random numbers and
    global settings must not be touched.

    Args:
        make: returns a new source of two prompts or more; called once. A tiny model with random
            weights will do.

    Raises:
        AssertionError: if a promise is broken; the message says which.
    """
    suite = Suite("the logits", "logits", Logits, lambda x: [x.values], lambda x: x.values)
    suite.check(make(), _check_logits)


def _check_logits(results: list[Logits]) -> None:
    """Check shape, grid, dtype and classes of the logits of two images of each size."""
    for logits, size in zip(results, SIZES, strict=True):
        values = logits.values
        demand(
            values.ndim == 4 and len(values) == 2,
            f"`logits` must return one map for each image and prompt, [B=2, K, h, w]; got "
            f"{list(values.shape)}.",
        )
        check_grid(values.shape[2:], size)
        demand(
            values.dtype == torch.float32,
            f"the logits must be float32, whatever the model is; got {values.dtype}.",
        )
        demand(
            _classes(logits) == _classes(results[0]),
            "scale, number of prompts, prompt_index and names must be the same for all images; got "
            f"{_classes(results[0])} and {_classes(logits)}.",
        )
        demand(
            values.shape[1] > 1 and not torch.equal(values[:, 0], values[:, 1]),
            "the logits of different prompts must differ, and `make` must give two or more; they "
            "do not.",
        )


def _classes(logits: Logits) -> tuple[object, ...]:
    index = None if logits.prompt_index is None else torch.as_tensor(logits.prompt_index).tolist()
    return logits.scale, logits.values.shape[1], index, tuple(logits.names)
