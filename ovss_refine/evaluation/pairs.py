"""Data sets that are no folders: pairs of an image and its label map, of any library.

Axes: (H, W) pixels.
"""

import hashlib
import itertools
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ovss_refine.evaluation.dataset import IGNORE, PAIRS, DataSet
from ovss_refine.evaluation.items import Item
from ovss_refine.evaluation.own import own_classes
from ovss_refine.evaluation.reading import (
    Mask,
    Truth,
    as_truth,
    decode_mask,
    read_mask,
    read_pair,
)
from ovss_refine.folders.paths import local_path
from ovss_refine.images.convert import as_rgb
from ovss_refine.images.read import orientation_of, read_oriented
from ovss_refine.labels import Labels

# Names of columns, as data sets on the Hugging Face hub have them.
IMAGE_COLUMNS = ("image", "img", "pixel_values")
MASK_COLUMNS = ("mask", "label", "labels", "annotation", "segmentation", "segmentation_mask")
HIGHEST = 0xFFFF  # of an image file
COMPARED = 16  # pairs that identify a data set
Columns = tuple[str | int, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSet(DataSet):
    """A data set of pairs; ids are their positions, "0", "1" ...

    A pair is a mapping, or a sequence (image, mask). An image has any form that the library takes;
    a mask is a path, a PIL image of one channel, or an array or a tensor of whole numbers [H, W].
    """

    pairs: Sequence[Any]
    columns: Columns | None = None  # keys of the image and the mask; None: found by their names
    # Data sets of one's own need not be safe for threads.
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def items(self, root: Path) -> list[Item]:
        """List the pairs, whatever `root` is; the paths only name them in messages."""
        places = [Path(f"dataset[{i}]") for i in range(len(self.pairs))]
        return [Item(str(i), place, place) for i, place in enumerate(places)]

    def missing(self, items: Sequence[Item]) -> list[Path]:
        """Return no files: there are none."""
        return []

    def left_out(self, root: Path) -> str:
        """Return no names: there are no files."""
        return ""

    def fingerprint(self, items: Sequence[Item]) -> str:
        """Hash the pixels and masks of the first pair, the last, and up to 14 between them."""
        digest = hashlib.sha256(str(len(items)).encode())
        for place in sorted({*np.linspace(0, len(items) - 1, COMPARED).round().astype(int)}):
            try:
                parts = self._decoded(items[place])
            except (OSError, ValueError):
                digest.update(b"unreadable")
                continue
            for part in (parts[0], parts[2].values):
                digest.update(f"{part.shape}".encode())
                digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()[:16]

    def read(self, item: Item) -> tuple[NDArray[np.uint8], Truth]:
        """Read an image [H, W, 3] in RGB, upright, and its labels.

        Raises:
            OSError: if a path does not exist.
            TypeError: if the pair, or a part of it, has another form.
            ValueError: if the columns are not known, the image or the mask is damaged, the sizes
                differ, or a value is not a class.
        """
        image, orientation, mask, name = self._decoded(item)
        size = image.shape[1], image.shape[0]
        return image, as_truth(self, mask, name, size, orientation)

    def _decoded(self, item: Item) -> tuple[NDArray[np.uint8], int, Mask, str]:
        """Return the image, its EXIF orientation, the mask, and the name of the mask."""
        with self.lock:
            pair = self.pairs[int(item.id)]
        image, mask = self.columns or _columns(pair, str(item.image))
        names = [f"{item.image}[{key!r}]" for key in (image, mask)]
        return *_image(pair[image], names[0]), as_mask(pair[mask], names[1]), names[1]


def read_any(dataset: DataSet, item: Item) -> tuple[NDArray[np.uint8], Truth]:
    """Read an image [H, W, 3] and its labels, of files or of a pair; raises as these do."""
    return dataset.read(item) if isinstance(dataset, PairSet) else read_pair(dataset, item)


def pair_set(
    pairs: Iterable[Any],
    labels: Labels,
    *,
    first_is_ignored: bool = False,
    columns: Columns | None = None,
    limit: int | None = None,
) -> PairSet:
    """Make a data set of pairs.

    Args:
        pairs: with `len` and `[i]`, of which only the pairs at hand are in memory; or any other
            iterable, whose first `limit` pairs are read now and kept.
        labels: the classes, in the order of the labels.
        first_is_ignored: 0 in the masks is not labelled, and 1 is the first class.
        columns: keys of the image and the mask in a pair.
        limit: for an iterable that can be read once.

    Raises:
        TypeError: on something that is no iterable.
        ValueError: on several splits, batches, or nothing to read.
    """
    if isinstance(pairs, Mapping):
        raise ValueError(
            f"`dataset` must be one split; got {[*map(str, pairs)]}. Pass one of them, such as "
            f"`dataset[{next(iter(pairs), 'validation')!r}]`."
        )
    if isinstance(pairs, torch.utils.data.DataLoader):
        raise ValueError("`dataset` must have single pairs; got batches. Pass `loader.dataset`.")
    if not (hasattr(pairs, "__len__") and hasattr(pairs, "__getitem__")):
        if not isinstance(pairs, Iterable):
            raise TypeError(
                "`dataset` must be a name, a folder, or an iterable of (image, mask); got "
                f"{type(pairs).__name__}."
            )
        pairs = list(itertools.islice(pairs, limit))
    held: Any = pairs
    if len(held) == 0:
        raise ValueError("`dataset` must have at least one pair of an image and a mask; got none.")
    return PairSet(
        **own_classes(labels, "names", first_is_ignored),
        name=PAIRS,
        title=f"your own pairs of image and mask, {len(labels)} classes",
        images="",
        masks="",
        image_suffix=(),
        mask_suffix="",
        pairs=held,
        columns=columns,
    )


def as_mask(mask: object, name: str) -> Mask:
    """Convert a label map in any form.

    Args:
        mask: a path, a PIL image of one channel, or whole numbers [H, W] or [1, H, W].
        name: for messages.

    Raises:
        TypeError: on another kind of object, or numbers that are not whole.
        ValueError: on another shape, negative or huge values, and as `read_mask` does.
    """
    if isinstance(mask, (str, Path)):
        return read_mask(local_path(name, mask))
    if isinstance(mask, Image.Image):
        return decode_mask(mask, name)
    values = mask.detach().cpu() if isinstance(mask, torch.Tensor) else mask
    if isinstance(values, torch.Tensor) and not values.is_floating_point():
        values = values.numpy()
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "bui":
        got = getattr(values, "dtype", type(values).__name__)
        raise TypeError(
            f"`{name}` must be a label map: a path, a PIL image, or an array or tensor of whole "
            f"numbers [H, W]; got {got}. `ToTensor()` divides a mask by 255; `PILToTensor()` does "
            "not."
        )
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 2 or values.size == 0:
        raise ValueError(
            f"`{name}` must have one label for each pixel, [H, W]; got {list(values.shape)}."
        )
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > HIGHEST:
        raise ValueError(
            f"`{name}` must have values from 0 to {HIGHEST}; got {low if low < 0 else high}. Write "
            f"{IGNORE} for pixels that are not labelled, `np.where(mask < 0, {IGNORE}, mask)`."
        )
    return Mask(values.astype(np.int64), 1, {})


def _image(image: Any, name: str) -> tuple[NDArray[np.uint8], int]:
    """Convert an image in any form to RGB; return its EXIF orientation too."""
    if isinstance(image, (str, Path)) and local_path(name, image).is_file():
        return read_oriented(local_path(name, image))
    orientation = orientation_of(image) if isinstance(image, Image.Image) else 1
    return as_rgb(image, name), orientation


def _columns(pair: Any, name: str) -> Columns:
    """Find the keys of the image and the mask."""
    if isinstance(pair, Mapping):
        found = [[key for key in known if key in pair] for known in (IMAGE_COLUMNS, MASK_COLUMNS)]
        if [len(keys) for keys in found] != [1, 1]:
            raise ValueError(
                "`columns` must name the image and the mask, such as columns=('image', 'mask'); "
                f"`{name}` has {[*pair]}."
            )
        return found[0][0], found[1][0]
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        got = f"{len(pair)} parts" if isinstance(pair, Sequence) else type(pair).__name__
        raise TypeError(
            f"`{name}` must be a pair (image, mask) or a mapping; got {got}. `columns=(0, 1)` "
            "names the parts."
        )
    return 0, 1
