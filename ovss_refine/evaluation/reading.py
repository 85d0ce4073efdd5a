"""Read images and label maps, in other threads and ahead of their use.

Axes: (H, W) pixels.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovss_refine.evaluation.dataset import IGNORE, DataSet, Item
from ovss_refine.images.read import read_image

LabelMap = NDArray[np.uint8]
Read = TypeVar("Read")
MASK_MODES = ("1", "L", "P", "I", "I;16")


def read_mask(path: Path) -> NDArray[np.int64]:
    """Read a label map as [H, W] raw values; palettes are ignored.

    Raises:
        ValueError: if the file is missing or damaged, or has colours instead of labels.
    """
    if not path.is_file():
        raise ValueError(f"`{path}` must be the mask of an image; it does not exist.")
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise ValueError(f"`{path}` must be a readable label map; got {err}.") from err
    if mode not in MASK_MODES:
        raise ValueError(
            f"`{path}` must have one label for each pixel; got an image of mode {mode!r}."
        )
    return values.astype(np.int64)


def to_labels(raw: NDArray[np.int64], dataset: DataSet, origin: str) -> LabelMap:
    """Turn the raw values of a mask into classes, `IGNORE` for pixels without one.

    Args:
        raw: [H, W] values as in the file.
        dataset: gives their meaning.
        origin: what to call the mask in a message.

    Raises:
        ValueError: on a value that is not a class of the data set.
    """
    present = np.flatnonzero(np.bincount(raw.ravel(), minlength=IGNORE + 1))
    if wrong := [int(v) for v in present if v > dataset.highest and v != IGNORE]:
        hint = " Masks have such values before conversion." if max(wrong) < IGNORE else ""
        raise ValueError(
            f"`{origin}` must have values from 0 to {dataset.highest}, or {IGNORE}; got "
            f"{wrong[:5]}.{hint}"
        )
    if dataset.first_is_ignored:
        # As in the usual data pipelines: 0 becomes 255, 255 stays, all others decrease by one.
        raw = np.where((raw == 0) | (raw == IGNORE), IGNORE, raw - 1)
    return raw.astype(np.uint8)


def read_pair(dataset: DataSet, item: Item) -> tuple[NDArray[np.uint8], LabelMap]:
    """Read an image [H, W, 3] in RGB and its labels [H, W].

    Raises:
        ValueError: if a file is missing or damaged, the sizes differ, or a value is not a class.
    """
    if not item.image.is_file():
        raise ValueError(f"`{item.image}` must be an image; it does not exist.")
    image = read_image(item.image)
    raw = read_mask(item.mask)
    check_size(item, raw, (image.shape[1], image.shape[0]))
    return image, to_labels(raw, dataset, str(item.mask))


def check_size(item: Item, raw: NDArray[np.int64], size: tuple[int, int]) -> None:
    """Raise ValueError unless a mask has the size (W, H) of its image."""
    if raw.shape != size[::-1]:
        raise ValueError(
            f"`{item.mask}` must have the size of its image, {size[0]} x {size[1]}; got "
            f"{raw.shape[1]} x {raw.shape[0]}."
        )


@contextmanager
def ahead(
    read: Callable[[Item], Read], items: Iterable[Item], workers: int
) -> Iterator[Iterator[tuple[Item, Future[Read]]]]:
    """Read items in other threads, in order, at most `workers` + 1 of them ahead of their use.

    Threads suffice because decoding and disk access release the GIL. Reads that have not begun are
    cancelled on exit.

    Args:
        read: is called with an item; may raise.
        items: what to read.
        workers: number of threads, >= 1.

    Yields:
        An iterator over (item, future of its result or exception).
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ovss-refine-read")

    def run() -> Iterator[tuple[Item, Future[Read]]]:
        rest = iter(items)
        waiting = deque((i, pool.submit(read, i)) for i in itertools.islice(rest, workers + 1))
        while waiting:
            item, future = waiting.popleft()
            future.exception()  # wait, so that the next read does not begin too early
            for following in itertools.islice(rest, 1):
                waiting.append((following, pool.submit(read, following)))
            yield item, future

    try:
        yield run()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
