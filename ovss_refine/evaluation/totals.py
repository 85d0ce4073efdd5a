"""The sums over all records of a run.

Axes: M classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ovss_refine.evaluation.metric import Counts, add_packed
from ovss_refine.folders.records import read_all


@dataclass(slots=True, eq=False)
class Totals:
    """Sums over images."""

    counts: dict[str, Counts]  # for each row, [M, M] pixels by true and predicted class
    # For each part of the work, seconds over all images.
    seconds: dict[str, float] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)  # ids of the images that have a result
    # For each image that could not be read and has no result, the reason.
    failures: dict[str, str] = field(default_factory=dict)
    ignored: int = 0  # pixels of the truth that do not count
    unclear: list[str] = field(default_factory=list)  # ids: see `reading.Truth`


def add_up(folder: Path, rows: Sequence[str], M: int) -> Totals:
    """Add up the records in a folder; a result replaces an earlier failure of the same image.

    Raises:
        ValueError: if a file is damaged, or an image has two results.
    """
    totals = Totals({row: np.zeros((M, M), dtype=np.int64) for row in rows})
    for record in read_all(folder):
        image_id = record["id"]
        if "failure" in record:
            totals.failures[image_id] = record["failure"]
            continue
        if image_id in totals.done:
            raise ValueError(
                f"`{folder}` must have one result for each image; got two for {image_id!r}."
            )
        totals.done.add(image_id)
        totals.ignored += record.get("ignored", 0)  # written if not 0, as is `unclear`
        totals.unclear += [image_id] * record.get("unclear", False)
        for row in rows:
            add_packed(totals.counts[row], record["counts"][row])
        for part, seconds in record["seconds"].items():
            totals.seconds[part] = totals.seconds.get(part, 0.0) + seconds
    for image_id in totals.done:
        totals.failures.pop(image_id, None)
    return totals
