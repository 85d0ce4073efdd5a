"""The conformance suite of logits sources; `ovss_refine.testing` is where users find it."""

from collections.abc import Callable

import torch
from torch import Tensor

from ovss_refine._testing_models import (
    calls_of,
    demand,
    interrupt,
    left_as_found,
    modules_of,
)
from ovss_refine.logits import Logits, LogitsSource

# Square, wide and tall, of no common multiple: no model's own size.
SIZES = ((64, 64), (48, 80), (83, 37))
# What float32 arithmetic in another order may change, as a share of the largest score.
ORDER_TOLERANCE = 1e-4
# What rounding images to half precision may change, likewise; wrong scores change all of it.
HALF_TOLERANCE = 0.1


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
        _check_refusals(source)
    _check_interruptions(source)


def _check_scores(source: LogitsSource, size: tuple[int, int]) -> Logits:
    """Check shape, grid, device and gradient of the scores of images of one size."""
    images = _images(2, *size).requires_grad_()
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
    images = _images(2, 48, 80)
    with torch.random.fork_rng(devices=[]):
        torch.rand(7)  # a state that no seed gives, so that seeding is seen
        settings, first = _settings(), source.logits(images).values
        demand(
            settings == _settings(),
            "a source must leave gradient mode, default type, threads and random numbers alone; "
            "it did not.",
        )
        _demand_equal(first, source.logits(images).values, "be the same when asked twice")
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            _demand_equal(first, source.logits(images).values, "not depend on autocast")
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
    images = _images(3, 48, 80)
    together = source.logits(images).values
    for index in range(3):
        alone = source.logits(images[index : index + 1]).values
        _demand_equal(together[index : index + 1], alone, "not depend on the rest of the batch")


def _check_types(source: LogitsSource) -> None:
    images = _images(1, 48, 80)
    wanted = source.logits(images).values
    for dtype, tolerance in ((torch.float64, ORDER_TOLERANCE), (torch.float16, HALF_TOLERANCE)):
        got = source.logits(images.to(dtype)).values
        _demand_equal(wanted, got, f"not depend on the images' type, {dtype}", tolerance)


def _check_refusals(source: LogitsSource) -> None:
    """Check that what is no batch of images in [0, 1] is refused."""
    images = _images(1, 64, 64)
    wrong: dict[str, Tensor] = {
        "without a batch axis": images[0],
        "with four channels": images[:, [0, 1, 2, 0]],
        "of whole numbers": (255 * images).byte(),
        "in [0, 255]": 255 * images,
        "with a NaN": images.clone().index_fill(3, torch.tensor([5]), torch.nan),
    }
    for what, given in wrong.items():
        try:
            source.logits(given)
        except (TypeError, ValueError):
            continue
        raise AssertionError(f"images {what} must raise ValueError or TypeError; they did not.")


def _check_interruptions(source: LogitsSource) -> None:
    """Check that an exception at the start, the middle and the end leaves no trace."""
    modules = modules_of(source)
    if not modules:
        return

    def run() -> None:
        source.logits(_images(1, 48, 80))

    called = calls_of(modules, run)
    demand(bool(called), "a source must use the model that it holds; none of its parts was called.")
    for place in sorted({0, len(called) // 2, len(called) - 1}):
        with left_as_found(modules, "after an exception in the middle"):
            interrupt(called[place], run)
        run()


def _images(B: int, H: int, W: int) -> Tensor:
    """Make smooth, different images, so that the scores are not those of noise."""
    generator = torch.Generator().manual_seed(H * W)
    coarse = torch.rand(B, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (H, W), mode="bilinear")
    return (smooth + 0.1 * torch.rand(B, 3, H, W, generator=generator)).clamp(0, 1)


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


def _settings() -> tuple[object, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        tuple(torch.get_rng_state().tolist()),
    )
