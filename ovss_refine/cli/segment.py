"""The command `segment`: its words.

Torch is imported only once there is work to do.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ovss_refine.cli.evaluate import add_source_option
from ovss_refine.config import RefineConfig

EPILOG = """examples:
  ovss-refine segment cat.jpg --labels "cat, sofa, background: wall/floor" --out results
  ovss-refine segment 'photos/**/*.jpg' --labels-file labels.txt --baseline --out results
"""


def add_segment(
    commands: Any,  # argparse does not name the type of what `add_subparsers` returns
    add_config_flags: Callable[[argparse.ArgumentParser], None],
    config_of: Callable[[argparse.Namespace], RefineConfig],
) -> None:
    """Add the command.

    Args:
        commands: what `add_subparsers` gave.
        add_config_flags: adds a flag for every option of the refinement.
        config_of: makes the options from parsed words.
    """
    segment = commands.add_parser(
        "segment",
        help="segment your own pictures by labels",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Segment pictures by labels. Goes on where an earlier run with the same settings was\n"
            "stopped, and past files that are broken: they are listed at the end, with status 1."
        ),
        epilog=EPILOG,
    )
    segment.set_defaults(run=lambda args: _segment(args, config_of(args)))
    segment.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="pictures, folders of them, or quoted patterns such as 'photos/**/*.jpg'",
    )
    _add_labels(segment)
    _add_sources(segment)
    _add_files(segment)
    _add_work(segment)
    add_config_flags(segment)


def _add_labels(target: argparse.ArgumentParser) -> None:
    group = target.add_argument_group("labels").add_mutually_exclusive_group(required=True)
    group.add_argument(
        "--labels",
        metavar="TEXT",
        help='such as "cat, dog/puppy, background: wall/floor/sky"',
    )
    group.add_argument("--labels-file", type=Path, metavar="TXT", help="the same, one class a line")


def _add_sources(target: argparse.ArgumentParser) -> None:
    group = target.add_argument_group("sources")
    for kind, default in (("logits", "kk-mean"), ("attention", "dinov2-b14-reg")):
        group.add_argument(
            f"--{kind}",
            default=default,
            metavar="SOURCE",
            help=f"one that `ovss-refine sources` lists (default: {default})",
        )
        add_source_option(group, kind)
    group.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")
    group.add_argument(
        "--models-dir",
        type=Path,
        metavar="DIR",
        help="where models are kept (default: the cache of Hugging Face)",
    )


def _add_files(target: argparse.ArgumentParser) -> None:
    group = target.add_argument_group("results")
    group.add_argument(
        "--out", type=Path, metavar="DIR", required=True, help="folder for the results"
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="do again what is finished; needed where settings differ from an earlier run's",
    )
    group.add_argument(
        "--baseline",
        action="store_true",
        help="write what the scores say without refinement too, and both side by side",
    )
    group.add_argument("--masks", action="store_true", help="write a mask of every class")
    group.add_argument("--maps", action="store_true", help="draw the discrepancy maps too")
    group.add_argument(
        "--rle",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write the masks as COCO run lengths (default: yes)",
    )


def _add_work(target: argparse.ArgumentParser) -> None:
    group = target.add_argument_group("work")
    group.add_argument(
        "--batch-size", type=int, default=1, metavar="B", help="pictures at a time (default: 1)"
    )
    group.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="larger pictures are refused (default: 50 million)",
    )


def _segment(args: argparse.Namespace, config: RefineConfig) -> int:
    from ovss_refine.labels import parse_labels, read_labels

    text: str | None = args.labels
    labels = read_labels(args.labels_file) if text is None else parse_labels(text)
    from ovss_refine.images.read import MAX_PIXELS
    from ovss_refine.segment.outputs import Kinds
    from ovss_refine.segment.run import Request, run_segment

    return run_segment(
        Request(
            images=tuple(args.images),
            labels=labels,
            out=args.out,
            logits=args.logits,
            attention=args.attention,
            logits_options=dict(args.logits_option),
            attention_options=dict(args.attention_option),
            config=config,
            kinds=Kinds(baseline=args.baseline, rle=args.rle, masks=args.masks, maps=args.maps),
            overwrite=args.overwrite,
            batch_size=args.batch_size,
            max_pixels=MAX_PIXELS if args.max_pixels is None else args.max_pixels,
            device=None if args.device == "auto" else args.device,
            models_dir=args.models_dir,
        )
    )
