"""How much memory is free, as Linux tells it."""

import pytest
import torch

from ovss_refine.tensors.memory import free_bytes

CPU = torch.device("cpu")


def write(root, **files):
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text("MemTotal: 900 kB\nMemFree: 1 kB\nMemAvailable: 500 kB\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 512000),
        ({"memory_DOT_max": "max\n", "memory_DOT_current": "100000\n"}, 512000),
        ({"memory_DOT_max": "300000\n", "memory_DOT_current": "100000\n"}, 200000),
        ({"memory_DOT_max": "300000\n", "memory_DOT_current": "400000\n"}, 0),
        (
            {
                "memory__memory_DOT_limit_in_bytes": "150000\n",
                "memory__memory_DOT_usage_in_bytes": "50000\n",
            },
            100000,
        ),
    ],
)
def test_the_smaller_of_machine_and_container(files, expected, tmp_path):
    write(tmp_path, **files)
    assert free_bytes(CPU, tmp_path) == expected


def test_nobody_tells(tmp_path):
    assert free_bytes(CPU, tmp_path) == 0
    assert free_bytes(torch.device("meta")) == 0
