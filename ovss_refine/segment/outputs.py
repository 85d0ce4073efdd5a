"""The files that `segment` writes for a segmentation: their names and contents.

For an image named NAME: NAME_labels.png, NAME_overlay.png and so on, in the folder for the results.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ovss_refine.folders.files import make_folder, write_whole
from ovss_refine.images import draw
from ovss_refine.segment.request import Outputs
from ovss_refine.segmentation import Segmentation

Writer = Callable[[BinaryIO], object]


def output_names(name: str, outputs: Outputs, classes: Sequence[tuple[int, str]] = ()) -> list[str]:
    """List the files of image `name`, relative to the folder for the results.

    Args:
        name: of the image.
        outputs: which files are written.
        classes: index and name of the classes that occur; each has a mask.
    """
    endings = ["labels.png", "overlay.png"]
    endings += ["baseline.png", "comparison.png"] * outputs.baseline
    endings += ["rle.json"] * outputs.rle + ["maps.png"] * outputs.maps
    masks = [mask_name(name, index, label) for index, label in classes if outputs.masks]
    return [f"{name}_{ending}" for ending in endings] + masks


def mask_name(name: str, index: int, label: str) -> str:
    """Name the mask of a class; the index distinguishes names that differ only in punctuation."""
    plain = re.sub(r"[^\w-]+", "_", label).strip("_")
    plain = plain[:60].encode()[:180].decode(errors="ignore")  # file names have at most 255 bytes
    return f"{name}_masks/{index:03}_{plain}.png"


def write_outputs(out: Path, name: str, segmentation: Segmentation, outputs: Outputs) -> list[Path]:
    """Write the files of one image, each whole or not at all; return their paths.

    Raises:
        OSError: if one cannot be written.
    """
    files = _writers(name, segmentation, outputs)
    paths = [out / relative for relative in files]
    if outputs.masks:
        for old in set((out / f"{name}_masks").glob("*.png")) - set(paths):
            old.unlink()  # of a class found by an earlier run
    for path, write in zip(paths, files.values(), strict=True):
        make_folder(path.parent)
        write_whole(path, write)
    return paths


def writers(found: Segmentation) -> dict[str, Writer]:
    """Return the functions that write the results of one image, by the endings of their files."""
    colours = draw.palette(found.names)

    def baseline(file: BinaryIO) -> None:
        assert found.baseline is not None  # noqa: S101 - the caller asked for it
        draw.write_labels(file, found.baseline.numpy(), colours)

    return {
        "labels.png": lambda file: draw.write_labels(file, found.labels.numpy(), colours),
        "overlay.png": lambda file: draw.write_png(file, found.overlay()),
        "baseline.png": baseline,
        "comparison.png": lambda file: draw.write_png(file, found.plot()),
        "maps.png": lambda file: draw.write_png(file, found.maps()),
    }


def _writers(name: str, found: Segmentation, outputs: Outputs) -> dict[str, Writer]:
    """Return a function that writes the file for each of `output_names`."""

    def rle(file: BinaryIO) -> None:
        entries = [{"image_id": name, **entry} for entry in found.rle()]
        file.write(json.dumps(entries, indent=1).encode() + b"\n")

    def mask(index: int, file: BinaryIO) -> None:
        inside = (found.labels == index).numpy()
        Image.fromarray(inside.astype(np.uint8) * 255).save(file, "PNG")

    present = np.unique(found.labels.numpy()).tolist()
    every = {f"{name}_{ending}": write for ending, write in writers(found).items()}
    every[f"{name}_rle.json"] = rle
    every |= {mask_name(name, i, found.names[i]): partial(mask, i) for i in present}
    classes = [(i, found.names[i]) for i in present]
    return {path: every[path] for path in output_names(name, outputs, classes)}
