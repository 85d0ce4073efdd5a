"""Is a data set where it should be, and as it should be? Looks at every file of its split."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ovss_refine.evaluation.dataset import IGNORE, DataSet, Item
from ovss_refine.evaluation.reading import read_mask, to_labels

SHOWN = 10


@dataclass(slots=True)
class Findings:
    """What a check found.

    Attributes:
        base: folder in which the data set begins.
        images: number of images of the split.
        good: how many of them have an image and a sound mask of its size.
        pixels: number of pixels of each raw value, in the sound masks.
        problems: sentences, the general ones first.
        notes: what is unusual but allowed.
    """

    base: Path
    images: int = 0
    good: int = 0
    pixels: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(dataset: DataSet, root: Path, *, workers: int = 2, quiet: bool = False) -> Findings:
    """Look for every image and mask, decode every mask, and compare sizes and values.

    Raises:
        FileNotFoundError: if a folder or the list of images is missing.
        ValueError: if there is not even one image.
    """
    base = dataset.locate(root)
    items = dataset.items(root)
    found = Findings(base, images=len(items))
    if lack := dataset.without_masks(base):
        found.problems.append(lack)
    with ThreadPoolExecutor(workers) as pool:
        looked = pool.map(lambda item: _look(dataset, item), items)
        for outcome in tqdm(looked, total=len(items), unit="mask", disable=quiet):
            if isinstance(outcome, str):
                found.problems.append(outcome)
            else:
                found.good += 1
                found.pixels.update(outcome)
    found.problems += _strangers(dataset, base, items)
    official = dataset.official_images
    if official is not None and len(items) != official:
        found.notes.append(f"{len(items)} images; the official set has {official}.")
    absent = [dataset.names[c] for c in range(dataset.M) if not found.pixels[_raw(dataset, c)]]
    if absent:
        found.notes.append(f"{len(absent)} classes occur nowhere: {_some(absent)}.")
    return found


def expected(dataset: DataSet) -> str:
    """Say which files the data set consists of."""
    star = "**/*" if dataset.recursive else "*"
    images = " or ".join(dataset.image_suffix)
    lines = [
        f"{dataset.name}: {dataset.title}",
        f"  images  {dataset.images}/{star}{images}",
        f"  masks   {dataset.masks}/{star}{dataset.mask_suffix}",
        f"  split   {dataset.split or 'all images of the folder'}",
        f"  values  {_values(dataset)}",
    ]
    return "\n".join(lines)


def report(found: Findings, dataset: DataSet) -> str:
    """Tell what was found."""
    lines = [expected(dataset), f"found in {found.base}"]
    lines.append(f"  {found.good} of {found.images} images are sound")
    lines += [f"  note: {note}" for note in found.notes]
    lines += [f"  problem: {problem}" for problem in found.problems[:SHOWN]]
    if len(found.problems) > SHOWN:
        lines.append(f"  and {len(found.problems) - SHOWN} problems more")
    return "\n".join(lines)


def _values(dataset: DataSet) -> str:
    if dataset.first_is_ignored:
        return f"1 to {dataset.highest}, the classes; 0 and {IGNORE} are ignored"
    return f"0 to {dataset.highest}, the classes; {IGNORE} is ignored"


def _look(dataset: DataSet, item: Item) -> str | dict[int, int]:
    """Return what is wrong with an image, or how many pixels its mask has of each raw value."""
    if not item.image.is_file():
        return f"`{item.image}` is missing" + (
            ", though it has a mask." if item.mask.is_file() else "."
        )
    try:
        raw = read_mask(item.mask)
        to_labels(raw, dataset, str(item.mask))
        with Image.open(item.image) as picture:  # the head only
            size = picture.size
    except (OSError, ValueError, SyntaxError) as err:
        return str(err)
    if raw.shape != size[::-1]:
        return (
            f"`{item.mask}` must have the size of its image, {size[0]} x {size[1]}; got "
            f"{raw.shape[1]} x {raw.shape[0]}."
        )
    counts = np.bincount(raw.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _strangers(dataset: DataSet, base: Path, items: Sequence[Item]) -> Iterator[str]:
    """Name what a split file lists of neither images nor masks: nothing, in most folders."""
    if dataset.split is None or not items:
        return
    known = {item.id for item in items}
    masks = [id for id in dataset.mask_ids(base / dataset.masks) if id not in known]
    images = set(dataset.image_ids(base / dataset.images))
    if orphans := [id for id in masks if id not in images]:
        yield f"{len(orphans)} masks have no image, in no split: {_some(orphans)}."


def _raw(dataset: DataSet, label: int) -> int:
    return label + 1 if dataset.first_is_ignored else label


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
