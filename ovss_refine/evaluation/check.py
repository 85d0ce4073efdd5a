"""Check that a data set is complete and sound: every file of its split is read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ovss_refine.evaluation.dataset import FOLDER, IGNORE, DataSet
from ovss_refine.evaluation.items import Item
from ovss_refine.evaluation.notes import of_orientation, of_truth, some
from ovss_refine.evaluation.reading import read_truth
from ovss_refine.images.read import upright_size

SHOWN = 10


@dataclass(frozen=True, slots=True)
class _Sound:
    """What a sound image and its mask add to the findings."""

    id: str
    pixels: dict[int, int]
    unclear: bool


@dataclass(slots=True)
class Findings:
    """What a check found."""

    base: Path  # folder in which the data set begins
    images: int = 0  # number of images in the split
    good: int = 0  # how many of them exist and have a sound mask of the same size
    # Number of pixels of each raw value in the sound masks.
    pixels: Counter[int] = field(default_factory=Counter)
    unclear: list[str] = field(default_factory=list)  # ids: see `reading.Truth`
    problems: list[str] = field(default_factory=list)  # sentences, general ones first
    notes: list[str] = field(default_factory=list)  # what is unusual but allowed


def check(dataset: DataSet, root: Path, *, workers: int = 2, quiet: bool = False) -> Findings:
    """Find every image and mask, decode every mask, and compare sizes and values.

    Raises:
        FileNotFoundError: if a folder or the list of images is missing.
        ValueError: if there are no images.
    """
    base = dataset.locate(root)
    items = dataset.items(root)
    found = Findings(base, images=len(items))
    if lack := dataset.without_masks(base):
        found.problems.append(lack)
    with ThreadPoolExecutor(workers) as pool:
        outcomes = pool.map(lambda item: _check_item(dataset, item), items)
        for outcome in tqdm(outcomes, total=len(items), unit="mask", disable=quiet):
            if isinstance(outcome, str):
                found.problems.append(outcome)
            else:
                found.good += 1
                found.pixels.update(outcome.pixels)
                found.unclear += [outcome.id] * outcome.unclear
    found.problems += _orphans(dataset, base, items)
    official = dataset.official_images
    if official is not None and len(items) != official:
        found.notes.append(f"{len(items)} images; the official set has {official}.")
    first = int(dataset.first_is_ignored)  # the raw value of class 0
    truth = [found.pixels[first + c] for c in range(dataset.M)]
    found.notes += of_truth(dataset, truth, found.pixels.total() - sum(truth))
    found.notes += of_orientation(found.unclear)
    if lost := dataset.left_out(root):
        found.notes.append(lost)
    return found


def expected(dataset: DataSet) -> str:
    """Describe the files that the data set consists of."""
    star = "**/*" if dataset.recursive else "*"
    images = " or ".join(dataset.image_suffix)
    low, ignored = (1, "0 and {} are") if dataset.first_is_ignored else (0, "{} is")
    return (
        f"{dataset.name}: {dataset.title}\n"
        f"  images  {dataset.images}/{star}{images}\n"
        f"  masks   {dataset.masks}/{star}{dataset.mask_suffix}\n"
        f"  split   {dataset.split or 'all images of the folder'}\n"
        f"  values  {low} to {dataset.highest}, the classes; {ignored.format(IGNORE)} ignored"
        + (", and 0 with --first-is-ignored" if dataset.name == FOLDER and not low else "")
    )


def report(found: Findings, dataset: DataSet) -> str:
    """Describe the data set and what was found."""
    lines = [expected(dataset), f"found in {found.base}"]
    lines.append(f"  {found.good} of {found.images} images are sound")
    lines += [f"  note: {note}" for note in found.notes]
    lines += [f"  problem: {problem}" for problem in found.problems[:SHOWN]]
    if len(found.problems) > SHOWN:
        lines.append(f"  and {len(found.problems) - SHOWN} more problems")
    return "\n".join(lines)


def _check_item(dataset: DataSet, item: Item) -> str | _Sound:
    """Return what is wrong with an image or its mask, or what they hold."""
    if not item.image.is_file():
        though = ", though it has a mask" if item.mask.is_file() else ""
        return f"`{item.image}` is missing{though}."
    try:
        truth = read_truth(dataset, item, *upright_size(item.image))
    except (OSError, ValueError) as err:
        return str(err)
    counts = np.bincount(truth.raw.ravel())
    present = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    return _Sound(item.id, present, truth.unclear)


def _orphans(dataset: DataSet, base: Path, items: Sequence[Item]) -> Iterator[str]:
    """Report masks that have no image and are in no split."""
    if dataset.split is None or not items:
        return
    known = {*dataset.image_ids(base / dataset.images), *(item.id for item in items)}
    if orphans := [id for id in dataset.mask_ids(base / dataset.masks) if id not in known]:
        yield f"{len(orphans)} masks have no image and are in no split: {some(orphans)}."
