"""How much memory is free."""

from pathlib import Path

import torch

# What a container may use and uses, in versions 2 and 1 of Linux's control groups.
GROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Return the bytes that can be taken on `device` without swapping; 0 where nobody tells.

    Args:
        device: of any type.
        root: where Linux has its `proc` and `sys`.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return 0
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    for limit, usage in GROUPS:
        try:
            most, used = ((root / "sys/fs/cgroup" / name).read_text() for name in (limit, usage))
        except OSError:
            continue
        if most.strip() != "max":
            free.append(max(0, int(most) - int(used)))
    return min(free, default=0)
