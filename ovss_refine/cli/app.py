"""The command `app`. Gradio and torch are imported only once the page is served."""

import argparse
from typing import Any

from ovss_refine.app.request import AppRequest
from ovss_refine.cli.flags import add_command, request_of


def add_app(commands: Any) -> None:
    """Add the command to what `add_subparsers` returned."""
    add_command(
        commands,
        "app",
        _run,
        AppRequest,
        help="open a page: drop an image, type labels, see the result",
        description=(
            "Serve a page on this machine: drop an image, type labels, compare baseline and "
            "refined result. The built-in examples need no models. Ctrl-C stops it."
        ),
    )


def _run(args: argparse.Namespace) -> None:
    from ovss_refine.app.server import serve

    serve(request_of(args, AppRequest))
