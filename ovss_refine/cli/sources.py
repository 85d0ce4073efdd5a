"""The command `sources`."""

from typing import Any

from ovss_refine.cli.flags import add_command
from ovss_refine.sources.listing import list_sources


def add_sources(commands: Any) -> None:
    """Add the command to what `add_subparsers` returned."""
    add_command(
        commands,
        "sources",
        lambda _: print(list_sources()),
        help="list the sources of attention and logits",
        description="List the sources of attention and logits, their licences and sizes.",
    )
