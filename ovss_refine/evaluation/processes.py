"""The processes that share one evaluation, alone or under torchrun.

Every process takes each K-th image of one common list, so that nothing is padded, dropped or done
twice, whatever the number of images.
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
# The slowest process may have that much more to do than the fastest; the default of ten to thirty
# minutes is less than an evaluation.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """One process among those that share the work.

    Attributes:
        rank: number of this process, 0 for the one that reports.
        world: number of processes.
        device: where this process computes.
        state: what accelerate keeps of the others; None for a process alone.
    """

    rank: int
    world: int
    device: torch.device
    state: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process prepares the folder and reports."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's part of a list that all have alike."""
        return items[self.rank :: self.world]

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def leave(self) -> None:
        """Take leave of the other processes."""
        if self.state is not None:
            self.state.destroy_process_group()


def join(device: str = "auto") -> ProcessGroup:
    """Find out, from what torchrun says in the environment, who shares the work.

    Args:
        device: "auto" (a GPU of its own for each process where there is one), "cpu", or a
            device's name for a process alone.

    Raises:
        ModuleNotFoundError: under torchrun without accelerate.
        ValueError: if several processes are given one device, torch does not know it, or there is
            no such GPU.
        RuntimeError: if accelerate does not find the other processes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return ProcessGroup(0, 1, resolve_device(device))
    if device not in ("auto", "cpu"):
        raise ValueError(f"`device` must be 'auto' or 'cpu' for {world} processes; got {device!r}.")
    accelerate = require("accelerate", "eval")
    # Left to itself, accelerate takes processes without a GPU for single ones.
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = accelerate.PartialState(cpu=on_cpu, timeout=PATIENCE)
    if state.num_processes != world:
        raise RuntimeError(
            f"accelerate must join {world} processes; got {state.num_processes}. The environment "
            "variables that begin with ACCELERATE_ may say otherwise."
        )
    return ProcessGroup(state.process_index, state.num_processes, state.device, state)
