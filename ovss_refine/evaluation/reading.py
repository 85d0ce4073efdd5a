"""Reading images and label maps, ahead of whoever needs them.

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
        ValueError: if the file is missing, damaged, or has colours instead of labels.
    """
    if not path.is_file():
        raise ValueError(f"`{path}` must be the mask of an image; it does not exist.")
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            values = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise ValueError(f"`{path}` must be a readable label map; got {err}.") from err
    if mode not in MASK_MODES:
        raise ValueError(
            f"`{path}` must have one label for each pixel; got a picture of mode {mode!r}."
        )
    return values.astype(np.int64)


def to_labels(raw: NDArray[np.int64], dataset: DataSet, origin: str) -> LabelMap:
    """Turn raw values of a mask into classes, `IGNORE` where there is none.

    Args:
        raw: [H, W] values as they are in the file.
        dataset: says what they mean.
        origin: what to call the mask in a message.

    Raises:
        ValueError: on a value that is no class of the data set.
    """
    present = np.flatnonzero(np.bincount(raw.ravel(), minlength=IGNORE + 1))
    if wrong := [int(v) for v in present if v > dataset.highest and v != IGNORE]:
        hint = " Such values have masks before their conversion." if max(wrong) < IGNORE else ""
        raise ValueError(
            f"`{origin}` must have values from 0 to {dataset.highest}, or {IGNORE}; got "
            f"{wrong[:5]}.{hint}"
        )
    if dataset.first_is_ignored:
        # As the usual data pipelines do: 0 becomes 255, all others go down by one, 255 stays.
        raw = np.where((raw == 0) | (raw == IGNORE), IGNORE, raw - 1)
    return raw.astype(np.uint8)


def read_pair(dataset: DataSet, item: Item) -> tuple[NDArray[np.uint8], LabelMap]:
    """Read an image [H, W, 3] in RGB and its labels [H, W].

    Raises:
        ValueError: if a file is missing or damaged, the sizes differ, or a value is no class.
    """
    if not item.image.is_file():
        raise ValueError(f"`{item.image}` must be an image; it does not exist.")
    image = read_image(item.image)
    raw = read_mask(item.mask)
    if raw.shape != image.shape[:2]:
        raise ValueError(
            f"`{item.mask}` must have the size of its image, {image.shape[1]} x {image.shape[0]}; "
            f"got {raw.shape[1]} x {raw.shape[0]}."
        )
    return image, to_labels(raw, dataset, str(item.mask))


@contextmanager
def ahead(
    read: Callable[[Item], Read], items: Iterable[Item], workers: int
) -> Iterator[Iterator[tuple[Item, Future[Read]]]]:
    """Read in other threads, at most `workers` + 1 items before they are asked for, in order.

    Decoding and the disk release the interpreter, so that threads suffice. On leaving, what has
    not begun is dropped.

    Args:
        read: makes something of an item; may raise.
        items: what to read.
        workers: number of threads, >= 1.

    Yields:
        An iterator over (item, its result or exception, to be asked for by `result()`).
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ovss-refine-read")

    def run() -> Iterator[tuple[Item, Future[Read]]]:
        rest = iter(items)
        waiting = deque((i, pool.submit(read, i)) for i in itertools.islice(rest, workers + 1))
        while waiting:
            item, future = waiting.popleft()
            future.exception()  # wait here, so that the next is not begun too early
            for following in itertools.islice(rest, 1):
                waiting.append((following, pool.submit(read, following)))
            yield item, future

    try:
        yield run()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
