"""Published settings of a method on a data set, split by the part that takes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

OF_DECISION = ("probability_threshold", "area_threshold")
OF_BASELINE = ("prompts", "enlarged_twice", "pamr_iterations")
WHOLE = "whole"  # TOML has no None


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """How a method was run on a data set.

    The settings belong together: a threshold is meaningful only with its prompts, scale and
    windows. Those of CASS and RF-CLIP were chosen on the test sets.

    Attributes:
        prompts: family of prompts, for `DataSet.labels`.
        source: options for `load_logits` besides `classes`; others keep the source's defaults.
        decision: keywords of `decide` besides the sizes.
        enlarged_twice: the logits are upsampled to the resized image first, then to full size.
        pamr_iterations: rounds of PAMR on the logits at full size; 0: none.
    """

    prompts: str = "names"
    source: Mapping[str, Any] = field(default_factory=dict)
    decision: Mapping[str, Any] = field(default_factory=dict)
    enlarged_twice: bool = False
    pamr_iterations: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Split settings of a TOML file; the source takes those that no other part takes."""
        source = {k: v for k, v in settings.items() if k not in (*OF_DECISION, *OF_BASELINE)}
        if source.get("window") == WHOLE:
            source["window"] = None
        decision = {key: settings[key] for key in OF_DECISION if key in settings}
        own = {key: settings[key] for key in OF_BASELINE if key in settings}
        return cls(source=source, decision=decision, **own)
