"""The metric of semantic segmentation: one confusion matrix over the whole data set.

The rule is MMSegmentation's, which all published numbers use: pixels of the ignored label do not
count; IoU_c = I_c / (P_c + G_c - I_c) of sums over all images; classes that occur neither in the
truth nor in the predictions are left out of the mean. Counts are integers, so that the order of
images does not matter.

Axes: M classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
BYTES = 256


def confusion(truth: NDArray[np.uint8], labels: NDArray[np.int64], M: int, ignore: int) -> Counts:
    """Count pixels by true and predicted class.

    Args:
        truth: [H, W] classes in [0, M), or `ignore`.
        labels: [H, W] predicted classes in [0, M).
        M: number of classes.
        ignore: the label of pixels that do not count.

    Returns:
        [M, M], row = truth.

    Raises:
        ValueError: if the shapes differ or a class is outside [0, M).
    """
    if truth.shape != labels.shape:
        raise ValueError(f"`labels` must have shape {list(truth.shape)}; got {list(labels.shape)}.")
    if labels.size and not 0 <= labels.min() <= labels.max() < M:
        raise ValueError(f"`labels` must be in [0, M={M}); got {labels.min()} to {labels.max()}.")
    # Counting all 256 values of a byte is faster than selecting the labelled pixels.
    index = truth.astype(np.int64)
    index *= M
    index += labels
    counts = np.bincount(index.ravel(), minlength=BYTES * M).reshape(BYTES, M)
    counts[ignore] = 0
    if counts[M:].any():
        raise ValueError(
            f"`truth` must be in [0, M={M}) or {ignore}; got {truth[truth >= M].min()}."
        )
    return counts[:M].copy()


def pack(counts: Counts) -> list[list[int]]:
    """Return the flat positions and the values of the nonzero entries of [M, M] counts."""
    places = np.flatnonzero(counts)
    return [places.tolist(), counts.ravel()[places].tolist()]


def add_packed(total: Counts, packed: list[list[int]]) -> None:
    """Add packed counts to [M, M] `total`, in place."""
    places, values = packed
    total.reshape(-1)[places] += np.array(values, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Metrics of a confusion matrix, in [0, 1]; NaN where the denominator is 0.

    Attributes:
        iou: [M] intersection over union.
        class_accuracy: [M] share of each class's pixels that are correct.
        miou: mean of `iou` over the classes that occur.
        accuracy: share of all pixels that are correct.
        mean_accuracy: mean of `class_accuracy` over the classes of the truth.
    """

    iou: NDArray[np.float64]
    class_accuracy: NDArray[np.float64]
    miou: float
    accuracy: float
    mean_accuracy: float


def scores(counts: Counts) -> Scores:
    """Compute the metrics of a confusion matrix.

    Args:
        counts: [M, M] pixels, row = truth, such as the sum of `EvaluationResult.counts` over parts
            of a data set.

    Example:
        >>> found = scores(np.array([[8, 0], [2, 2]]))
        >>> found.iou.tolist(), found.accuracy
        ([0.8, 0.5], 0.8333333333333334)
    """
    hits = counts.diagonal().astype(np.float64)
    truth, predicted = counts.sum(axis=1), counts.sum(axis=0)
    iou = _ratio(hits, truth + predicted - hits)
    found = _ratio(hits, truth.astype(np.float64))
    return Scores(
        iou=iou,
        class_accuracy=found,
        miou=_mean(iou),
        accuracy=float(hits.sum() / counts.sum()) if counts.any() else float("nan"),
        mean_accuracy=_mean(found),
    )


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.full(len(part), np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
