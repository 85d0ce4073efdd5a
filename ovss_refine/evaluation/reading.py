"""Read images and label maps, in other threads and ahead of their use.

Axes: (H, W) pixels.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovss_refine.evaluation.dataset import IGNORE, DataSet
from ovss_refine.evaluation.items import Item
from ovss_refine.evaluation.notes import ZERO
from ovss_refine.images.read import open_image, orientation_of, read_oriented, upright

LabelMap = NDArray[np.uint8]
Read = TypeVar("Read")
MASK_MODES = ("1", "L", "P", "I", "I;16")


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A label map as in its file, upright."""

    values: NDArray[np.int64]  # [H, W] raw values; for a palette, the indices
    orientation: int  # the EXIF orientation that was undone; 1: none
    # Grey levels by index, if a palette has no other colours; they may be the labels, reordered.
    greys: dict[int, int]


def read_mask(path: Path) -> Mask:
    """Read a label map.

    Raises:
        ValueError: if the file is missing or damaged, or has colours instead of labels.
    """
    if not path.is_file():
        raise ValueError(f"`{path}` must be the mask of an image; it does not exist.")
    with _readable(str(path)):
        image = open_image(path)
    with image:
        return decode_mask(image, str(path))


def decode_mask(image: Image.Image, name: str) -> Mask:
    """Decode a label map.

    Args:
        image: of one channel.
        name: of the argument or file, for messages.

    Raises:
        ValueError: if it is damaged, or has colours instead of labels.
    """
    with _readable(name):
        orientation = orientation_of(image)
        mode, values = image.mode, np.asarray(upright(image))
        greys = _greys(image, values) if mode == "P" else {}
    if mode not in MASK_MODES:
        raise ValueError(
            f"`{name}` must have one label for each pixel; got an image of mode {mode!r}. Write "
            "the number of its class at each pixel, as 8-bit grey or palette."
        )
    return Mask(values.astype(np.int64), orientation, greys)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Convert the exceptions of a decoder to a ValueError."""
    try:
        yield
    except (OSError, SyntaxError, ValueError) as err:
        raise ValueError(f"`{name}` must be a readable label map; got {err}.") from err


def _greys(image: Image.Image, indices: NDArray[np.uint8]) -> dict[int, int]:
    """Return the grey levels of the indices that occur; none if there are colours among them."""
    palette = image.getpalette("RGB") or []
    present = np.flatnonzero(np.bincount(indices.ravel())).tolist()
    colours = {index: palette[3 * index :][:3] for index in present}
    if any(len({*colour}) != 1 or len(colour) < 3 for colour in colours.values()):
        return {}
    return {index: colour[0] for index, colour in colours.items()}


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
        raise ValueError(
            f"`{origin}` must have values from 0 to {dataset.highest}, or {IGNORE}; got "
            f"{wrong[:5]}.{_advice(dataset, wrong)}"
        )
    if dataset.first_is_ignored:
        # As in the usual data pipelines: 0 becomes 255, 255 stays, all others decrease by one.
        raw = np.where((raw == 0) | (raw == IGNORE), IGNORE, raw - 1)
    return raw.astype(np.uint8)


def _advice(dataset: DataSet, wrong: Sequence[int]) -> str:
    if not dataset.own:
        return " Masks have such values before conversion." if max(wrong) < IGNORE else ""
    advice = f" Write {IGNORE} for pixels that are not labelled."
    if dataset.highest + 1 in wrong and not dataset.first_is_ignored:
        advice = f" {ZERO}.{advice}"
    return advice


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The labels of an image."""

    raw: NDArray[np.int64]  # [H, W] values as in the file
    labels: LabelMap  # [H, W]
    # Whether the image has an EXIF orientation, but neither the mask nor its size shows that the
    # mask is upright too.
    unclear: bool


def read_pair(dataset: DataSet, item: Item) -> tuple[NDArray[np.uint8], Truth]:
    """Read an image [H, W, 3] in RGB, upright, and its labels.

    Raises:
        ValueError: if the image is missing or damaged, and as `read_truth`.
    """
    if not item.image.is_file():
        raise ValueError(f"`{item.image}` must be an image; it does not exist.")
    image, orientation = read_oriented(item.image)
    return image, read_truth(dataset, item, (image.shape[1], image.shape[0]), orientation)


def read_truth(dataset: DataSet, item: Item, size: tuple[int, int], orientation: int) -> Truth:
    """Read the labels of an image.

    Args:
        dataset: gives the meaning of the values.
        item: names the mask.
        size: (W, H) of the image when its EXIF orientation is undone.
        orientation: the EXIF orientation of the image; 1: none.

    Raises:
        ValueError: if the mask is missing or damaged, the sizes differ, a value is not a class, or
            the values and the colours of a palette could both be the classes.
    """
    return as_truth(dataset, read_mask(item.mask), str(item.mask), size, orientation)


def as_truth(
    dataset: DataSet, mask: Mask, name: str, size: tuple[int, int], orientation: int
) -> Truth:
    """Do `read_truth` for a mask that has been read; `name` is what messages call it."""
    _check_size(name, mask.values.shape, size, orientation)
    labels = to_labels(mask.values, dataset, name)
    _check_palette(dataset, name, mask.greys)
    # Orientations from 5 on swap the sides.
    same_size = orientation < 5 or size[0] == size[1]
    unclear = orientation > 1 and mask.orientation == 1 and same_size
    return Truth(mask.values, labels, unclear)


def _check_size(name: str, shape: Sequence[int], size: tuple[int, int], orientation: int) -> None:
    (W, H), (h, w) = size, shape
    if (w, h) == size:
        return
    hint = ""
    if (h, w) == size:
        hint = " Its sides are swapped: rotate the mask"
        hint += ", as the image is, by its EXIF orientation." if orientation > 1 else "."
    raise ValueError(f"`{name}` must have the size of its image, {W} x {H}; got {w} x {h}.{hint}")


def _check_palette(dataset: DataSet, name: str, greys: dict[int, int]) -> None:
    """Raise ValueError if grey levels are a reordering of labels, as programs make to save bytes.

    Black and white are left alone: they show two classes.
    """
    levels = {*greys.values()}
    valid = all(level <= dataset.highest or level == IGNORE for level in levels)
    if (
        valid
        and len(levels) == len(greys)
        and levels - {0, IGNORE}
        and any(index != level for index, level in greys.items())
    ):
        raise ValueError(
            f"`{name}` must have labels of one meaning; its palette has the grey levels "
            f"{[*greys.values()][:5]} at the indices {[*greys][:5]}, and both could be classes. "
            "Save it in 8-bit grey, without a palette."
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
