"""The command `segment`. Torch is imported only once there are labels to segment by."""

import argparse
from typing import Any

from ovss_refine.cli.flags import add_command, add_flags, request_of
from ovss_refine.labels import parse_labels, read_labels
from ovss_refine.segment.request import SegmentRequest

EPILOG = """examples:
  ovss-refine segment cat.jpg --labels "cat, sofa, background: wall/floor" --out results
  ovss-refine segment 'photos/**/*.jpg' --labels-file labels.txt --baseline --out results
"""


def add_segment(commands: Any) -> None:
    """Add the command to what `add_subparsers` returned."""
    segment = add_command(
        commands,
        "segment",
        _run,
        help="segment your own images by labels",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Segment images by labels. Resumes an interrupted run with the same settings. Skips\n"
            "broken files: they are listed at the end, and the exit status is 1. Under torchrun,\n"
            "the processes share the images."
        ),
        epilog=EPILOG,
    )
    labels = segment.add_argument_group("labels").add_mutually_exclusive_group(required=True)
    labels.add_argument(
        "--labels", metavar="TEXT", help='such as "cat, dog/puppy, background: wall/floor/sky"'
    )
    labels.add_argument("--labels-file", metavar="TXT", help="the same, one class a line")
    add_flags(segment, SegmentRequest)


def _run(args: argparse.Namespace) -> int:
    text: str | None = args.labels
    labels = read_labels(args.labels_file) if text is None else parse_labels(text)
    request = request_of(args, SegmentRequest, labels=labels)
    from ovss_refine.segment.run import run_segment

    return run_segment(request)
