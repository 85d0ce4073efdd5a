"""Evaluation: baseline against refined, by mIoU, on eight data sets and on your own folder.

`evaluate(logits, attention, dataset=...)` is all that a program needs. `dataset` and `pairs`
describe data sets, `check` and `convert` verify and prepare them, `engine.evaluate` measures, and
`run` turns a request into a result.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ovss_refine.method.modes import CONTROLS

if TYPE_CHECKING:
    from ovss_refine.evaluation.python import evaluate as evaluate
    from ovss_refine.evaluation.result import EvaluationResult as EvaluationResult

# Here because the command line needs them before torch is imported.
ROWS = ("baseline", "upsampling", "refined", "paper", *CONTROLS)
# Other methods, on request: refinements, which are slower, and decisions, which need `rivals`.
DECISIONS = ("rankseg", "crf")
RIVALS = ("lposs", "lposs+", *DECISIONS)
CONVERSIONS = ("coco-object", "coco-stuff", "cityscapes", "context")
# At first use, for the same reason.
_HOME = {"evaluate": "python", "EvaluationResult": "result"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
