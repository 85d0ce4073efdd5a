"""What a results folder was made with: kept beside the results, compared before more are added."""

import datetime
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ovss_refine.folders.files import write_whole

NAME = "manifest.json"
PACKAGES = (
    "ovss-refine",
    "torch",
    "numpy",
    "pillow",
    "timm",
    "open_clip_torch",
    "diffusers",
    "transformers",
    "accelerate",
)


def digest(settings: Mapping[str, Any]) -> str:
    """Hash settings, so that a folder can be named after them."""
    text = json.dumps(plain(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_writable(name: str, folder: Path) -> None:
    """See that files can be written into a folder, made already or not; nothing is left there.

    Args:
        name: what the folder is called in messages.
        folder: where files are to be written.

    Raises:
        FileExistsError: if the folder, or one that it would lie in, is a file.
        OSError: if nothing can be written there.
    """
    try:
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not there.is_dir():
            raise FileExistsError(f"{name} must be a folder; `{there}` is a file.")
        with tempfile.TemporaryFile(dir=there):
            pass
    except FileExistsError:
        raise
    except OSError as err:
        raise OSError(
            f"{name} must be a folder that can be written; `{folder}`: {err.strerror}."
        ) from err


def prepare(out: Path, settings: Mapping[str, Any], started: Mapping[str, Any]) -> None:
    """Make a results folder, or see that an older one is of the same settings; note this start.

    Args:
        out: the folder.
        settings: all that the numbers depend on.
        started: what else is worth knowing of this start.

    Raises:
        ValueError: if the folder was made with other settings, naming them; or is not one of
            results.
        FileExistsError: if `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"`out` must be a folder; `{out}` is a file.")
    path, wanted = out / NAME, plain(settings)
    starts: list[Any] = []
    if path.is_file():
        before = _read(path)
        compare(out, before["settings"], wanted)
        starts = before["starts"]
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(
            f"`out` must be a new folder, or one with `{NAME}`; `{out}` has other files."
        )
    out.mkdir(parents=True, exist_ok=True)
    content = {"settings": wanted, "starts": [*starts, plain(started)]}
    write_whole(path, lambda file: file.write(json.dumps(content, indent=1).encode() + b"\n"))


def compare(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError naming the settings that differ, if any do."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if not keys:
        return
    shown = "; ".join(
        f"{key} was {_short(before.get(key))}, is {_short(now.get(key))}" for key in keys
    )
    raise ValueError(
        f"`out` must be a folder of the same settings; in `{out}` {shown}. Take another folder."
    )


def environment(command: Sequence[str] | None = None) -> dict[str, Any]:
    """Describe this start: command line, versions, machine, time."""
    return {
        "command": list(sys.argv if command is None else command),
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
    """Turn a value into what JSON gives back, so that it can be compared with what was read."""
    return json.loads(json.dumps(value, default=str))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["settings"], dict) or not isinstance(content["starts"], list):
            raise KeyError
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"`{path}` must be the manifest of an evaluation; it is damaged."
        ) from None
    return dict(content)


def _short(value: object) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
