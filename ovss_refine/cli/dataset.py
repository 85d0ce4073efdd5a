"""The commands `dataset check` and `dataset convert`, and the flags that name a data set."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovss_refine.cli.flags import add_command, request_of
from ovss_refine.evaluation import CONVERSIONS
from ovss_refine.evaluation.dataset import FOLDER, list_datasets, load_from

_NAMED = list_datasets()
DATASET: dict[str, Any] = {"choices": _NAMED, "metavar": "NAME", "help": ", ".join(_NAMED)}
NAMES: dict[str, Any] = {
    "metavar": "TXT",
    "help": f"class names of `{FOLDER}`, one a line (default: names.txt in the root)",
}
FIRST_IS_IGNORED: dict[str, Any] = {
    "help": f"for `{FOLDER}`: 0 in the masks is not labelled, and 1 is the first class"
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """Which data set to check."""

    name: str = field(metadata={"positional": True, **DATASET})
    root: Path = field(
        metadata={"positional": True, "metavar": "ROOT", "help": "where the data set is"}
    )
    names: Path | None = field(default=None, metadata=NAMES)
    first_is_ignored: bool = field(default=False, metadata=FIRST_IS_IGNORED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertRequest:
    """Which label maps to convert."""

    name: str = field(
        metadata={
            "positional": True,
            "choices": CONVERSIONS,
            "metavar": "NAME",
            "help": ", ".join(CONVERSIONS),
        }
    )
    source: Path = field(
        metadata={"positional": True, "metavar": "SOURCE", "help": "folder of the published maps"}
    )
    target: Path = field(
        metadata={"positional": True, "metavar": "TARGET", "help": "folder for the results"}
    )
    names: Path | None = field(
        default=None,
        metadata={
            "metavar": "TXT",
            "help": "for context: the release's list of labels, 'number: name' a line",
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "replace results that exist"})


def add_dataset(commands: Any) -> None:
    """Add the commands to what `add_subparsers` returned."""
    dataset = commands.add_parser(
        "dataset", help="check or convert a data set", allow_abbrev=False
    ).add_subparsers(required=True, metavar="COMMAND")
    add_command(dataset, "check", _check, CheckRequest, help="check every file of a data set")
    add_command(dataset, "convert", _convert, ConvertRequest, help="convert published label maps")


def _check(args: argparse.Namespace) -> None:
    request = request_of(args, CheckRequest)
    dataset = load_from(request.name, request.root, request.names, request.first_is_ignored)
    from ovss_refine.evaluation.check import check, expected, report

    try:
        found = check(dataset, request.root)
    except (FileNotFoundError, ValueError):
        print(expected(dataset))
        raise
    print(report(found, dataset))
    if found.problems:
        raise ValueError(
            f"`root` must hold {dataset.name} without a problem; got {len(found.problems)}."
        )


def _convert(args: argparse.Namespace) -> None:
    request = request_of(args, ConvertRequest)
    from ovss_refine.evaluation.convert import conversion, convert

    how = conversion(request.name, request.names)
    count = convert(how, request.source, request.target, overwrite=request.overwrite)
    print(f"{count} maps converted into {request.target}")
