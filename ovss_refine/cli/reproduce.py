"""The command `reproduce`: its words. Torch is imported only once there is work to do."""

import argparse
from pathlib import Path
from typing import Any

from ovss_refine.evaluation.dataset import FOLDER, list_datasets
from ovss_refine.reproduce import TABLES

ALL = "all"
OUT = Path("ovss-refine-reproduced")


def add_reproduce(commands: Any) -> argparse.ArgumentParser:
    """Add the command to what `add_subparsers` gave, and return it; `reproduced` does the work."""
    reproduce: argparse.ArgumentParser = commands.add_parser(
        "reproduce",
        help="measure the tables and curves of the paper",
        allow_abbrev=False,
        description=(
            "Measure a table of the paper with the weights and data sets that are found, and say "
            "what is missing for the rest. What has been measured is not measured again. Under "
            "torchrun, the processes share the images."
        ),
    )
    names = (*TABLES, ALL)
    reproduce.add_argument("table", choices=names, help=", ".join(names), metavar="TABLE")
    reproduce.add_argument(
        "--published", action="store_true", help="print what the paper has, and measure nothing"
    )
    reproduce.add_argument(
        "--plan", action="store_true", help="say what would be measured, and measure nothing"
    )
    _add_inputs(reproduce)
    _add_work(reproduce)
    return reproduce


def _add_inputs(target: argparse.ArgumentParser) -> None:
    group = target.add_argument_group("data sets and weights")
    group.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with one folder for each data set"
    )
    group.add_argument(
        "--root",
        type=_root,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="where one data set is, may be repeated",
    )
    group.add_argument(
        "--datasets", nargs="+", default=[], metavar="NAME", help="only these columns"
    )
    group.add_argument(
        "--models-dir",
        type=Path,
        metavar="DIR",
        help="folder with one folder for each of the weights (default: the hub's cache)",
    )
    group.add_argument(
        "--tiny",
        action="store_true",
        help="try the command with tiny random models: the numbers mean nothing",
    )


def _add_work(target: argparse.ArgumentParser) -> None:
    group = target.add_argument_group("work")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    group.add_argument(
        "--out", type=Path, default=OUT, metavar="DIR", help="folder (default: %(default)s)"
    )
    group.add_argument("--csv", type=Path, metavar="PATH", help="put the numbers here as well")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")
    group.add_argument(
        "--batch-size", type=int, default=1, metavar="B", help="images at a time (default: 1)"
    )
    group.add_argument(
        "--workers", type=int, default=2, metavar="N", help="threads that read (default: 2)"
    )
    group.add_argument(
        "--on-error",
        choices=["skip", "stop"],
        default="stop",
        help="what to do about a file that cannot be read (default: %(default)s)",
    )


def _root(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    known = [known for known in list_datasets() if known != FOLDER]
    if not equals or name not in known or not path:
        raise argparse.ArgumentTypeError(
            f"must be NAME=PATH, NAME one of {', '.join(known)}; got {text!r}"
        )
    return name, Path(path)


def reproduced(args: argparse.Namespace) -> str | None:
    """Do what was asked; return the text to print, or None in a process that does not lead."""
    names = TABLES if args.table == ALL else (args.table,)
    from ovss_refine.reproduce.run import Wanted, reproduce

    wanted = Wanted(
        tables=names,
        data=args.data,
        roots=dict(args.root),
        models_dir=args.models_dir,
        datasets=args.datasets,
        limit=args.limit,
        tiny=args.tiny,
        only_plan=args.plan,
        out=args.out,
        csv=args.csv,
        device=args.device,
        batch_size=args.batch_size,
        workers=args.workers,
        on_error=args.on_error,
    )
    if not args.published:
        return reproduce(wanted)
    if args.csv is not None:
        raise ValueError(
            "`csv` must be left out with `published`, which only prints; got "
            f"`{args.csv}`. `--plan` writes the published numbers into it as well."
        )
    from ovss_refine.reproduce.report import published_text
    from ovss_refine.reproduce.tables import book

    return published_text([book().tables[name] for name in names])
