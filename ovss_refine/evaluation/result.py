"""What an evaluation found.

Axes: M classes.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovss_refine.evaluation import report
from ovss_refine.evaluation.metric import Counts
from ovss_refine.registry import require


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class EvaluationResult:
    """Baseline against refined on one data set. Scores are percentages, None where undefined.

    `print(result)` shows the table and its notes; notebooks show it formatted.

    Attributes:
        found: the contents of `results.json`: "dataset", "images" (how many), "skipped" (reasons by
            id), "notes", "sources_seconds_per_image" and "rows". Each row has "miou", "accuracy",
            "mean_accuracy", "seconds_per_image", and by class "iou" and "class_accuracy".
        counts: for each row [M, M] int64 pixels by true and predicted class.
        names: M class names, in the order of the labels.
        out: the folder with the results; None: nothing was kept.

    Example:
        >>> row = {"miou": 50.0, "accuracy": 60.0, "mean_accuracy": 55.0}
        >>> row |= {"seconds_per_image": 0.1, "iou": {"sky": 40.0, "road": 60.0}}
        >>> found = {"dataset": "pairs", "images": 2, "skipped": {}, "notes": []}
        >>> result = EvaluationResult(found | {"rows": {"refined": row}}, {}, ("sky", "road"))
        >>> result.miou
        {'refined': 50.0}
        >>> result.per_class()[0]
        {'class': 'sky', 'refined': 40.0}
    """

    found: dict[str, Any]
    counts: Mapping[str, Counts]
    names: tuple[str, ...]
    out: Path | None = None

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The scores of each row, by name."""
        rows: dict[str, dict[str, Any]] = self.found["rows"]
        return rows

    @property
    def miou(self) -> dict[str, float | None]:
        """The mIoU of each row."""
        return {name: row["miou"] for name, row in self.rows.items()}

    @property
    def notes(self) -> list[str]:
        """What a reader should know, in sentences."""
        notes: list[str] = self.found["notes"]
        return notes

    def per_class(self) -> list[dict[str, Any]]:
        """Return the IoU by class: {"class": name, row: percentage or None ...} for each class."""
        return report.class_rows(self.found, self.names)

    def to_markdown(self) -> str:
        """Return the table, its notes, and a second table with the IoU by class."""
        return f"{self}\n\n{report.class_table(self.per_class())}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the counts, in a form for JSON: a copy of `found` with `out`."""
        return deepcopy(self.found) | {"out": None if self.out is None else str(self.out)}

    def to_pandas(self) -> Any:
        """Return `per_class` as a pandas DataFrame, a row for each class.

        Raises:
            ModuleNotFoundError: if pandas is not installed.
        """
        return require("pandas", "bridges").DataFrame(self.per_class()).set_index("class")

    def __str__(self) -> str:
        """Lay out the rows as a Markdown table, followed by the notes."""
        return report.summary(self.found)

    def __repr__(self) -> str:
        """Show the mIoU of each row."""
        scores = [f"{row} {'-' if x is None else f'{x:.2f}'}" for row, x in self.miou.items()]
        found = f"{self.found['dataset']}, {self.found['images']} images"
        return f"EvaluationResult({found}, mIoU: {', '.join(scores)})"

    def _repr_markdown_(self) -> str:
        """Return the table for notebooks."""
        return str(self)
