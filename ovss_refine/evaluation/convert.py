"""Convert published label maps into those that the benchmarks are scored with.

* coco-stuff: `stuffthingmaps` (values 0 to 181, 255) to train ids, 80 things and then 91 of stuff.
* coco-object: the same maps to 0 for everything that is not a thing, unlabelled pixels included,
  and 1 to 80.
* cityscapes: `labelIds` to the 19 train ids.
* context: maps of PASCAL Context's 459 or 59 classes, with their list of names, to 0 for everything
  that is not one of the 59 frequent classes, and 1 to 59 in alphabetical order.

Every output value is looked up by its input value, so replacements cannot interfere.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ovss_refine.evaluation import CONVERSIONS
from ovss_refine.evaluation.dataset import IGNORE, load_dataset
from ovss_refine.evaluation.reading import read_mask
from ovss_refine.folders.files import write_whole
from ovss_refine.folders.results import prepare_folder
from ovss_refine.labels import read_lines
from ovss_refine.registry import require

# Values of the maps for which COCO has no class: eleven things that were never annotated.
COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
COCO_VALUES = 182
COCO_LAST_THING = 90
# Cityscapes' evaluated classes by their id, in the order of the train ids.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_VALUES = 34
Table = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Conversion:
    """How to convert one kind of map."""

    table: Table  # output value of each input value, -1 for input values that do not occur
    # Suffixes of input files, tried in this order; the output's suffix replaces them.
    ends: tuple[str, ...]
    suffix: str  # suffix of output files


def conversion(name: str, names: Path | None = None) -> Conversion:
    """Return a conversion.

    Args:
        name: one of `CONVERSIONS`.
        names: for "context": the release's list of labels, "number: name" a line.

    Raises:
        ValueError: on an unknown name, or a list of labels that is missing, superfluous or lacks
            one of the 59 classes.
    """
    if name not in CONVERSIONS:
        raise ValueError(f"`conversion` must be one of {list(CONVERSIONS)}; got {name!r}.")
    if (names is None) == (name == "context"):
        raise ValueError(
            f"`names` must be the list of labels for 'context', and nothing else; got {names!r} "
            f"for {name!r}."
        )
    if names is not None:
        return Conversion(_context_table(names), (".mat", ".png"), ".png")
    if name == "cityscapes":
        end, suffix = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
        return Conversion(_cityscapes_table(), (end,), suffix)
    if name == "coco-stuff":
        return Conversion(_coco_stuff_table(), (".png",), "_labelTrainIds.png")
    return Conversion(_coco_object_table(), (".png",), "_instanceTrainIds.png")


def _coco_stuff_table() -> Table:
    """Number the 171 values that are classes, in their order; 255 stays."""
    table = np.full(IGNORE + 1, -1)
    classes = [value for value in range(COCO_VALUES) if value not in COCO_GAPS]
    table[classes] = np.arange(len(classes))
    table[IGNORE] = IGNORE
    return table


def _coco_object_table() -> Table:
    """Number the 80 things from 1; stuff and 255 become 0."""
    table = _coco_stuff_table()
    things = (table >= 0) & (np.arange(len(table)) < COCO_LAST_THING)
    return np.where(things, table + 1, np.where(table >= 0, 0, -1))


def _cityscapes_table() -> Table:
    """Number the 19 evaluated classes; all others and 255 become 255."""
    table = np.full(IGNORE + 1, -1)
    table[:CITYSCAPES_VALUES] = table[IGNORE] = IGNORE
    table[list(CITYSCAPES_IDS)] = np.arange(len(CITYSCAPES_IDS))
    return table


def _context_table(names: Path) -> Table:
    """Number the 59 frequent classes by their names in a list "number: name"; others become 0."""
    numbers: dict[str, int] = {}
    for at, line in enumerate(read_lines(names), start=1):
        number, colon, label = line.partition(":")
        if not line.strip():
            continue
        if not colon or not number.strip().isdigit():
            raise ValueError(
                f"`{names}` must have lines 'number: name'; got {line!r} in line {at}."
            )
        numbers[label.strip()] = int(number)
    classes = load_dataset("context59").names
    if lacking := [name for name in classes if name not in numbers]:
        raise ValueError(
            f"`{names}` must name all 59 classes; {len(lacking)} are missing, {lacking[0]!r} the "
            "first."
        )
    table = np.zeros(max(numbers.values()) + 1, dtype=np.int64)
    table[[numbers[name] for name in classes]] = np.arange(1, len(classes) + 1)
    return table


def apply(table: Table, raw: NDArray[np.int64], origin: str) -> NDArray[np.uint8]:
    """Look up every value of a map; `origin` names the map in a message.

    Raises:
        ValueError: on a value that such maps do not have.
    """
    inside = raw.min() >= 0 and raw.max() < len(table)
    out = table[raw] if inside else np.full(raw.shape, -1)
    if out.min() < 0:
        known = np.flatnonzero(table >= 0)
        wrong = sorted(set(np.unique(raw).tolist()) - set(known.tolist()))
        raise ValueError(
            f"`{origin}` must be a map as it was published; got the values {wrong[:5]}. Has it "
            "been converted already?"
        )
    return out.astype(np.uint8)


def convert(how: Conversion, source: Path, target: Path, *, overwrite: bool) -> int:
    """Convert all maps of a folder and its subfolders; return how many.

    Args:
        how: the conversion.
        source: folder of the published maps.
        target: folder for the results, with the same subfolders.
        overwrite: replace existing results.

    Raises:
        FileNotFoundError: if there is no such folder, or nothing to convert in it.
        FileExistsError: if a result exists and `overwrite` is not set.
        ValueError: on a map that cannot be read or has other values.
    """
    if not source.is_dir():
        raise FileNotFoundError(
            f"`source` must be an existing folder of label maps; got `{source}`."
        )
    pairs = [(path, target / f"{stem}{how.suffix}") for path, stem in _inputs(how, source)]
    if not pairs:
        raise FileNotFoundError(
            f"`source` must have files that end in {' or '.join(how.ends)}; got none in `{source}`."
        )
    prepare_folder(target, [path for _, path in pairs], overwrite=overwrite, name="target")
    for path, result in tqdm(pairs, unit="map"):
        labels = Image.fromarray(apply(how.table, _read(path), str(path)))
        write_whole(result, partial(labels.save, format="PNG"))
    return len(pairs)


def _inputs(how: Conversion, source: Path) -> Iterator[tuple[Path, str]]:
    """Yield the maps that are not results of a conversion: (path, relative stem)."""
    results = ("_labelTrainIds.png", "_instanceTrainIds.png")
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        end = next((end for end in how.ends if name.endswith(end)), None)
        if end and not name.endswith(results) and not path.name.startswith("."):
            yield path, name[: -len(end)]


def _read(path: Path) -> NDArray[np.int64]:
    """Read a label map: a PNG, or a MATLAB file with the variable `LabelMap`."""
    if path.suffix != ".mat":
        return read_mask(path).values
    loadmat = require("scipy.io", "models").loadmat
    try:
        content: Mapping[str, Any] = loadmat(path, variable_names=["LabelMap"])
    except Exception as err:
        raise ValueError(f"`{path}` must be a readable MATLAB file; got {err}.") from err
    if "LabelMap" not in content:
        raise ValueError(f"`{path}` must have the variable LabelMap; it is missing.")
    return np.asarray(content["LabelMap"]).astype(np.int64)
