"""What `ovss-refine segment` does: pictures and labels in, files of segmentations out.

A batch of pictures is read, segmented, written and let go before the next is read.
"""

import errno
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ovss_refine import __version__
from ovss_refine.checks import check_count
from ovss_refine.config import RefineConfig
from ovss_refine.images.read import MAX_PIXELS, read_image
from ovss_refine.labels import Labels
from ovss_refine.segment.inputs import Picture, find_pictures
from ovss_refine.segment.journal import Journal, fingerprint
from ovss_refine.segment.outputs import Kinds, write_outputs
from ovss_refine.segmentation import Segmentation
from ovss_refine.segmenter import Segmenter


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asks for.

    Attributes:
        images: files, folders and patterns.
        labels: classes to look for.
        out: folder for the results.
        logits: name of the source of logits.
        attention: name of the source of attention.
        logits_options: what that source is made with.
        attention_options: what that source is made with.
        config: options of the refinement.
        kinds: what to write.
        overwrite: do again what is finished, and forget what was made with other settings.
        batch_size: pictures that are read and segmented at once, >= 1.
        max_pixels: most pixels of a picture, >= 1.
        device: where to compute; None: a GPU if there is one.
        models_dir: folder of the models; None: the hub's cache.
    """

    images: tuple[str, ...]
    labels: Labels
    out: Path
    logits: str = "kk-mean"
    attention: str = "dinov2-b14-reg"
    logits_options: Mapping[str, Any] = field(default_factory=dict)
    attention_options: Mapping[str, Any] = field(default_factory=dict)
    config: RefineConfig = field(default_factory=RefineConfig)
    kinds: Kinds = field(default_factory=Kinds)
    overwrite: bool = False
    batch_size: int = 1
    max_pixels: int = MAX_PIXELS
    device: str | None = None
    models_dir: Path | None = None

    def __post_init__(self) -> None:
        """Check the numbers, and what does not go with the labels."""
        check_count("batch_size", self.batch_size, 1)
        check_count("max_pixels", self.max_pixels, 1)
        background = self.config.background
        if background is not None and background[0] >= len(self.labels):
            raise ValueError(
                f"`background` must name one of the M={len(self.labels)} classes; got "
                f"{background[0]}."
            )
        if self.config.keep_scores:
            raise ValueError(
                "`keep_scores` must be left out, since scores are not among the files of "
                "`segment`; `ovss-refine refine` writes them."
            )

    def settings(self) -> dict[str, Any]:
        """Return all that label maps depend on."""
        return {
            "ovss_refine": __version__,
            "labels": self.labels.names,
            "prompts": self.labels.prompts,
            "logits": self.logits,
            "attention": self.attention,
            **{f"logits option {key}": value for key, value in self.logits_options.items()},
            **{f"attention option {key}": value for key, value in self.attention_options.items()},
            **{key: value for key, value in asdict(self.config).items() if key != "keep_scores"},
        }

    def segmenter(self) -> Segmenter:
        """Make the segmenter, which loads nothing yet."""
        return Segmenter(
            self.logits,
            self.attention,
            device=self.device,
            models_dir=self.models_dir,
            logits_options=self.logits_options,
            attention_options=self.attention_options,
            max_pixels=self.max_pixels,
            **asdict(self.config),
        )


def run_segment(request: Request, segmenter: Segmenter | None = None) -> int:
    """Segment pictures; see `ovss-refine segment --help`.

    Args:
        request: what to do.
        segmenter: what to do it with, in place of the one that `request` describes.

    Returns:
        0, or 1 if pictures failed, which is said at the end.

    Raises:
        FileNotFoundError: if there is nothing at an input, or weights are not to be had.
        FileExistsError: if the folder for the results has other files.
        ValueError: on input that does not fit together, or a folder of other settings.
        OSError: if results cannot be written.
    """
    segmenter = segmenter or request.segmenter()
    pictures = find_pictures(request.images, request.out)
    journal = Journal(
        request.out, request.labels.names, request.settings(), overwrite=request.overwrite
    )
    run = _Run(request, segmenter, journal)
    try:
        todo = [
            picture
            for picture in pictures
            if request.overwrite or not journal.is_finished(picture, request.kinds)
        ]
        if len(todo) < len(pictures):
            print(f"{len(pictures) - len(todo)} of {len(pictures)} pictures were finished before")
        run.all(todo)
        _print_areas(journal, {picture.name for picture in pictures})
    except KeyboardInterrupt:
        says = f"\nwhat is finished is in {request.out}; the same command goes on with the rest"
        print(says, file=sys.stderr)
        raise
    finally:
        journal.close()
    for failure in run.failures:
        print(f"failed: {failure}", file=sys.stderr)
    done = len(pictures) - len(run.failures)
    print(f"results: {request.out} ({done} of {len(pictures)} pictures)")
    return 1 if run.failures else 0


class _Run:
    """One walk over the pictures."""

    def __init__(self, request: Request, segmenter: Segmenter, journal: Journal) -> None:
        self.request, self.segmenter, self.journal = request, segmenter, journal
        self.ready = False
        self.failures: list[str] = []

    def all(self, pictures: Sequence[Picture]) -> None:
        """Segment pictures, a batch at a time; files that are broken are only noted."""
        size = self.request.batch_size
        with tqdm(total=len(pictures), unit="picture", disable=len(pictures) < 2) as bar:
            for start in range(0, len(pictures), size):
                batch = pictures[start : start + size]
                self._batch(batch)
                bar.update(len(batch))

    def _batch(self, pictures: Sequence[Picture]) -> None:
        opened = [read for picture in pictures if (read := self._read(picture))]
        if not opened:
            return
        self._prepare()
        for (picture, file, _), found in self._segment(opened):
            try:
                write_outputs(self.request.out, picture.name, found, self.request.kinds)
            except OSError as err:
                if err.errno != errno.ENAMETOOLONG:  # all others concern the pictures to come
                    raise
                self._fail(picture, err)
                continue
            self.journal.add(picture, file, found, self.request.kinds)
            seen = ", ".join(f"{name} {share:.1%}" for name, _, share in found.areas())
            tqdm.write(f"{picture.name}: {seen}; {sum(found.seconds.values()):.2f} s")

    def _read(self, picture: Picture) -> "_Opened | None":
        try:
            file = fingerprint(picture.path)  # before it is read: whoever changes it is found out
            return picture, file, read_image(picture.path, max_pixels=self.request.max_pixels)
        except (OSError, ValueError, MemoryError) as err:
            self._fail(picture, err)
            return None

    def _prepare(self) -> None:
        """Load the models, once there is a picture for them."""
        if self.ready:
            return
        sizes = self.segmenter.to_load()
        if sizes:
            what = ", ".join(f"{name} ({size})" for name, size in sizes.items())
            tqdm.write(f"loading {what}; what the cache lacks is downloaded", file=sys.stderr)
        self.segmenter.prepare(self.request.labels)
        self.ready = True

    def _segment(self, opened: "list[_Opened]") -> "Iterator[tuple[_Opened, Segmentation]]":
        """Segment a batch, or one by one where that fails, so that one is not all."""
        found = self._try([image for _, _, image in opened])
        if not isinstance(found, Exception):
            yield from zip(opened, found, strict=True)
        elif len(opened) == 1:
            self._fail(opened[0][0], found)
        else:
            for one in opened:
                yield from self._segment([one])

    def _try(self, images: list[NDArray[np.uint8]]) -> list[Segmentation] | Exception:
        baseline = self.request.kinds.baseline
        try:
            return self.segmenter(images, self.request.labels, baseline=baseline)
        except (ValueError, RuntimeError, MemoryError) as err:
            return err.with_traceback(None)  # which would keep the tensors that filled the memory

    def _fail(self, picture: Picture, err: Exception) -> None:
        text = str(err) or type(err).__name__
        self.failures.append(text if str(picture.path) in text else f"`{picture.path}`: {text}")


_Opened = tuple[Picture, tuple[int, int], NDArray[np.uint8]]


def _print_areas(journal: Journal, names: set[str]) -> None:
    """Print how much of the pictures of this run each class covers, largest first."""
    pixels: dict[str, dict[int, int]] = {"refined": {}, "baseline": {}}
    pictures: dict[int, int] = {}
    for area in journal.areas():
        if area.name in names:
            of_kind = pixels[area.labels]
            of_kind[area.index] = of_kind.get(area.index, 0) + area.pixels
            if area.labels == "refined":
                pictures[area.index] = pictures.get(area.index, 0) + 1
    refined, baseline = pixels["refined"], pixels["baseline"]
    if not refined:
        return
    total, all_of_them = sum(refined.values()), {**refined, **baseline}
    wide = max(len("class"), *(len(journal.names[index]) for index in all_of_them))
    print(f"{'class':{wide}}  pictures         pixels   share" + "  baseline" * bool(baseline))
    for index in sorted(all_of_them, key=lambda i: (-refined.get(i, 0), i)):
        own = refined.get(index, 0)
        line = f"{journal.names[index]:{wide}}  {pictures.get(index, 0):8}  {own:13,}  "
        line += f"{own / total:6.1%}"
        print(line + (f"  {baseline.get(index, 0) / total:8.1%}" if baseline else ""))
