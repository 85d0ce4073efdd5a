"""The command `ovss-refine`: assembles the commands, prints warnings and errors.

Each command imports torch only when there is work to do, so that `--help` answers at once.
"""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence

from ovss_refine import __version__
from ovss_refine.cli.app import add_app
from ovss_refine.cli.dataset import add_dataset
from ovss_refine.cli.evaluate import add_evaluate
from ovss_refine.cli.refine import add_demo, add_refine
from ovss_refine.cli.reproduce import add_reproduce
from ovss_refine.cli.segment import add_segment
from ovss_refine.cli.sources import add_sources

NO_MEMORY = "the inputs must fit in memory; got no more of it."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its status, or 2 after printing an error.

    Args:
        argv: the arguments; None: those of the process, whose streams are then set to accept any
            text.
    """
    if argv is None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # characters that it cannot encode
    args = parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(args)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="ovss-refine",
        allow_abbrev=False,
        description="Refine the logits of any open-vocabulary segmenter, without training.",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_demo, add_refine, add_sources, add_segment, add_evaluate):
        add(commands)
    add_reproduce(commands)
    add_dataset(commands)
    add_app(commands)
    return top


def _run(args: argparse.Namespace) -> int:
    try:
        status: int = args.run(args) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, TypeError, ValueError, MemoryError, ModuleNotFoundError) as err:
        print(f"ovss-refine: error: {str(err) or NO_MEMORY}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ovss-refine: stopped", file=sys.stderr)
        return 130


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"ovss-refine: warning: {message}", file=sys.stderr)
