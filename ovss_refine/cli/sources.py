"""The command `sources`."""

import argparse
from typing import Any

from ovss_refine.sources.listing import list_sources


def add_sources(commands: Any) -> None:
    """Add the command to what `add_subparsers` returned."""
    sources = commands.add_parser(
        "sources",
        help="list the sources of attention and logits",
        allow_abbrev=False,
        description="List the sources of attention and logits, with licence, size and needs.",
    )
    sources.set_defaults(run=_run)


def _run(_: argparse.Namespace) -> None:
    print(list_sources())
