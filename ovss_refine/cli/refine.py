"""What the commands do: pair the files, refine, write pictures, say what came out."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from ovss_refine.attention import Attention, affinity
from ovss_refine.checks import check_number, check_shape
from ovss_refine.config import RefineConfig
from ovss_refine.folders.files import read_arrays, write_whole
from ovss_refine.images import draw
from ovss_refine.images.read import IMAGE_SUFFIXES, read_image
from ovss_refine.refiner import refine
from ovss_refine.result import RefineResult

EXAMPLES = Path(__file__).parents[1] / "examples"
Writers = dict[str, Callable[[BinaryIO], object]]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One image with all that its refinement needs.

    Attributes:
        image: [H, W, 3] uint8.
        logits: [K, h, w] float.
        attention: one map, without a batch axis.
        prompt_index: [K] class of each prompt, or None.
    """

    image: NDArray[np.uint8]
    logits: torch.Tensor
    attention: Attention | torch.Tensor
    prompt_index: torch.Tensor | None

    @property
    def M(self) -> int:
        """Number of classes."""
        return len(self.logits) if self.prompt_index is None else int(self.prompt_index.max()) + 1

    def refine(self, config: RefineConfig) -> RefineResult:
        """Refine this image."""
        image = torch.from_numpy(self.image.transpose(2, 0, 1).copy())
        return refine(self.logits, self.attention, image, config, prompt_index=self.prompt_index)


def run_demo(out: Path, *, overwrite: bool) -> None:
    """Refine the built-in photographs; write a before/after picture of each."""
    names = read_names(EXAMPLES / "voc_names.txt")
    stems = sorted(path.stem for path in EXAMPLES.glob("*.png"))
    targets = [out / f"{stem}_before_after.png" for stem in stems]
    prepare_output(out, targets, overwrite=overwrite)
    for stem, target in zip(stems, targets, strict=True):
        arrays = EXAMPLES / f"{stem}.npz"
        sample = read_sample(EXAMPLES / f"{stem}.png", arrays, arrays, temperature=0.05)
        H, W = sample.image.shape[:2]
        bilinear = F.interpolate(sample.logits[None].float(), (H, W), mode="bilinear")
        before = bilinear[0].argmax(0).numpy()
        start = time.perf_counter()
        after = sample.refine(RefineConfig()).labels.numpy()
        seconds = time.perf_counter() - start

        pair = {"before: bilinear": before, "after: refined": after}
        page = draw.labelled(sample.image, pair, names)
        write_whole(target, partial(draw.write_png, picture=page))
        print(f"{stem}: {W} x {H} pixels, {sample.M} classes")
        print(f"  before  {describe(before, names)}")
        print(f"  after   {describe(after, names)}")
        print(f"  {np.mean(before != after):.1%} of the pixels changed, in {seconds:.2f} s")
        print(f"  {target}")


def run_refine(
    *,
    image: Path,
    logits: Path,
    attention: Path,
    labels: Path | None,
    temperature: float,
    config: RefineConfig,
    maps: bool,
    out: Path,
    overwrite: bool,
) -> None:
    """Refine files; see `ovss-refine refine --help`.

    Raises:
        FileNotFoundError: if a file, or the partner of one, is missing.
        FileExistsError: if a result exists and `overwrite` is not set.
        ValueError: on damaged files or input that does not fit together.
    """
    check_number("temperature", temperature, 0, open_ends=True)
    names = read_names(labels) if labels else None
    images = list_images(image)
    if len(images) > 1 and not (logits.is_dir() and attention.is_dir()):
        raise ValueError(
            f"`--logits` and `--attention` must be folders like `--image`; got `{logits}` and "
            f"`{attention}`."
        )
    pairs = [(path, partner(path, logits), partner(path, attention)) for path in images]
    kinds = ["labels.png", "overlay.png"]
    kinds += ["maps.png"] * maps + ["scores.npz"] * config.keep_scores
    targets = [out / f"{path.stem}_{kind}" for path in images for kind in kinds]
    prepare_output(out, targets, overwrite=overwrite)
    for path, its_logits, its_attention in tqdm(pairs, unit="image", disable=len(pairs) == 1):
        start = time.perf_counter()
        try:
            sample = read_sample(path, its_logits, its_attention, temperature)
            if names is not None and len(names) != sample.M:
                raise ValueError(f"`{labels}` must name M={sample.M} classes; got {len(names)}.")
            result = sample.refine(config)
        except (TypeError, ValueError) as err:
            raise ValueError(f"{path.name}: {err}") from err
        own_names = names or [f"class {index}" for index in range(sample.M)]
        write = writers(sample, result, own_names)
        for kind in kinds:
            write_whole(out / f"{path.stem}_{kind}", write[kind])
        seconds = time.perf_counter() - start
        tqdm.write(f"{path.stem}: {describe(result.labels.numpy(), own_names)}; {seconds:.2f} s")


def writers(sample: Sample, result: RefineResult, names: Sequence[str]) -> Writers:
    """Return what can be written of a result, each as a function of an open file."""
    labels, colours = result.labels.numpy(), draw.palette(names)

    def write_scores(file: BinaryIO) -> None:
        assert result.scores is not None  # noqa: S101 - written only with `keep_scores`
        np.savez_compressed(file, scores=result.scores.numpy())

    return {
        "labels.png": lambda file: draw.write_labels(file, labels, colours),
        "overlay.png": lambda file: draw.write_png(file, result.overlay(sample.image, names)),
        "maps.png": lambda file: draw.write_png(file, result.maps(sample.image, names)),
        "scores.npz": write_scores,
    }


def describe(labels: NDArray[np.int64], names: Sequence[str]) -> str:
    """List the classes of a label map with their share of the pixels, largest first."""
    return ", ".join(f"{name} {share:.1%}" for _, name, share in draw.areas(labels, names))


def read_sample(image: Path, logits: Path, attention: Path, temperature: float) -> Sample:
    """Read the files of one image.

    Raises:
        ValueError: on a damaged file, or one without the arrays that are needed.
    """
    scores = read_arrays(logits, ["logits"], optional=["prompt_index"])
    index = scores.get("prompt_index")
    maps = read_arrays(attention, ["attention", "features"])
    made: Attention | torch.Tensor
    if "attention" in maps:
        made = torch.from_numpy(maps["attention"])
    else:
        made = affinity(torch.from_numpy(maps["features"]), temperature)
    own = torch.from_numpy(scores["logits"])
    check_shape("logits", own, "K h w")
    prompts = None
    if index is not None:
        prompts = torch.from_numpy(index.astype(np.int64) if index.dtype.kind == "u" else index)
        check_shape("prompt_index", prompts, "K", K=len(own))
    return Sample(read_image(image), own, made, prompts)


def read_names(path: Path) -> list[str]:
    """Read class names, one a line.

    Raises:
        ValueError: if the file is not text, is empty, or has a blank line before its end.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"`{path}` must be a text file with one class name a line.") from None
    names = [line.strip() for line in lines]
    if "" in names:
        raise ValueError(
            f"`{path}` must have a name on every line; line {names.index('') + 1} is blank."
        )
    return names


def list_images(path: Path) -> list[Path]:
    """List the pictures of a folder by name, or the one picture that `path` is.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if the folder has no picture, or two of the same stem.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"`--image` must be a picture or a folder; `{path}` does not exist."
        )
    if path.is_file():
        return [path]
    found = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
    found.sort(key=lambda p: (p.stem, p.name))
    if not found:
        raise ValueError(f"`{path}` must hold pictures ({', '.join(IMAGE_SUFFIXES)}); got none.")
    for one, two in pairwise(found):
        if one.stem == two.stem:
            raise ValueError(f"pictures must differ in stem; got `{one.name}` and `{two.name}`.")
    return found


def partner(image: Path, where: Path) -> Path:
    """Return the `.npz` that belongs to an image: `where` itself, or by stem in that folder.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = where / f"{image.stem}.npz" if where.is_dir() else where
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` must exist, to go with `{image}`; it does not.")
    return path


def prepare_output(out: Path, targets: Sequence[Path], *, overwrite: bool) -> None:
    """Make the folder for the results and see that none of them is there yet.

    Raises:
        FileExistsError: if one is, and `overwrite` is not set; or if `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"`--out` must be a folder; `{out}` is a file.")
    there = [path for path in targets if path.exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"`{there[0]}` exists ({len(there)} of {len(targets)} results do); pass --overwrite to "
            "replace, or another --out."
        )
    out.mkdir(parents=True, exist_ok=True)
