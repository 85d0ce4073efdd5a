"""The processes that share a list of images: one, or several under torchrun.

Of K processes, each takes every K-th image of a common list, so that no image is padded, dropped or
computed twice.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from ovss_refine.registry import require
from ovss_refine.sources.device import resolve_device

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The group of processes, as one of them sees it."""

    rank: int  # number of this process; process 0 reports
    world: int  # number of processes
    device: torch.device  # where this process computes
    state: Any = None  # accelerate's state of the group; None for a single process

    @property
    def leads(self) -> bool:
        """Whether this process is the one that prepares the folder and reports."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's share of a list that is the same in all processes."""
        return items[self.rank :: self.world]

    def gather(self, items: Sequence[T]) -> list[T]:
        """Return the items of all processes, by rank; waits until all have reached this call."""
        if self.state is None:
            return list(items)
        gathered: list[T] = require("accelerate.utils", "eval").gather_object(list(items))
        return gathered

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def leave(self) -> None:
        """Leave the group."""
        if self.state is not None:
            self.state.destroy_process_group()


def world_size() -> int:
    """Return how many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(device: str = "auto") -> ProcessGroup:
    """Join the group of processes that torchrun's environment variables describe.

    Args:
        device: "auto" (a GPU for each process, if there are GPUs), "cpu", or, for a single process,
            the name of a device.

    Raises:
        ModuleNotFoundError: under torchrun without accelerate.
        ValueError: if several processes are given one device, or it is unknown or unavailable.
        RuntimeError: if accelerate does not find the other processes.
    """
    world = world_size()
    if world == 1:
        return ProcessGroup(0, 1, resolve_device(device))
    if device not in ("auto", "cpu"):
        raise ValueError(f"`device` must be 'auto' or 'cpu' for {world} processes; got {device!r}.")
    accelerate = require("accelerate", "eval")
    # Without `cpu`, accelerate treats processes without a GPU as single ones.
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    # The fastest process may wait for the slowest far longer than the default of 10 to 30 minutes.
    state = accelerate.PartialState(cpu=on_cpu, timeout=timedelta(days=7))
    if state.num_processes != world:
        raise RuntimeError(
            f"accelerate must join {world} processes; got {state.num_processes}. Check the "
            "environment variables that begin with ACCELERATE_."
        )
    return ProcessGroup(state.process_index, state.num_processes, state.device, state)
