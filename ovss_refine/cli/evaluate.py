"""The command `evaluate`. Torch is imported only once there is a data set to evaluate on."""

import argparse
from pathlib import Path
from typing import Any

from ovss_refine.cli.dataset import DATASET, FIRST_IS_IGNORED, NAMES
from ovss_refine.cli.flags import add_command, add_flags, request_of
from ovss_refine.evaluation.dataset import load_from
from ovss_refine.evaluation.request import EvaluateRequest


def add_evaluate(commands: Any) -> None:
    """Add the command to what `add_subparsers` returned."""
    evaluate = add_command(
        commands,
        "evaluate",
        _run,
        help="compare baseline and refined on a data set",
        description=(
            "Compare baseline and refined by mIoU. Resumes an interrupted run with the same "
            "settings. Under torchrun, the processes share the images."
        ),
    )
    evaluate.add_argument("--dataset", required=True, **DATASET)
    evaluate.add_argument("--names", type=Path, **NAMES)
    evaluate.add_argument("--first-is-ignored", action="store_true", **FIRST_IS_IGNORED)
    add_flags(evaluate, EvaluateRequest)


def _run(args: argparse.Namespace) -> None:
    dataset = load_from(args.dataset, args.root, args.names, args.first_is_ignored)
    request = request_of(args, EvaluateRequest, dataset=dataset)
    from ovss_refine.evaluation.run import run_evaluate

    found = run_evaluate(request)
    if found is not None:
        print(f"{found}\n\nclass by class: {found.out}/results.md")
