"""The command `app`: its words. Gradio and torch are imported only once the page is served."""

import argparse
from pathlib import Path
from typing import Any

PORT = 7860
MAX_BYTES = 32_000_000
MAX_PIXELS = 16_000_000

Commands = Any  # argparse does not name the type of what `add_subparsers` returns


def add_app(commands: Commands) -> None:
    """Add the command to what `add_subparsers` gave."""
    app = commands.add_parser(
        "app",
        help="open a page: drop a photograph, type labels, look",
        allow_abbrev=False,
        description=(
            "Serve a page on this machine: drop a photograph, type labels, see baseline and "
            "refined side by side. Works at once with the built-in examples. Ctrl-C stops it."
        ),
    )
    app.set_defaults(run=_app)
    app.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; any other than the default lets others in (default: 127.0.0.1)",
    )
    app.add_argument(
        "--port",
        type=int,
        default=PORT,
        metavar="N",
        help=f"port to listen on; 0: any free one (default: {PORT})",
    )
    app.add_argument("--device", metavar="NAME", help="cpu, cuda ... (default: a GPU if there is)")
    app.add_argument(
        "--models-dir",
        type=Path,
        metavar="DIR",
        help="folder of weights, for machines without a network",
    )
    for name, default, what in (
        ("--max-bytes", MAX_BYTES, "bytes of an upload"),
        ("--max-pixels", MAX_PIXELS, "pixels of a picture"),
    ):
        app.add_argument(
            name,
            type=_count,
            default=default,
            metavar="N",
            help=f"most {what} (default: {default:_})",
        )
    app.add_argument("--no-browser", action="store_true", help="do not open a browser")


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return value


def _app(args: argparse.Namespace) -> None:
    from ovss_refine.app.server import serve

    serve(
        host=args.host,
        port=args.port,
        device=args.device,
        models_dir=args.models_dir,
        max_bytes=args.max_bytes,
        max_pixels=args.max_pixels,
        browser=not args.no_browser,
    )
