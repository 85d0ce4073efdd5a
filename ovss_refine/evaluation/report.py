"""Results for people and for programs: tables, JSON, CSV, pictures.

Axes: M classes, (H, W) pixels.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovss_refine.evaluation.batches import Sample
from ovss_refine.evaluation.dataset import IGNORE, DataSet
from ovss_refine.evaluation.metric import scores
from ovss_refine.evaluation.totals import Totals
from ovss_refine.folders.files import write_whole
from ovss_refine.images import draw

UNLABELLED = (255, 255, 255)


def results(dataset: DataSet, totals: Totals) -> dict[str, Any]:
    """Return the results as JSON takes them; percentages as in papers, None where undefined."""
    images = len(totals.done)
    rows = {}
    for name, counts in totals.counts.items():
        found = scores(counts)
        rows[name] = {
            "miou": _percent(found.miou),
            "accuracy": _percent(found.accuracy),
            "mean_accuracy": _percent(found.mean_accuracy),
            "seconds_per_image": totals.seconds.get(name, 0.0) / images if images else None,
            "iou": {n: _percent(x) for n, x in zip(dataset.names, found.iou, strict=True)},
            "class_accuracy": {
                n: _percent(x) for n, x in zip(dataset.names, found.class_accuracy, strict=True)
            },
        }
    return {
        "dataset": dataset.name,
        "images": images,
        "skipped": dict(sorted(totals.failures.items())),
        "sources_seconds_per_image": totals.seconds.get("sources", 0.0) / images
        if images
        else None,
        "rows": rows,
    }


def summary(found: dict[str, Any]) -> str:
    """Lay the rows out as a Markdown table."""
    skipped = f", {len(found['skipped'])} skipped" if found["skipped"] else ""
    title = f"{found['dataset']}, {found['images']} images{skipped}"
    cells = [
        [title, "mIoU", "accuracy", "mean accuracy", "s/image"],
        ["---"] + ["---:"] * 4,
    ]
    for name, row in found["rows"].items():
        numbers = [_cell(row[key]) for key in ("miou", "accuracy", "mean_accuracy")]
        cells.append([name, *numbers, f"{row['seconds_per_image'] or 0:.3f}"])
    return _table(cells)


def per_class(found: dict[str, Any]) -> str:
    """Lay the IoU of every class out as a Markdown table."""
    rows = found["rows"]
    first = next(iter(rows.values()))["iou"]
    cells = [["class", *rows], ["---"] + ["---:"] * len(rows)]
    for name in first:
        cells.append([name, *(_cell(row["iou"][name]) for row in rows.values())])
    return _table(cells)


def write_results(out: Path, dataset: DataSet, totals: Totals) -> dict[str, Any]:
    """Write results.json, results.md, per_class.csv and confusion.npz; return the first."""
    found = results(dataset, totals)
    text = f"# {dataset.title}\n\n{summary(found)}\n\n## IoU by class\n\n{per_class(found)}\n"
    if found["skipped"]:
        lines = "\n".join(f"- {id}: {why}" for id, why in found["skipped"].items())
        text += f"\n## Skipped\n\n{lines}\n"
    sheet = io.StringIO()
    table = csv.writer(sheet, lineterminator="\n")
    table.writerow(["class", *found["rows"]])
    for name in dataset.names:
        table.writerow([name, *(row["iou"][name] for row in found["rows"].values())])
    contents = {
        "results.json": json.dumps(found, indent=1).encode() + b"\n",
        "results.md": text.encode(),
        "per_class.csv": sheet.getvalue().encode(),
    }
    for name, content in contents.items():
        write_whole(out / name, partial(_put, content=content))
    counts: dict[str, Any] = dict(totals.counts)
    write_whole(out / "confusion.npz", lambda file: np.savez_compressed(file, **counts))
    return found


def draw_rows(
    out: Path, dataset: DataSet, sample: Sample, labels: dict[str, NDArray[np.int64]]
) -> None:
    """Write the truth, and the labels of every row, side by side over the image."""
    colours = np.vstack([colours_of(dataset), [UNLABELLED]]).astype(np.uint8)
    truth = np.where(sample.truth == IGNORE, dataset.M, sample.truth).astype(np.int64)
    panels = {"truth": truth, **labels}
    tinted = [draw.overlay(sample.image, panel, colours) for panel in panels.values()]
    row = draw.side_by_side(tinted, list(panels))
    shown = sorted({int(label) for panel in panels.values() for label in np.unique(panel)})
    page = draw.with_legend(row, shown, [*dataset.names, "not labelled"], colours)
    path = out / "pictures" / f"{sample.id.replace('/', '_')}.png"
    path.parent.mkdir(exist_ok=True)
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
    """PASCAL VOC's colour map: three bits of the index give the next high bit of R, G and B."""
    colour = [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            colour[channel] |= (index >> channel & 1) << shift
        index >>= 3
    return colour


def _put(file: Any, content: bytes) -> None:
    file.write(content)


def _percent(share: float) -> float | None:
    return None if math.isnan(share) else 100 * float(share)


def _cell(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.2f}"


def _table(cells: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)
