"""The command `ovss-refine`: reads the words, leaves the work to `commands`.

Torch is imported only once there is work to do, so that `--help` answers at once.
"""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ovss_refine import __version__
from ovss_refine.cli.app import add_app
from ovss_refine.cli.evaluate import add_commands as add_evaluation
from ovss_refine.cli.segment import add_segment
from ovss_refine.config import RefineConfig

DEMO_OUT = Path("ovss-refine-demo")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or what it returns, or 2 after saying what was wrong.

    Args:
        argv: the words; None: those of the process, whose streams are then made to take any text.
    """
    if argv is None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # names that it has no letters for
    args = parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            status = args.run(args) or 0
            sys.stdout.flush()
            return status
        except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except (OSError, TypeError, ValueError, ModuleNotFoundError) as err:
            print(f"ovss-refine: error: {err}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("ovss-refine: stopped", file=sys.stderr)
            return 130


def parser() -> argparse.ArgumentParser:
    """Describe the words of the command line."""
    top = argparse.ArgumentParser(
        prog="ovss-refine",
        allow_abbrev=False,
        description="Refine the scores of any open-vocabulary segmenter, without training.",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="refine the built-in example photographs", allow_abbrev=False
    )
    demo.set_defaults(run=_demo)
    _add_output(demo, default=DEMO_OUT)

    refine = commands.add_parser(
        "refine",
        help="refine your own logits",
        allow_abbrev=False,
        description="Refine logits with attention. With folders, files pair by their stem.",
    )
    refine.set_defaults(run=_refine)
    path: dict[str, Any] = {"type": Path, "metavar": "PATH", "required": True}
    refine.add_argument("--image", help="a picture or a folder of them", **path)
    refine.add_argument(
        "--logits",
        help=".npz file or folder; `logits` [K, h, w], optional `prompt_index` [K]",
        **path,
    )
    refine.add_argument(
        "--attention",
        help=".npz file or folder; `attention` [N, N] or `features` [C, h, w]",
        **path,
    )
    refine.add_argument(
        "--temperature",
        type=float,
        default=0.05,
        help="of the affinity made from `features`, > 0 (default: %(default)s)",
    )
    refine.add_argument("--labels", type=Path, help="class names, one a line", metavar="TXT")
    refine.add_argument("--maps", action="store_true", help="draw the discrepancy maps too")
    _add_output(refine)
    add_config_flags(refine)

    sources = commands.add_parser(
        "sources",
        help="list the sources of attention and logits",
        allow_abbrev=False,
        description="List the sources of attention and logits, with licence, size and needs.",
    )
    sources.set_defaults(run=_sources)

    add_segment(commands, add_config_flags, config_of)
    add_evaluation(commands, add_config_flags, config_of)
    add_app(commands)
    return top


def add_config_flags(target: argparse.ArgumentParser) -> None:
    """Add a flag for every field of `RefineConfig`, with its default and help."""
    group = target.add_argument_group("refinement")
    hints = get_type_hints(RefineConfig)
    for field in fields(RefineConfig):
        flag, hint = "--" + field.name.replace("_", "-"), hints[field.name]
        text = f"{field.metadata['help']} (default: {field.default})"
        if hint is bool:
            group.add_argument(flag, action="store_true", help=field.metadata["help"])
        elif get_origin(hint) is Literal:
            group.add_argument(flag, choices=get_args(hint), default=field.default, help=text)
        elif hint in (int, float):
            group.add_argument(
                flag, type=hint, default=field.default, help=text, metavar=hint.__name__.upper()
            )
        else:
            group.add_argument(flag, type=_background, help=text, metavar="INDEX,THRESHOLD")


def config_of(args: argparse.Namespace) -> RefineConfig:
    """Make the options from parsed words.

    Raises:
        ValueError: on an option out of range.
    """
    return RefineConfig(**{field.name: getattr(args, field.name) for field in fields(RefineConfig)})


def _background(text: str) -> tuple[int, float]:
    try:
        index, threshold = text.split(",")
        return int(index), float(threshold)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be INDEX,THRESHOLD such as 0,0.4; got {text!r}"
        ) from None


def _add_output(target: argparse.ArgumentParser, default: Path | None = None) -> None:
    says = f" (default: {default})" if default else ""
    target.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=default,
        required=default is None,
        help=f"folder for the results{says}",
    )
    target.add_argument("--overwrite", action="store_true", help="replace results that exist")


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"ovss-refine: warning: {message}", file=sys.stderr)


def _demo(args: argparse.Namespace) -> None:
    from ovss_refine.cli.refine import run_demo

    run_demo(args.out, overwrite=args.overwrite)


def _sources(_: argparse.Namespace) -> None:
    from ovss_refine.sources.listing import list_sources

    print(list_sources())


def _refine(args: argparse.Namespace) -> None:
    config = config_of(args)
    from ovss_refine.cli.refine import run_refine

    run_refine(
        image=args.image,
        logits=args.logits,
        attention=args.attention,
        labels=args.labels,
        temperature=args.temperature,
        config=config,
        maps=args.maps,
        out=args.out,
        overwrite=args.overwrite,
    )
