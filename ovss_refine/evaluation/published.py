"""Published settings of a method on a data set, split by who takes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

OF_DECISION = ("probability_threshold", "area_threshold")
OF_BASELINE = ("prompts", "enlarged_twice", "pamr_iterations")
WHOLE = "whole"  # TOML has no None


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """How a method was run on a data set.

    They belong together: a threshold means something only with its prompts, scale and windows.
    Those of CASS and RF-CLIP were chosen on the test sets.

    Attributes:
        prompts: family of prompts, for `DataSet.labels`.
        source: options for `load_logits`, besides `classes`. What is not among them stays as the
            source has it.
        decision: keywords of `decide`, besides the sizes.
        enlarged_twice: the scores are upsampled to the resized image first, then to full size.
        pamr_iterations: rounds of PAMR on the scores at full size; 0: none.
    """

    prompts: str = "names"
    source: Mapping[str, Any] = field(default_factory=dict)
    decision: Mapping[str, Any] = field(default_factory=dict)
    enlarged_twice: bool = False
    pamr_iterations: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Split settings as the TOML files have them; what nobody else takes is the source's."""
        source = {k: v for k, v in settings.items() if k not in (*OF_DECISION, *OF_BASELINE)}
        if source.get("window") == WHOLE:
            source["window"] = None
        decision = {key: settings[key] for key in OF_DECISION if key in settings}
        own = {key: settings[key] for key in OF_BASELINE if key in settings}
        return cls(source=source, decision=decision, **own)
