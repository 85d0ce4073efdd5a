"""The command `reproduce`. Torch is imported only once there is work to do."""

import argparse
from typing import Any

from ovss_refine.cli.flags import add_flags, request_of
from ovss_refine.reproduce import TABLES
from ovss_refine.reproduce.request import ReproduceRequest

ALL = "all"


def add_reproduce(commands: Any) -> None:
    """Add the command to what `add_subparsers` returned."""
    reproduce = commands.add_parser(
        "reproduce",
        help="measure the tables and curves of the paper",
        allow_abbrev=False,
        description=(
            "Measure tables of the paper with the weights and data sets that are found, and list "
            "what is missing for the rest. Existing results are not measured again. Under "
            "torchrun, the processes share the images."
        ),
    )
    reproduce.set_defaults(run=_run)
    names = (*TABLES, ALL)
    reproduce.add_argument("table", choices=names, help=", ".join(names), metavar="TABLE")
    reproduce.add_argument(
        "--published", action="store_true", help="print the paper's numbers, and measure nothing"
    )
    add_flags(reproduce, ReproduceRequest)


def _run(args: argparse.Namespace) -> None:
    names = TABLES if args.table == ALL else (args.table,)
    request = request_of(args, ReproduceRequest, tables=names)
    if not args.published:
        from ovss_refine.reproduce.run import reproduce

        text = reproduce(request)
        if text is not None:
            print(text)
        return
    if request.csv is not None:
        raise ValueError(
            "`csv` must be left out with `published`, which only prints; got "
            f"`{request.csv}`. `--plan` writes the published numbers into it as well."
        )
    from ovss_refine.reproduce.layout import published_text
    from ovss_refine.reproduce.tables import load_tables

    print(published_text([load_tables().tables[name] for name in names]))
