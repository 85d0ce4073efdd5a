"""The files that `segment` makes of a segmentation: their names, and how each is written.

For an image called NAME: NAME_labels.png, NAME_overlay.png and so on, in the folder of results.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ovss_refine.folders.files import write_whole
from ovss_refine.images import draw
from ovss_refine.segment.request import Outputs
from ovss_refine.segmentation import Segmentation

Writer = Callable[[BinaryIO], object]


def output_names(name: str, outputs: Outputs, classes: Sequence[tuple[int, str]] = ()) -> list[str]:
    """Name the files of one image, relative to the folder of results.

    Args:
        name: of the image.
        outputs: what is written.
        classes: index and name of the classes that occur; each has a mask.
    """
    names = [f"{name}_labels.png", f"{name}_overlay.png"]
    if outputs.baseline:
        names += [f"{name}_baseline.png", f"{name}_comparison.png"]
    if outputs.rle:
        names.append(f"{name}_rle.json")
    if outputs.maps:
        names.append(f"{name}_maps.png")
    if outputs.masks:
        names += [mask_name(name, index, label) for index, label in classes]
    return names


def mask_name(name: str, index: int, label: str) -> str:
    """Name the mask of a class; the index tells apart names that differ in punctuation alone."""
    plain = re.sub(r"[^\w-]+", "_", label).strip("_")
    plain = plain[:60].encode()[:180].decode(errors="ignore")  # file names have at most 255 bytes
    return f"{name}_masks/{index:03}_{plain}.png"


def write_outputs(out: Path, name: str, segmentation: Segmentation, outputs: Outputs) -> list[Path]:
    """Write the files of one image, each whole or not at all.

    Returns:
        Where they are.

    Raises:
        OSError: if one cannot be written.
    """
    writers = _writers(name, segmentation, outputs)
    paths = [out / relative for relative in writers]
    if outputs.masks:
        for old in set((out / f"{name}_masks").glob("*.png")) - set(paths):
            old.unlink()  # of a class that an earlier run found
    for path, write in zip(paths, writers.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
    return paths


def _writers(name: str, found: Segmentation, outputs: Outputs) -> dict[str, Writer]:
    """Return a writer for each of `output_names`."""
    colours = draw.palette(found.names)

    def labels(file: BinaryIO) -> None:
        draw.write_labels(file, found.labels.numpy(), colours)

    def baseline(file: BinaryIO) -> None:
        assert found.baseline is not None  # noqa: S101 - whoever wants it written asks for it
        draw.write_labels(file, found.baseline.numpy(), colours)

    def rle(file: BinaryIO) -> None:
        entries = [{"image_id": name, **entry} for entry in found.rle()]
        file.write(json.dumps(entries, indent=1).encode() + b"\n")

    def mask(index: int, file: BinaryIO) -> None:
        inside = (found.labels == index).numpy()
        Image.fromarray(inside.astype(np.uint8) * 255).save(file, "PNG")

    writers: dict[str, Writer] = {
        "labels.png": labels,
        "overlay.png": lambda file: draw.write_png(file, found.overlay()),
        "baseline.png": baseline,
        "comparison.png": lambda file: draw.write_png(file, found.plot()),
        "rle.json": rle,
        "maps.png": lambda file: draw.write_png(file, found.maps()),
    }
    present = np.unique(found.labels.numpy()).tolist()
    masks = {mask_name(name, i, found.names[i]): partial(mask, i) for i in present}
    every = {f"{name}_{ending}": write for ending, write in writers.items()} | masks
    classes = [(i, found.names[i]) for i in present]
    return {path: every[path] for path in output_names(name, outputs, classes)}
