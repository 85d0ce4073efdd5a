"""The commands `evaluate`, `reproduce`, `dataset check` and `dataset convert`: their words.

Torch is imported only once there is work to do.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovss_refine.cli.reproduce import add_reproduce, reproduced
from ovss_refine.config import RefineConfig
from ovss_refine.evaluation import CONVERSIONS, ROWS
from ovss_refine.evaluation.dataset import FOLDER, list_datasets, load_dataset

if TYPE_CHECKING:
    from ovss_refine.evaluation.inputs import Chosen

Commands = Any  # argparse does not name the type of what `add_subparsers` returns


def add_commands(
    commands: Commands,
    add_config_flags: Callable[[argparse.ArgumentParser], None],
    config_of: Callable[[argparse.Namespace], RefineConfig],
) -> None:
    """Add the commands.

    Args:
        commands: what `add_subparsers` gave.
        add_config_flags: adds a flag for every option of the refinement.
        config_of: makes the options from parsed words.
    """
    evaluate = commands.add_parser(
        "evaluate",
        help="compare baseline and refined on a data set",
        allow_abbrev=False,
        description=(
            "Compare baseline and refined by mIoU. Goes on where an earlier run with the same "
            "settings was stopped. Under torchrun, the processes share the images."
        ),
    )
    evaluate.set_defaults(run=lambda args: _evaluate(args, config_of(args)))
    _add_data(evaluate, "--dataset", "--root")
    _add_sources(evaluate)
    _add_protocol(evaluate)
    _add_work(evaluate)
    add_config_flags(evaluate)

    add_reproduce(commands).set_defaults(run=_reproduce)

    dataset = commands.add_parser(
        "dataset", help="check or convert a data set", allow_abbrev=False
    ).add_subparsers(required=True, metavar="COMMAND")
    check = dataset.add_parser("check", help="look at every file of a data set", allow_abbrev=False)
    check.set_defaults(run=_check)
    _add_data(check, "name", "root")
    _add_convert(dataset)


def _add_data(target: argparse.ArgumentParser, dataset: str, root: str) -> None:
    needed: dict[str, Any] = {"required": True} if dataset.startswith("--") else {}
    target.add_argument(
        dataset,
        choices=list_datasets(),
        help=f"{', '.join(list_datasets())}",
        metavar="NAME",
        **needed,
    )
    target.add_argument(root, type=Path, help="where the data set is", metavar="ROOT", **needed)
    target.add_argument(
        "--names",
        type=Path,
        metavar="TXT",
        help=f"class names of `{FOLDER}`, one a line (default: names.txt in the root)",
    )


def _add_sources(target: argparse.ArgumentParser) -> None:
    group = target.add_argument_group("sources")
    for kind, array in (("logits", "`logits`"), ("attention", "`attention` or `features`")):
        group.add_argument(
            f"--{kind}",
            required=True,
            metavar="SOURCE",
            help=f"name of a source, or npz:DIR with an array {array} in <image id>.npz",
        )
        add_source_option(group, kind)
    group.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")


def _add_protocol(target: argparse.ArgumentParser) -> None:
    group = target.add_argument_group("protocol")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    group.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        default=list(ROWS),
        metavar="ROW",
        help=f"some of {', '.join(ROWS)} (default: all)",
    )
    group.add_argument(
        "--prompts", metavar="FAMILY", help="family of class prompts (default: the method's)"
    )
    group.add_argument(
        "--probability-threshold",
        type=float,
        metavar="P",
        help="of the baseline: less is class 0 (default: the published one, or 0)",
    )
    group.add_argument(
        "--area-threshold",
        type=float,
        metavar="SHARE",
        help="of the baseline: smaller classes are dropped (default: the published one, or none)",
    )
    group.add_argument(
        "--drop-background",
        action="store_true",
        help="drop class 0 of the logits, for a data set without background",
    )


def _add_work(target: argparse.ArgumentParser) -> None:
    group = target.add_argument_group("work")
    group.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the results (default: one named after the settings)",
    )
    group.add_argument(
        "--on-error",
        choices=["skip", "stop"],
        default="stop",
        help="what to do about a file that cannot be read (default: %(default)s)",
    )
    group.add_argument(
        "--batch-size", type=int, default=1, metavar="B", help="images at a time (default: 1)"
    )
    group.add_argument(
        "--workers", type=int, default=2, metavar="N", help="threads that read (default: 2)"
    )
    group.add_argument(
        "--pictures", type=int, default=0, metavar="N", help="draw the first N images (default: 0)"
    )


def _add_convert(dataset: Commands) -> None:
    convert = dataset.add_parser("convert", help="convert published label maps", allow_abbrev=False)
    convert.set_defaults(run=_convert)
    convert.add_argument("name", choices=CONVERSIONS, help=", ".join(CONVERSIONS), metavar="NAME")
    convert.add_argument("source", type=Path, help="folder of the published maps", metavar="SOURCE")
    convert.add_argument("target", type=Path, help="folder for the results", metavar="TARGET")
    convert.add_argument(
        "--names",
        type=Path,
        metavar="TXT",
        help="for context: the release's list of labels, 'number: name' a line",
    )
    convert.add_argument("--overwrite", action="store_true", help="replace results that exist")


def add_source_option(target: Any, kind: str) -> None:
    """Add the flag for options of a source; `target` is a parser or a group of one."""
    target.add_argument(
        f"--{kind}-option",
        type=_option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of that source, may be repeated",
    )


def _option(text: str) -> tuple[str, Any]:
    """Read KEY=VALUE; the value as JSON where it is JSON, else as it stands."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE such as temperature=0.1; got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _names(args: argparse.Namespace, name: str) -> Path | None:
    own: Path | None = args.names
    return args.root / "names.txt" if name == FOLDER and own is None else own


def _evaluate(args: argparse.Namespace, config: RefineConfig) -> None:
    dataset = load_dataset(args.dataset, names=_names(args, args.dataset))
    from ovss_refine.evaluation.report import summary
    from ovss_refine.evaluation.run import Request, run_evaluate

    found = run_evaluate(
        Request(
            dataset=dataset,
            root=args.root,
            logits=_chosen(args.logits, args.logits_option),
            attention=_chosen(args.attention, args.attention_option),
            config=config,
            rows=tuple(args.rows),
            limit=args.limit,
            out=args.out,
            prompts=args.prompts,
            probability_threshold=args.probability_threshold,
            area_threshold=args.area_threshold,
            drop_background=args.drop_background,
            on_error=args.on_error,
            batch_size=args.batch_size,
            workers=args.workers,
            pictures=args.pictures,
            device=args.device,
        )
    )
    if found is not None:
        print(f"{summary(found)}\n\nclass by class: {found['out']}/results.md")


def _reproduce(args: argparse.Namespace) -> None:
    text = reproduced(args)
    if text is not None:
        print(text)


def _chosen(name: str, options: list[tuple[str, Any]]) -> "Chosen":
    from ovss_refine.evaluation.inputs import Chosen

    return Chosen(name, dict(options))


def _check(args: argparse.Namespace) -> None:
    dataset = load_dataset(args.name, names=_names(args, args.name))
    from ovss_refine.evaluation.check import check, expected, report

    try:
        found = check(dataset, args.root)
    except (FileNotFoundError, ValueError):
        print(expected(dataset))
        raise
    print(report(found, dataset))
    if found.problems:
        raise ValueError(
            f"`root` must hold {dataset.name} without a problem; got {len(found.problems)}."
        )


def _convert(args: argparse.Namespace) -> None:
    from ovss_refine.evaluation.convert import conversion, convert

    how = conversion(args.name, args.names)
    count = convert(how, args.source, args.target, overwrite=args.overwrite)
    print(f"{count} maps converted into {args.target}")
