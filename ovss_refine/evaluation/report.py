"""Results as Markdown, JSON, CSV and images.

Axes: M classes, (H, W) pixels.
"""

import json
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovss_refine.evaluation.batches import Sample
from ovss_refine.evaluation.dataset import IGNORE, DataSet
from ovss_refine.evaluation.metric import scores
from ovss_refine.evaluation.notes import is_binary, of_failures, of_orientation, of_shift, of_truth
from ovss_refine.evaluation.totals import Totals
from ovss_refine.folders.files import make_folder, write_text, write_whole
from ovss_refine.folders.tables import markdown_table, write_csv
from ovss_refine.images import draw

UNLABELLED = (255, 255, 255)


def results(dataset: DataSet, totals: Totals, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the results in a form for JSON: percentages as in papers, None where undefined.

    Args:
        dataset: names the classes.
        totals: the sums over all images.
        notes: what else the reader should know, in sentences.
    """
    images = len(totals.done)
    truth = next(iter(totals.counts.values())).sum(axis=1).tolist()
    # No mean over the only class of masks whose other pixels are ignored, perhaps by mistake.
    binary = is_binary(dataset, truth, totals.ignored)

    def mean_seconds(part: str) -> float | None:
        return totals.seconds.get(part, 0.0) / images if images else None

    def by_class(shares: Iterable[float]) -> dict[str, float | None]:
        return dict(zip(dataset.names, map(_percent, shares), strict=True))

    rows = {}
    for name, counts in totals.counts.items():
        found = scores(counts)
        rows[name] = {
            "miou": None if binary else _percent(found.miou),
            "accuracy": None if binary else _percent(found.accuracy),
            "mean_accuracy": None if binary else _percent(found.mean_accuracy),
            "seconds_per_image": mean_seconds(name),
            "iou": by_class(found.iou),
            "class_accuracy": by_class(found.class_accuracy),
        }
    return {
        "dataset": dataset.name,
        "images": images,
        "skipped": dict(sorted(totals.failures.items())),
        "notes": [
            *of_truth(dataset, truth, totals.ignored),
            *of_shift(dataset, totals.counts),
            *of_orientation(sorted(totals.unclear)),
            *of_failures(totals.failures),
            *notes,
        ],
        "sources_seconds_per_image": mean_seconds("sources"),
        "rows": rows,
    }


def summary(found: dict[str, Any]) -> str:
    """Lay out the rows as a Markdown table, followed by the notes."""
    skipped = f", {len(found['skipped'])} skipped" if found["skipped"] else ""
    title = f"{found['dataset']}, {found['images']} images{skipped}"
    cells = [[title, "mIoU", "accuracy", "mean accuracy", "s/image"]]
    for name, row in found["rows"].items():
        numbers = [_cell(row[key]) for key in ("miou", "accuracy", "mean_accuracy")]
        cells.append([name, *numbers, f"{row['seconds_per_image'] or 0:.3f}"])
    table = markdown_table(cells, text_columns=1)
    return "\n".join([table, *[f"\nNote: {note}" for note in found["notes"]]])


def class_rows(found: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the IoU of each class in all rows: {"class": name, row: percentage or None ...}."""
    ious = {name: row["iou"] for name, row in found["rows"].items()}
    return [{"class": one, **{name: iou[one] for name, iou in ious.items()}} for one in names]


def class_table(by_class: Sequence[dict[str, Any]]) -> str:
    """Lay out what `class_rows` returns as a Markdown table."""
    cells = [[name, *map(_cell, values)] for name, *values in (row.values() for row in by_class)]
    return markdown_table([[*by_class[0]], *cells], text_columns=1)


def write_results(
    out: Path, dataset: DataSet, totals: Totals, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Write results.json, results.md, per_class.csv and confusion.npz; return the first."""
    found = results(dataset, totals, notes)
    by_class = class_rows(found, dataset.names)
    text = f"# {dataset.title}\n\n{summary(found)}\n\n## IoU by class\n\n{class_table(by_class)}\n"
    if found["skipped"]:
        lines = "\n".join(f"- {id}: {why}" for id, why in found["skipped"].items())
        text += f"\n## Skipped\n\n{lines}\n"
    write_text(out / "results.json", json.dumps(found, indent=1) + "\n")
    write_text(out / "results.md", text)
    write_csv(out / "per_class.csv", [[*by_class[0]], *([*row.values()] for row in by_class)])
    counts: dict[str, Any] = dict(totals.counts)
    write_whole(out / "confusion.npz", lambda file: np.savez_compressed(file, **counts))
    return found


def draw_rows(
    out: Path, dataset: DataSet, sample: Sample, labels: dict[str, NDArray[np.int64]]
) -> None:
    """Draw the truth and the labels of every row over the image, side by side."""
    colours = np.vstack([colours_of(dataset), [UNLABELLED]]).astype(np.uint8)
    truth = np.where(sample.truth == IGNORE, dataset.M, sample.truth).astype(np.int64)
    panels = {"truth": truth, **labels}
    tinted = [draw.overlay(sample.image, panel, colours) for panel in panels.values()]
    row = draw.side_by_side(tinted, list(panels))
    shown = sorted({int(label) for panel in panels.values() for label in np.unique(panel)})
    page = draw.with_legend(row, shown, [*dataset.names, "not labelled"], colours)
    path = out / "pictures" / f"{sample.id.replace('/', '_')}.png"
    make_folder(path.parent)
    write_whole(path, partial(draw.write_png, image=page))


def colours_of(dataset: DataSet) -> NDArray[np.uint8]:
    """Return the data set's [M, 3] colours."""
    if dataset.palette == "distinct":
        return draw.palette(dataset.names)
    if dataset.palette == "voc":
        first = int(dataset.first_is_ignored)
        return np.array([_voc_colour(first + c) for c in range(dataset.M)], dtype=np.uint8)
    return np.array(dataset.palette, dtype=np.uint8)


def _voc_colour(index: int) -> list[int]:
    """Return a colour of PASCAL VOC: three bits of the index give the next bit of R, G and B."""
    colour = [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            colour[channel] |= (index >> channel & 1) << shift
        index >>= 3
    return colour


def _percent(share: float) -> float | None:
    return None if math.isnan(share) else 100 * float(share)


def _cell(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.2f}"
