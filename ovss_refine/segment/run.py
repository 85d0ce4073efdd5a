"""What `ovss-refine segment` does: read, segment, write and release one batch after the other."""

import errno
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ovss_refine.folders.results import check_writable
from ovss_refine.images.read import read_image
from ovss_refine.segment.inputs import ImageFile, find_pictures
from ovss_refine.segment.journal import Journal, fingerprint
from ovss_refine.segment.outputs import write_outputs
from ovss_refine.segment.request import SegmentRequest
from ovss_refine.segmentation import Segmentation
from ovss_refine.segmenter import Segmenter
from ovss_refine.sources.processes import ProcessGroup, join


def run_segment(request: SegmentRequest, segmenter: Segmenter | None = None) -> int:
    """Segment images, as a single process or as one of several; see `ovss-refine segment --help`.

    Args:
        request: what to do.
        segmenter: used in place of the one that `request` describes.

    Returns:
        0, or 1 if images failed; the failures of all processes are listed at the end. 0 in
        processes other than the first.

    Raises:
        FileNotFoundError: if there is nothing at an input, or weights are unavailable.
        FileExistsError: if the folder for the results has other files.
        ValueError: on inputs that do not match, or a folder of other settings.
        OSError: if results cannot be written.
    """
    check_writable(request.out)
    group = join(request.device)
    try:
        return _segment(request, segmenter, group)
    finally:
        group.leave()


def _segment(request: SegmentRequest, segmenter: Segmenter | None, group: ProcessGroup) -> int:
    segmenter = segmenter or Segmenter(
        request.logits,
        request.attention,
        device=group.device,
        dtype=request.dtype,
        models_dir=request.models_dir,
        logits_options=request.logits_options,
        attention_options=request.attention_options,
        max_pixels=request.max_pixels,
        **{one.name: getattr(request.config, one.name) for one in fields(request.config)},
    )
    images = find_pictures(request.images, request.out)
    journal = Journal(
        request.out, request.labels.names, request.settings(), group, overwrite=request.overwrite
    )
    run = _Run(request, segmenter, journal, group.leads)
    try:
        share = group.share(images)
        todo = [
            image
            for image in share
            if request.overwrite or not journal.is_finished(image, request.outputs)
        ]
        before = sum(group.gather([len(share) - len(todo)]))
        if before and group.leads:
            print(f"{before} of {len(images)} images were finished before")
        run.all(todo)
        failures = group.gather(run.failures)
        if group.leads:
            _print_areas(journal, {image.name for image in images})
    except KeyboardInterrupt:
        says = f"\nfinished results are in {request.out}; the same command resumes the run"
        if group.leads:
            print(says, file=sys.stderr)
        raise
    finally:
        journal.close()
    return _report(request, len(images), failures) if group.leads else 0


def _report(request: SegmentRequest, count: int, failures: Sequence[str]) -> int:
    """Print the failures, and how many of `count` images are done; return the exit status."""
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    print(f"results: {request.out} ({count - len(failures)} of {count} images)")
    return 1 if failures else 0


class _Run:
    """One pass over the images of a process."""

    def __init__(
        self, request: SegmentRequest, segmenter: Segmenter, journal: Journal, leads: bool
    ) -> None:
        self.request, self.segmenter, self.journal = request, segmenter, journal
        self.leads = leads  # shows the progress
        self.ready = False
        self.failures: list[str] = []

    def all(self, images: Sequence[ImageFile]) -> None:
        """Segment images, a batch at a time; broken files are recorded and skipped."""
        size = self.request.batch_size
        with tqdm(
            total=len(images), unit="image", disable=len(images) < 2 or not self.leads
        ) as bar:
            for start in range(0, len(images), size):
                batch = images[start : start + size]
                self._batch(batch)
                bar.update(len(batch))

    def _batch(self, images: Sequence[ImageFile]) -> None:
        opened = [read for image in images if (read := self._read(image))]
        if not opened:
            return
        self._prepare()
        for (image, file, _), found in self._segment(opened):
            try:
                write_outputs(self.request.out, image.name, found, self.request.outputs)
            except OSError as err:
                if err.errno != errno.ENAMETOOLONG:  # any other affects the next images too
                    raise
                self._fail(image, err)
                continue
            self.journal.add(image, file, found, self.request.outputs)
            seen = ", ".join(f"{name} {share:.1%}" for name, _, share in found.areas())
            tqdm.write(f"{image.name}: {seen}; {sum(found.seconds.values()):.2f} s")

    def _read(self, image: ImageFile) -> "_Opened | None":
        try:
            file = fingerprint(image.path)  # before reading, to detect later changes
            return image, file, read_image(image.path, max_pixels=self.request.max_pixels)
        except (OSError, ValueError, MemoryError) as err:
            self._fail(image, err)
            return None

    def _prepare(self) -> None:
        """Load the models before the first image that could be read."""
        if self.ready:
            return
        sizes = self.segmenter.to_load()
        if sizes and self.leads:
            what = ", ".join(f"{name} ({size})" for name, size in sizes.items())
            tqdm.write(f"loading {what}; downloading what is not cached", file=sys.stderr)
        self.segmenter.prepare(self.request.labels)
        self.ready = True

    def _segment(self, opened: "list[_Opened]") -> "Iterator[tuple[_Opened, Segmentation]]":
        """Segment a batch; one by one if that fails, so that only the faulty image is lost."""
        request, arrays = self.request, [pixels for _, _, pixels in opened]
        try:
            found = self.segmenter(arrays, request.labels, baseline=request.outputs.baseline)
        except (ValueError, RuntimeError, MemoryError) as err:
            failure = err.with_traceback(None)  # it keeps the tensors that filled the memory alive
        else:
            yield from zip(opened, found, strict=True)
            return
        if len(opened) == 1:
            self._fail(opened[0][0], failure)
        else:
            for one in opened:
                yield from self._segment([one])

    def _fail(self, image: ImageFile, err: Exception) -> None:
        text = str(err) or type(err).__name__
        self.failures.append(text if str(image.path) in text else f"`{image.path}`: {text}")


_Opened = tuple[ImageFile, tuple[int, int], NDArray[np.uint8]]


def _print_areas(journal: Journal, names: set[str]) -> None:
    """Print the share of each class in the images of this run, largest first."""
    pixels: dict[str, dict[int, int]] = {"refined": {}, "baseline": {}}
    images: dict[int, int] = {}
    for area in journal.areas():
        if area.name in names:
            of_kind = pixels[area.labels]
            of_kind[area.index] = of_kind.get(area.index, 0) + area.pixels
            if area.labels == "refined":
                images[area.index] = images.get(area.index, 0) + 1
    refined, baseline = pixels["refined"], pixels["baseline"]
    if not refined:
        return
    total, present = sum(refined.values()), {**refined, **baseline}
    wide = max(len("class"), *(len(journal.names[index]) for index in present))
    print(f"{'class':{wide}}    images         pixels   share" + "  baseline" * bool(baseline))
    for index in sorted(present, key=lambda i: (-refined.get(i, 0), i)):
        own = refined.get(index, 0)
        line = f"{journal.names[index]:{wide}}  {images.get(index, 0):8}  {own:13,}  "
        line += f"{own / total:6.1%}"
        print(line + (f"  {baseline.get(index, 0) / total:8.1%}" if baseline else ""))
