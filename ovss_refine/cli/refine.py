"""The commands `refine` and `demo`. Torch is imported only once there is work to do."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovss_refine.checks import SCALES, check_number, number_range
from ovss_refine.cli.flags import add_command, request_of
from ovss_refine.config import RefineConfig

PATH = {"metavar": "PATH"}
OUT = {"metavar": "DIR", "help": "folder for the results"}
OVERWRITE = {"help": "replace results that exist"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRequest:
    """Where the results of `demo` go."""

    out: Path = field(default=Path("ovss-refine-demo"), metadata=OUT)
    overwrite: bool = field(default=False, metadata=OVERWRITE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineRequest:
    """Which files to refine, and how. `help` documents the fields.

    Raises:
        ValueError: on a temperature out of range.
    """

    image: Path = field(metadata=PATH | {"help": "an image or a folder of them"})
    logits: Path = field(
        metadata=PATH
        | {"help": ".npz file or folder; `logits` [K, h, w], optional `prompt_index` [K]"}
    )
    attention: Path = field(
        metadata=PATH
        | {
            "help": ".npz file or folder; `attention` [N, N] with optional `grid` [2], or "
            "`features` [C, h, w]"
        }
    )
    temperature: float = field(
        default=0.05,
        metadata={"help": f"of the affinity made from `features`, {number_range(*SCALES)}"},
    )
    labels: Path | None = field(
        default=None, metadata={"metavar": "TXT", "help": "class names, one a line"}
    )
    maps: bool = field(default=False, metadata={"help": "draw the discrepancy maps too"})
    out: Path = field(metadata=OUT)
    overwrite: bool = field(default=False, metadata=OVERWRITE)
    config: RefineConfig = field(default_factory=RefineConfig, metadata={"group": "refinement"})

    def __post_init__(self) -> None:
        """Check the temperature."""
        check_number("temperature", self.temperature, *SCALES)


def add_demo(commands: Any) -> None:
    """Add the command `demo` to what `add_subparsers` returned."""
    add_command(
        commands, "demo", _demo, DemoRequest, help="refine the built-in example photographs"
    )


def add_refine(commands: Any) -> None:
    """Add the command `refine` to what `add_subparsers` returned."""
    add_command(
        commands,
        "refine",
        _refine,
        RefineRequest,
        help="refine your own logits",
        description="Refine logits with attention. Files in folders are matched by their stems.",
    )


def _demo(args: argparse.Namespace) -> None:
    from ovss_refine.cli.demo import run_demo

    run_demo(request_of(args, DemoRequest))


def _refine(args: argparse.Namespace) -> None:
    request = request_of(args, RefineRequest)
    from ovss_refine.cli.refine_files import run_refine

    run_refine(request)
