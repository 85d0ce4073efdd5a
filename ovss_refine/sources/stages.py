"""The stages of a segmentation: announced when they begin, and timed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

OnStage = Callable[[str], object]


class Stages:
    """Times the stages of one batch on a device, and calls `on_stage` when one begins.

    Attributes:
        seconds: of each stage so far, by its name.
    """

    def __init__(self, device: torch.device, on_stage: OnStage | None) -> None:
        """Start with no stage."""
        self.device, self.on_stage = device, on_stage
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Announce the stage `name` and time the body; the device is synchronised at its end."""
        if self.on_stage is not None:
            self.on_stage(name)
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] = time.perf_counter() - start


def announce_loading(on_stage: OnStage | None) -> Callable[[], object]:
    """Return what a source calls before it is loaded."""
    return lambda: None if on_stage is None else on_stage("loading")
