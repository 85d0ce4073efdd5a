"""What both conformance suites check, whatever the shape of a result.

Each promise is worded for results in the plural: "the maps", "the logits".
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ovss_refine.testing.models import (
    HALF_TOLERANCE,
    ORDER_TOLERANCE,
    SIZES,
    check_interruptions,
    check_refusals,
    demand,
    left_as_found,
    modules_of,
    settings_left_alone,
    smooth_images,
)

R = TypeVar("R")
SIZE = SIZES[1]


@dataclass(frozen=True, slots=True)
class Suite(Generic[R]):
    """The checks that do not depend on the kind of source.

    Attributes:
        what: the results, for messages.
        method: name of the source's method.
        returns: type of a result.
        held: the tensors of a result.
        values: what is compared of a result: [B, ...], in the dtype in which it is held.
    """

    what: str
    method: str
    returns: type[R]
    held: Callable[[R], Iterable[Tensor]]
    values: Callable[[R], Tensor]

    def check(self, source: object, check_results: Callable[[list[R]], None]) -> None:
        """Check a source; `check_results` checks what it returns for two images of each size."""
        run: Callable[[Tensor], R] | None = getattr(source, self.method, None)
        if run is None:
            kind = type(source).__name__
            raise AssertionError(f"a source must have a method `{self.method}`; {kind} has none.")
        with left_as_found(modules_of(source), "after its use"):
            with settings_left_alone():
                check_results([self._result(run, size) for size in SIZES])
            self._check_repeatable(run)
            self._check_autocast(source, run)
            self._check_batch(run)
            self._check_types(run)
            check_refusals(run)
            self._check_uint8(run)
        check_interruptions(source, lambda: run(smooth_images(1, *SIZE)))

    def _result(self, run: Callable[[Tensor], R], size: tuple[int, int]) -> R:
        """Check type, device and gradient of a result, and that the images are left alone."""
        images = smooth_images(2, *size).requires_grad_()
        before = images.detach().clone()
        result = run(images)
        demand(
            isinstance(result, self.returns),
            f"`{self.method}` must return `{self.returns.__name__}`; got {type(result).__name__}.",
        )
        for held in self.held(result):
            demand(
                held.device == images.device,
                f"{self.what} must be on the images' device {images.device}; got {held.device}.",
            )
            demand(not held.requires_grad, f"{self.what} must carry no gradient; got one.")
        demand(torch.equal(images, before), "`images` must not be changed; they were.")
        return result

    def _check_repeatable(self, run: Callable[[Tensor], R]) -> None:
        """Check that a result depends on the images, and on nothing else."""
        images = smooth_images(2, *SIZE)
        first = self.values(run(images))
        self._demand_equal(first, run(images), "be the same in a second call")
        with torch.random.fork_rng(devices=[]):
            torch.rand(7)
            self._demand_equal(first, run(images), "not depend on random numbers")
        demand(
            not torch.equal(first[0], first[1]),
            f"{self.what} of different images must differ; they are equal.",
        )

    def _check_autocast(self, source: object, run: Callable[[Tensor], R]) -> None:
        """Check that autocast, on the images' device and the modules', changes nothing."""
        images = smooth_images(1, *SIZE)
        wanted = self.values(run(images))
        parameters = [p for module in modules_of(source) for p in module.parameters()]
        for dtype in (torch.bfloat16, torch.float16):
            with ExitStack() as stack:
                for device in {x.device.type for x in (images, *parameters)}:
                    stack.enter_context(torch.autocast(device, dtype=dtype))
                result = run(images)
            self._demand_equal(wanted, result, f"not depend on autocast to {dtype}")

    def _check_batch(self, run: Callable[[Tensor], R]) -> None:
        images = smooth_images(3, *SIZE)
        together = self.values(run(images))
        for b in range(3):
            promise = "not depend on the rest of the batch"
            self._demand_equal(together[b : b + 1], run(images[b : b + 1]), promise)

    def _check_types(self, run: Callable[[Tensor], R]) -> None:
        images = smooth_images(1, *SIZE)
        wanted = self.values(run(images))
        for dtype, tolerance in ((torch.float64, ORDER_TOLERANCE), (torch.float16, HALF_TOLERANCE)):
            promise = f"not depend on the images' type, {dtype}"
            self._demand_equal(wanted, run(images.to(dtype)), promise, tolerance)

    def _check_uint8(self, run: Callable[[Tensor], R]) -> None:
        images = (255 * smooth_images(1, *SIZE)).byte()
        wanted = self.values(run(images / 255))
        try:
            got = run(images)
        except (TypeError, ValueError):
            return  # a source need not take uint8
        self._demand_equal(wanted, got, "be those of the images / 255 where uint8 is accepted")

    def _demand_equal(
        self, one: Tensor, result: R, promise: str, tolerance: float = ORDER_TOLERANCE
    ) -> None:
        two = self.values(result)
        demand(
            one.shape == two.shape,
            f"{self.what} must {promise}; got shapes {list(one.shape)} and {list(two.shape)}.",
        )
        demand(one.dtype == two.dtype, f"{self.what} must {promise}; got {one.dtype}, {two.dtype}.")
        tolerance = max(tolerance, 2 * torch.finfo(one.dtype).eps)  # rounding, if held in half
        gap = float((one.float() - two.float()).abs().max() / one.float().abs().max())
        demand(
            gap <= tolerance,
            f"{self.what} must {promise}; got a difference of {gap:.1e} of the largest value.",
        )


def check_grid(grid: Iterable[int], size: tuple[int, int]) -> None:
    """Check that a grid is taller than wide, or wider than tall, only as its images are."""
    (h, w), (H, W) = grid, size
    demand(
        (h - w) * (H - W) >= 0,
        f"the grid must have the orientation of the image, (rows, columns); got {(h, w)} for "
        f"{H} x {W}.",
    )
