"""Masks in COCO's format: run lengths, column by column, as compressed text.

Source: the COCO API of P. Dollár and T.-Y. Lin (`common/maskApi.c`, `rleToString`): alternating
runs of zeros and ones, zeros first; from the fourth run on the difference to the run before the
previous one; each number in groups of five bits, lowest first, with a sixth bit if more follow,
plus 48.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS, MORE, FIRST = 5, 32, 48
# Runs are below 2^31, so that a difference of two has at most 32 bits, with its sign.
GROUPS = 7


def entry(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask [H, W] as an entry of COCO's results.

    Returns:
        {"segmentation": {"size": [H, W], "counts": text}, "area": pixels, "bbox": [x, y, width,
        height]}; a box of zeros if the mask is empty.
    """
    H, W = mask.shape
    counts = compress(run_lengths(mask))
    segmentation = {"size": [int(H), int(W)], "counts": counts}
    return {"segmentation": segmentation, "area": int(mask.sum()), "bbox": box(mask)}


def box(mask: NDArray[np.bool_]) -> list[int]:
    """Return the bounding box [x, y, width, height] of a mask, zeros if it is empty."""
    columns, rows = (np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1))
    if not len(rows):
        return [0, 0, 0, 0]
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]


def run_lengths(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the lengths of runs of equal pixels, column by column; the first is of zeros."""
    flat = mask.ravel(order="F")
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], starts, [flat.size]]))
    return np.concatenate([[0], runs]) if flat[0] else runs


def compress(runs: NDArray[np.int64]) -> str:
    """Encode run lengths as COCO's text."""
    rest = runs.astype(np.int64)
    rest[3:] -= runs[1:-2]
    groups = np.zeros((len(rest), GROUPS), np.uint8)
    used = np.zeros((len(rest), GROUPS), bool)
    going = np.ones(len(rest), bool)
    for place in range(GROUPS):
        low = rest & (MORE - 1)
        rest = rest >> BITS  # keeps the sign
        # Done once the rest is only the sign, which the highest bit written already has.
        more = rest != np.where(low & (MORE >> 1), -1, 0)
        groups[:, place] = low + MORE * more + FIRST
        used[:, place] = going
        going = going & more
    return groups[used].tobytes().decode("ascii")
