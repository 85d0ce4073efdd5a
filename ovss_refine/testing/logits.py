"""The conformance suite of logits sources; `ovss_refine.testing` is where users find it."""

from collections.abc import Callable

import torch
from torch import Tensor

from ovss_refine.logits import Logits, LogitsSource
from ovss_refine.testing.models import (
    HALF_TOLERANCE,
    ORDER_TOLERANCE,
    SIZES,
    check_interruptions,
    check_refusals,
    demand,
    left_as_found,
    modules_of,
    of_uint8,
    settings_left_alone,
    smooth_images,
)


def check_logits_source(make: Callable[[], LogitsSource]) -> None:
    """Check that a source keeps the promises of `LogitsSource`.

    It is given images of several sizes, types and batches. The scores must be one map for each
    image and prompt, on a grid that lies as the image does, on the images' device, without
    gradient; scale, prompts and names must be the same for all images; the scores must be
    repeatable, not depend on the company of other images, and differ between images and between
    prompts. The modules that the source holds must be left as they were found (hooks, mode,
    `forward`, parameters), also when one of their parts raises. Random numbers and global
    settings must not be touched.

    Args:
        make: returns a new source of two prompts or more; called once. A tiny model with random
            weights will do.

    Raises:
        AssertionError: if a promise is broken; says which.
    """
    source = make()
    demand(
        isinstance(source, LogitsSource),
        f"a source must have a method `logits`; {type(source).__name__} has none.",
    )
    with left_as_found(modules_of(source), "after its use"):
        first = _check_scores(source, SIZES[0])
        for size in SIZES[1:]:
            _check_same_classes(first, _check_scores(source, size))
        _check_manners(source)
        _check_batch(source)
        _check_types(source)
        check_refusals(source.logits)
        if found := of_uint8(source.logits):
            got, wanted = (one.values for one in found)
            _demand_equal(got, wanted, "be those of the images / 255 where uint8 is accepted")
    check_interruptions(source, lambda: source.logits(smooth_images(1, 48, 80)))


def _check_scores(source: LogitsSource, size: tuple[int, int]) -> Logits:
    """Check shape, grid, device and gradient of the scores of images of one size."""
    images = smooth_images(2, *size).requires_grad_()
    before = images.detach().clone()
    logits = source.logits(images)
    demand(
        isinstance(logits, Logits),
        f"`logits` must return `Logits`; got {type(logits).__name__}.",
    )
    values = logits.values
    demand(
        values.ndim == 4 and len(values) == 2,
        f"`logits` must return one map for each image and prompt, [B=2, K, h, w]; got "
        f"{list(values.shape)}.",
    )
    (h, w), (H, W) = values.shape[2:], size
    demand(
        (h - w) * (H - W) >= 0,
        f"the grid must lie as the image does, (rows, columns); got {(h, w)} for {H} x {W}.",
    )
    demand(
        values.device == images.device,
        f"the scores must lie on the images' device {images.device}; got {values.device}.",
    )
    demand(
        values.dtype == torch.float32,
        f"the scores must be float32, whatever the model is; got {values.dtype}.",
    )
    demand(not values.requires_grad, "the scores must carry no gradient; they require one.")
    demand(torch.equal(images, before), "`images` must not be changed; they were.")
    return logits


def _check_same_classes(one: Logits, two: Logits) -> None:
    demand(
        _classes(one) == _classes(two),
        "scale, number of prompts, prompt_index and names must be the same for all images; got "
        f"{_classes(one)} and {_classes(two)}.",
    )


def _classes(logits: Logits) -> tuple[object, ...]:
    index = None if logits.prompt_index is None else torch.as_tensor(logits.prompt_index).tolist()
    return logits.scale, logits.values.shape[1], index, tuple(logits.names)


def _check_manners(source: LogitsSource) -> None:
    """Check that nothing outside changes, and nothing outside changes the scores."""
    images = smooth_images(2, 48, 80)
    with settings_left_alone():
        first = source.logits(images).values
    _demand_equal(first, source.logits(images).values, "be the same when asked twice")
    with torch.autocast(images.device.type, dtype=torch.bfloat16):
        _demand_equal(first, source.logits(images).values, "not depend on autocast")
    with torch.random.fork_rng(devices=[]):
        torch.rand(7)
        _demand_equal(first, source.logits(images).values, "not depend on random numbers")
    demand(
        float((first[0] - first[1]).abs().max()) > 0,
        "the scores of different images must differ; they are equal.",
    )
    demand(
        first.shape[1] > 1 and float((first[:, 0] - first[:, 1]).abs().max()) > 0,
        "the scores of different prompts must differ, and `make` must give two or more; they "
        "do not.",
    )


def _check_batch(source: LogitsSource) -> None:
    images = smooth_images(3, 48, 80)
    together = source.logits(images).values
    for index in range(3):
        alone = source.logits(images[index : index + 1]).values
        _demand_equal(together[index : index + 1], alone, "not depend on the rest of the batch")


def _check_types(source: LogitsSource) -> None:
    images = smooth_images(1, 48, 80)
    wanted = source.logits(images).values
    for dtype, tolerance in ((torch.float64, ORDER_TOLERANCE), (torch.float16, HALF_TOLERANCE)):
        got = source.logits(images.to(dtype)).values
        _demand_equal(wanted, got, f"not depend on the images' type, {dtype}", tolerance)


def _demand_equal(
    one: Tensor, two: Tensor, promise: str, tolerance: float = ORDER_TOLERANCE
) -> None:
    demand(
        one.shape == two.shape,
        f"the scores must {promise}; got another shape, {list(two.shape)}.",
    )
    gap = float((one - two).abs().max() / one.abs().max())
    demand(
        gap <= tolerance,
        f"the scores must {promise}; they differ by {gap:.1e} of the largest.",
    )
