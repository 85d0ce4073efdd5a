"""The evaluation: images in, one confusion matrix per row out, whatever happens in between.

Every image's counts are written to the disk once they are made. A run that is stopped, at whatever
moment, goes on with the images that have none.

Axes: B images, M classes, (H, W) pixels.
"""

import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ovss_refine.attention import Attention
from ovss_refine.evaluation.batches import Batch, Sample, batches
from ovss_refine.evaluation.dataset import IGNORE, DataSet, Item
from ovss_refine.evaluation.inputs import AttentionFrom, LogitsFrom, PerImage, read_ahead
from ovss_refine.evaluation.metric import confusion, pack
from ovss_refine.evaluation.processes import ProcessGroup
from ovss_refine.evaluation.reading import ahead, read_pair
from ovss_refine.evaluation.rows import Row, without_background
from ovss_refine.evaluation.totals import Totals, add_up
from ovss_refine.folders.records import Record, Records
from ovss_refine.logits import Logits

# What reading a file may raise; anything else is no fault of the file.
READ_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
LabelMaps = dict[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to evaluate, and how.

    Attributes:
        dataset: what the labels mean.
        items: all images, alike in all processes.
        logits: where scores come from.
        attention: where attention comes from.
        rows: ways from them to labels, by name.
        records: those of this process, open; all processes have theirs in one folder.
        drop_background: drop class 0 of the logits.
        on_error: what to do about an image or mask that cannot be read.
        batch_size: most images at a time, >= 1; only images of one size go together.
        workers: threads that read ahead, >= 1.
        draw: None, or what to do with an image's labels by row.
    """

    dataset: DataSet
    items: Sequence[Item]
    logits: LogitsFrom
    attention: AttentionFrom
    rows: Mapping[str, Row]
    records: Records
    drop_background: bool = False
    on_error: Literal["skip", "stop"] = "stop"
    batch_size: int = 1
    workers: int = 2
    draw: Callable[[Sample, LabelMaps], None] | None = None


def evaluate(job: Job, group: ProcessGroup) -> Totals:
    """Evaluate what has no result yet, and add up all results.

    Returns:
        The sums over all images and processes; in a process that does not lead, over those
        that are there when it has done its part.

    Raises:
        ValueError: on input that does not fit, named by image.
        OSError: if results cannot be written.
    """
    folder, rows, M = job.records.path.parent, list(job.rows), job.dataset.M
    done = add_up(folder, rows, M).done
    group.wait()  # a line that another is just writing would look damaged
    share = [item for item in group.share(job.items) if item.id not in done]
    total = len(group.share(job.items))
    bar = tqdm(
        total=total,
        initial=total - len(share),
        unit="image",
        disable=not group.leads,
        mininterval=0.2 if sys.stderr.isatty() else 10,  # a log file keeps every line
    )
    with bar, ThreadPoolExecutor(1, thread_name_prefix="ovss-refine-write") as writer:
        pending: Future[None] | None = None
        for made in _records(job, share, group.device):
            if pending is not None:
                pending.result()  # a failure to write has to stop the run
            pending = writer.submit(_append, job.records, made)
            bar.update(len(made))
        if pending is not None:
            pending.result()
    group.wait()
    return add_up(folder, rows, M)


def _append(records: Records, made: Sequence[Record]) -> None:
    for record in made:
        records.append(record)


def _records(job: Job, items: Iterable[Item], device: torch.device) -> Iterator[list[Record]]:
    """Make the records of some images, batch by batch."""
    with ahead(lambda item: _read(job, item), items, job.workers) as stream:
        failures: list[Record] = []
        stacked = batches(_readable(job, stream, failures), job.batch_size)
        for number, batch in enumerate(stacked):
            # The number tells which seconds are those of a process that has just begun.
            made = [record | {"batch": number} for record in _measure(job, batch, device)]
            yield [*failures, *made]
            failures.clear()
        yield list(failures)


def _readable(
    job: Job, stream: Iterator[tuple[Item, Future[Callable[[], Sample]]]], failures: list[Record]
) -> Iterator[Sample]:
    """Pass on what could be read; the rest stops the run or joins `failures`."""
    for item, future in stream:
        try:
            sample = future.result()()
        except READ_ERRORS as err:
            if job.on_error == "stop":
                raise ValueError(
                    f"{item.id}: {err} Pass --on-error skip to leave such images out."
                ) from err
            failures.append({"id": item.id, "failure": str(err)})
            continue
        yield sample


def _read(job: Job, item: Item) -> Callable[[], Sample]:
    """Read all of an image that lies in files, in another thread; return what makes a sample."""
    image, truth = read_pair(job.dataset, item)
    logits = read_ahead(job.logits, item.id) if isinstance(job.logits, PerImage) else None
    attention = read_ahead(job.attention, item.id) if isinstance(job.attention, PerImage) else None

    def make() -> Sample:
        return Sample(item.id, image, truth, logits and logits(), attention and attention())

    return make


def _measure(job: Job, batch: Batch, device: torch.device) -> list[Record]:
    """Run the sources and all rows on a batch, and count."""
    seconds: dict[str, float] = {}
    try:
        images = batch.images(device)  # [B, 3, H, W]
        with _timed(seconds, "sources", device):
            logits, attention = _forward(job, batch, images, seconds)
        labels: dict[str, NDArray[np.int64]] = {}
        for name, row in job.rows.items():
            with _timed(seconds, name, device):
                labels[name] = row(logits, attention, images).cpu().numpy()  # [B, H, W]
    except (TypeError, ValueError) as err:
        raise ValueError(f"{', '.join(s.id for s in batch.samples)}: {err}") from err
    B, M = len(batch.samples), job.dataset.M
    made = []
    for i, sample in enumerate(batch.samples):
        own = {name: maps[i] for name, maps in labels.items()}
        counts = {n: pack(confusion(sample.truth, x, M, IGNORE)) for n, x in own.items()}
        share = {part: round(value / B, 6) for part, value in seconds.items()}
        made.append({"id": sample.id, "counts": counts, "seconds": share})
        if job.draw is not None:
            job.draw(sample, own)
    return made


def _forward(
    job: Job, batch: Batch, images: Tensor, seconds: dict[str, float]
) -> tuple[Logits, Attention]:
    """Get logits and attention, with a batch axis, on the device of the images; keep seconds."""
    with _timed(seconds, "logits", images.device):
        if isinstance(job.logits, PerImage):
            logits = batch.logits(images.device)
        else:
            logits = job.logits.logits(images)
        if job.drop_background:
            logits = without_background(logits)
        _check_classes(logits, job)
    with _timed(seconds, "attention", images.device):
        if isinstance(job.attention, PerImage):
            return logits, batch.attention(images.device)
        return logits, job.attention.attention(images)


def _check_classes(logits: Logits, job: Job) -> None:
    index = logits.prompt_index
    M = logits.values.shape[1] if index is None else int(torch.as_tensor(index).max()) + 1
    if M == job.dataset.M:
        return
    hint = ""
    if M == job.dataset.M + 1 and not job.drop_background:
        hint = " If their class 0 is a background that the data set has not: --drop-background."
    raise ValueError(
        f"`logits` must have the M={job.dataset.M} classes of {job.dataset.name}; got {M}.{hint}"
    )


@contextmanager
def _timed(seconds: dict[str, float], part: str, device: torch.device) -> Iterator[None]:
    """Keep the seconds that a block takes, the device's work included."""
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[part] = time.perf_counter() - start
