"""What `refine` does: match the files, refine, write images, print a summary."""

import time
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ovss_refine.cli.refine import RefineRequest
from ovss_refine.examples import read_inputs
from ovss_refine.folders.files import write_whole
from ovss_refine.folders.results import prepare_folder
from ovss_refine.images import draw
from ovss_refine.images.formats import IMAGE_SUFFIXES, pick_images
from ovss_refine.labels import read_labels
from ovss_refine.segment.outputs import writers


def run_refine(request: RefineRequest) -> None:
    """Refine files; see `ovss-refine refine --help`.

    Raises:
        FileNotFoundError: if a file, or the partner of one, is missing.
        FileExistsError: if a result exists and `overwrite` is not set.
        ValueError: on damaged files or inputs that do not match.
    """
    names = read_labels(request.labels).names if request.labels else None
    files = pair_files(request)
    endings = ["labels.png", "overlay.png"]
    endings += ["maps.png"] * request.maps + ["scores.npz"] * request.config.keep_scores
    targets = [request.out / f"{image.stem}_{ending}" for image, *_ in files for ending in endings]
    prepare_folder(request.out, targets, overwrite=request.overwrite)
    for image, logits, attention in tqdm(files, unit="image", disable=len(files) == 1):
        start = time.perf_counter()
        try:
            inputs = read_inputs(image, logits, attention, request.temperature)
            result = inputs.refine(request.config)  # checks the prompts, which give M
            if names is not None and len(names) != inputs.M:
                raise ValueError(
                    f"`{request.labels}` must name M={inputs.M} classes; got {len(names)}."
                )
        except (TypeError, ValueError) as err:
            raise ValueError(f"{image.name}: {err}") from err
        found = result.segmentation(inputs.image, names)
        write = writers(found)
        if result.scores is not None:
            write["scores.npz"] = partial(np.savez_compressed, scores=result.scores.numpy())
        for ending in endings:
            write_whole(request.out / f"{image.stem}_{ending}", write[ending])
        seconds = time.perf_counter() - start
        areas = describe(result.labels.numpy(), found.names)
        tqdm.write(f"{image.stem}: {areas}; {seconds:.2f} s")


def describe(labels: NDArray[np.int64], names: Sequence[str]) -> str:
    """List the classes of a label map with their share of the pixels, largest first."""
    return ", ".join(f"{name} {share:.1%}" for _, name, share in draw.areas(labels, names))


def pair_files(request: RefineRequest) -> list[tuple[Path, Path, Path]]:
    """Return the files of every image: image, logits and attention.

    Raises:
        FileNotFoundError: if a file, or the partner of one, is missing.
        ValueError: if there are several images, but not folders of logits and attention; or if
            two images have the same stem.
    """
    images, logits, attention = list_images(request.image), request.logits, request.attention
    if len(images) > 1 and not (logits.is_dir() and attention.is_dir()):
        raise ValueError(
            f"`--logits` and `--attention` must be folders like `--image`; got `{logits}` and "
            f"`{attention}`."
        )
    return [(image, partner(image, logits), partner(image, attention)) for image in images]


def list_images(path: Path) -> list[Path]:
    """List the images of a folder, or return the one image that `path` is.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if the folder has no image, or two of the same stem.
    """
    if not path.exists():
        raise FileNotFoundError(f"`--image` must be an existing image or folder; got `{path}`.")
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"`--image` must be an image or a folder; `{path}` is a device.")
    found, lost = pick_images(path.iterdir())
    if not found:
        raise ValueError(
            f"`{path}` must contain images ({', '.join(IMAGE_SUFFIXES)}); got none. {lost}".rstrip()
        )
    if lost:
        warnings.warn(lost, stacklevel=2)
    for one, two in pairwise(found):
        if one.stem == two.stem:
            raise ValueError(f"images must have different stems; got `{one.name}`, `{two.name}`.")
    return found


def partner(image: Path, where: Path) -> Path:
    """Return the `.npz` file of an image: `where`, or the file of its stem in the folder `where`.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = where / f"{image.stem}.npz" if where.is_dir() else where
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` must be an existing file, to go with `{image}`.")
    return path
