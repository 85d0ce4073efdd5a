"""What a reader of the results should know: classes without a pixel, values that may mean another.

Axes: M classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ovss_refine.evaluation.dataset import IGNORE, DataSet
from ovss_refine.evaluation.metric import Counts, scores

ZERO = "If 0 is not labelled in the masks and the classes count from 1, pass --first-is-ignored"


def some(names: Sequence[str]) -> str:
    """List the first names, and how many there are besides."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def is_binary(dataset: DataSet, truth: Sequence[int], ignored: int) -> bool:
    """Whether masks of one's own hold 0 and 255 only, like binary masks of drawing programs."""
    own = dataset.own and not dataset.first_is_ignored
    return own and ignored > 0 and truth[0] > 0 and not any(truth[1:])


def of_truth(dataset: DataSet, truth: Sequence[int], ignored: int) -> list[str]:
    """Note classes that no mask has.

    Args:
        dataset: names the classes.
        truth: M numbers of pixels by class, in all masks.
        ignored: number of ignored pixels.
    """
    absent = [name for name, count in zip(dataset.names, truth, strict=True) if not count]
    if not absent:
        return []
    verb = "class does" if len(absent) == 1 else "classes do"
    made = [f"{len(absent)} {verb} not occur in the masks: {some(absent)}."]
    if not dataset.own:
        return made
    if ignored:
        share = ignored / (sum(truth) + ignored)
        values = f"0 or {IGNORE}" if dataset.first_is_ignored else str(IGNORE)
        made.append(f"{share:.1%} of the pixels of the masks are {values}, which is ignored.")
    if is_binary(dataset, truth, ignored):
        made.append(
            f"The masks hold 0 and {IGNORE} only. If {IGNORE} is a class there, write its number "
            f"instead, such as `np.where(mask == {IGNORE}, 1, mask)`; there is no score over the "
            "rest."
        )
    if not truth[0] and not dataset.first_is_ignored:
        made.append(f"{ZERO}.")
    return made


def of_shift(dataset: DataSet, counts: Mapping[str, Counts]) -> list[str]:
    """Note that all rows would be better if 0 were ignored and 1 the first class.

    Masks that count from 1 look like any others if none of them has the last class.

    Args:
        dataset: names the classes.
        counts: [M, M] pixels by true and predicted class, for each row.
    """
    if not dataset.own or dataset.first_is_ignored:
        return []
    found = [
        (row, scores(own).miou, scores(np.vstack([own[1:], np.zeros_like(own[:1])])).miou)
        for row, own in counts.items()
    ]
    if not all(shifted > own for _, own, shifted in found):
        return []
    row, own, shifted = found[0]
    return [f"{ZERO}: {row} would have mIoU {100 * shifted:.2f} instead of {100 * own:.2f}."]


def of_orientation(ids: Sequence[str]) -> list[str]:
    """Note images whose EXIF orientation may not be that of their masks."""
    if not ids:
        return []
    subject = "1 image has" if len(ids) == 1 else f"{len(ids)} images have"
    return [
        f"{subject} an EXIF orientation that the size of the mask does not confirm: {some(ids)}. "
        "Masks are compared with the upright image; rotate or flip those that are of the stored "
        "pixels."
    ]


def of_failures(failures: Mapping[str, str]) -> list[str]:
    """Note images that were skipped, with the reason of the first."""
    if not failures:
        return []
    subject = "1 image was" if len(failures) == 1 else f"{len(failures)} images were"
    return [f"{subject} skipped. {': '.join(min(failures.items()))}"]
