"""Settings in a form that can be compared and hashed; the environment of a run."""

import datetime
import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    *("ovss-refine", "torch", "numpy", "pillow", "timm", "open_clip_torch"),
    *("diffusers", "transformers", "accelerate"),
)


def digest(settings: Mapping[str, Any]) -> str:
    """Hash settings to eight hexadecimal digits, for the name of a folder."""
    text = json.dumps(plain(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def environment() -> dict[str, Any]:
    """Describe this run: command line, versions, machine, time."""
    return {
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def plain(value: Any) -> Any:
    """Return a value as it is read back from JSON."""
    return json.loads(json.dumps(value, default=str))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
