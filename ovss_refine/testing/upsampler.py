"""The conformance suite for upsamplers."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ovss_refine.testing.models import (
    ORDER_TOLERANCE,
    SIZES,
    check_interruptions,
    demand,
    left_as_found,
    modules_of,
    settings_left_alone,
    smooth_images,
)
from ovss_refine.upsamplers.names import Upsampler

# One for each of `SIZES`, with its orientation; not all divide it.
GRIDS = ((8, 8), (3, 5), (6, 4))
K = 3


def check_upsampler(make: Callable[[], Upsampler], *, constants: bool = False) -> None:
    """Check that a function keeps the promises of `Upsampler`.

    It is given maps and images of several sizes, square, wide and tall, without gradient, as a
    refinement gives them. The result must be one float32 map for each, of the image's size, on
    their device and finite; maps and images must be left alone; the result must be repeatable, not
    depend on the other images of the batch, and differ between maps. The modules that the function
    holds must be left as they were found, even if one of their parts raises. Random numbers and
    global settings must not be touched. A map may depend on the other maps of its image, and a
    result may leave the range of its map.

    Args:
        make: returns a new upsampler; called once. A tiny model with random weights will do.
        constants: whether a constant map must stay one, which an upsampler need not promise; those
            that average do.

    Raises:
        AssertionError: if a promise is broken; the message says which.
    """
    upsampler = make()
    demand(callable(upsampler), f"an upsampler must be a function; got {type(upsampler).__name__}.")
    with torch.no_grad():
        with left_as_found(modules_of(upsampler), "after its use"):
            with settings_left_alone():
                for low, images in _problems():
                    _check_result(upsampler, low, images)
            _check_dependence(upsampler)
            if constants:
                _check_constants(upsampler)
        low, images = next(_problems())
        check_interruptions(upsampler, lambda: upsampler(low, images))


def _problems() -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over maps [2, 3, gh, gw] and images [2, 3, H, W], and one map alone."""
    generator = torch.Generator().manual_seed(0)
    for grid, size in zip(GRIDS, SIZES, strict=True):
        yield torch.randn(2, K, *grid, generator=generator), smooth_images(2, *size)
    yield torch.randn(1, 1, *GRIDS[1], generator=generator), smooth_images(1, *SIZES[1])


def _check_result(upsampler: Upsampler, low: Tensor, images: Tensor) -> None:
    """Check shape, dtype, device and values of a result, and that the input is left alone."""
    before = low.clone(), images.clone()
    result = upsampler(low, images)
    demand(isinstance(result, Tensor), f"the result must be a tensor; got {type(result).__name__}.")
    wanted = [*low.shape[:2], *images.shape[2:]]
    demand(
        list(result.shape) == wanted,
        f"the result must have one map for each of `low`, of the image's size, {wanted}; got "
        f"{list(result.shape)}.",
    )
    demand(result.dtype == torch.float32, f"the result must be float32; got {result.dtype}.")
    demand(
        result.device == low.device,
        f"the result must be on the maps' device {low.device}; got {result.device}.",
    )
    demand(bool(result.isfinite().all()), "the result must be finite; got NaN or infinite values.")
    for name, now, old in zip(("low", "image"), (low, images), before, strict=True):
        demand(torch.equal(now, old), f"`{name}` must not be changed; it was.")


def _check_dependence(upsampler: Upsampler) -> None:
    """Check that an image's result depends on its maps and the image, and on nothing else."""
    low, images = list(_problems())[1]
    result = upsampler(low, images).clone()
    _demand_close(result, upsampler(low, images), "be the same in a second call")
    with torch.random.fork_rng(devices=[]):
        torch.rand(7)
        _demand_close(result, upsampler(low, images), "not depend on random numbers")
    for b in range(len(low)):
        alone = upsampler(low[b : b + 1], images[b : b + 1])
        _demand_close(result[b : b + 1], alone, "not depend on the rest of the batch")
    demand(
        not torch.equal(result[:, 0], result[:, 1]),
        "the results of different maps must differ; they are equal.",
    )


def _check_constants(upsampler: Upsampler) -> None:
    low, images = list(_problems())[1]
    levels = torch.tensor([-2.0, 0.0, 5.0])[:, None, None]
    result = upsampler(levels.expand_as(low).contiguous(), images)
    _demand_close(levels.expand_as(result), result, "keep constant maps as they are")


def _demand_close(one: Tensor, two: Tensor, promise: str) -> None:
    gap = float((one - two).abs().max() / one.abs().max())
    demand(
        gap <= ORDER_TOLERANCE,
        f"the result must {promise}; got a difference of {gap:.1e} of the largest value.",
    )
