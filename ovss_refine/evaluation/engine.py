"""The measurement: images in, one confusion matrix per row out.

The counts of every image are written to disk as soon as they exist. A run that is interrupted, at
whatever moment, resumes with the images that have none.

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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ovss_refine.attention import Attention
from ovss_refine.evaluation.batches import Batch, Sample, batches
from ovss_refine.evaluation.dataset import IGNORE
from ovss_refine.evaluation.given import WithAttention
from ovss_refine.evaluation.inputs import (
    AttentionFrom,
    LogitsFrom,
    PerImage,
    folder_by_id,
    read_ahead,
)
from ovss_refine.evaluation.items import Item
from ovss_refine.evaluation.metric import confusion, pack
from ovss_refine.evaluation.pairs import read_any
from ovss_refine.evaluation.reading import ahead
from ovss_refine.evaluation.request import EvaluateRequest
from ovss_refine.evaluation.rows import Row, without_background
from ovss_refine.evaluation.totals import Totals, add_up
from ovss_refine.folders.records import Record, Records
from ovss_refine.logits import Logits
from ovss_refine.refiner import as_attention
from ovss_refine.sources.processes import ProcessGroup
from ovss_refine.sources.run import both_of

# What reading a damaged file may raise; anything else is an error elsewhere.
READ_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
LabelMaps = dict[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to evaluate, and how."""

    request: EvaluateRequest  # the data set, and the options of reading, batches and errors
    items: Sequence[Item]  # all images, the same in all processes
    logits: LogitsFrom
    attention: AttentionFrom
    rows: Mapping[str, Row]  # by name, functions from logits, attention and images to labels
    records: Records  # those of this process, open; those of all processes are in one folder
    # None, or a function that is called with a sample and its labels by row.
    draw: Callable[[Sample, LabelMaps], None] | None = None


def evaluate(job: Job, group: ProcessGroup) -> Totals:
    """Evaluate the images that have no result yet, and add up all results.

    Returns:
        The sums over all images and processes; in processes other than the first, over the results
        that exist when the process has finished its share.

    Raises:
        ValueError: on inputs that do not fit together; names the image.
        OSError: if results cannot be written.
    """
    folder, rows, M = job.records.path.parent, list(job.rows), job.request.dataset.M
    done = add_up(folder, rows, M).done
    group.wait()  # a line that another process is writing would look damaged
    share = group.share(job.items)
    todo = [item for item in share if item.id not in done]
    bar = tqdm(
        total=len(share),
        initial=len(share) - len(todo),
        unit="image",
        disable=not group.leads,
        mininterval=0.2 if sys.stderr.isatty() else 10,  # a log file keeps every line
    )
    with bar, ThreadPoolExecutor(1, thread_name_prefix="ovss-refine-write") as writer:
        pending = writer.submit(_append, job.records, [])
        for made in _records(job, todo, group.device):
            pending.result()  # a failure to write must stop the run
            pending = writer.submit(_append, job.records, made)
            bar.update(len(made))
        pending.result()
    group.wait()
    return add_up(folder, rows, M)


def _append(records: Records, made: Sequence[Record]) -> None:
    for record in made:
        records.append(record)


def _records(job: Job, items: Iterable[Item], device: torch.device) -> Iterator[list[Record]]:
    """Make the records of some images, batch by batch."""
    with ahead(lambda item: _read(job, item), items, job.request.workers) as stream:
        failures: list[Record] = []
        stacked = batches(_readable(job, stream, failures), job.request.batch_size)
        for number, batch in enumerate(stacked):
            # The number marks the first batches of a process, which are slower.
            made = [record | {"batch": number} for record in _measure(job, batch, device)]
            yield [*failures, *made]
            failures.clear()
        yield failures


def _readable(
    job: Job, stream: Iterator[tuple[Item, Future[Callable[[], Sample]]]], failures: list[Record]
) -> Iterator[Sample]:
    """Yield the samples that can be read; others stop the run or are added to `failures`."""
    for item, future in stream:
        try:
            sample = future.result()()
        except READ_ERRORS as err:
            if job.request.on_error == "stop":
                raise ValueError(
                    f"{item.id}: {err} Pass --on-error skip to leave such images out."
                ) from err
            failures.append({"id": item.id, "failure": str(err)})
        else:
            yield sample


def _read(job: Job, item: Item) -> Callable[[], Sample]:
    """Read the files of an image, in another thread; return a function that makes the sample."""
    image, truth = read_any(job.request.dataset, item)
    logits = read_ahead(job.logits, item.id) if isinstance(job.logits, PerImage) else None
    attention = read_ahead(job.attention, item.id) if isinstance(job.attention, PerImage) else None
    own = item.id, image, truth.labels
    return lambda: Sample(*own, logits and logits(), attention and attention(), truth.unclear)


def _measure(job: Job, batch: Batch, device: torch.device) -> list[Record]:
    """Run the sources and all rows on a batch, and count pixels."""
    seconds: dict[str, float] = {}
    try:
        images = batch.images(device)  # [B, 3, H, W]
        with _timed(seconds, "sources", device):
            logits, attention = _forward(job, batch, images, seconds)
        labels: LabelMaps = {}
        for name, row in job.rows.items():
            with _timed(seconds, name, device):
                labels[name] = row(logits, attention, images).cpu().numpy()  # [B, H, W]
    except (TypeError, ValueError) as err:
        raise ValueError(f"{', '.join(s.id for s in batch.samples)}: {err}") from err
    B, M = len(batch.samples), job.request.dataset.M
    share = {part: round(value / B, 6) for part, value in seconds.items()}
    made = []
    for i, sample in enumerate(batch.samples):
        own = {name: maps[i] for name, maps in labels.items()}
        counts = {n: pack(confusion(sample.truth, x, M, IGNORE)) for n, x in own.items()}
        ignored = int((sample.truth == IGNORE).sum())
        notes = {"ignored": ignored} if ignored else {}
        notes |= {"unclear": True} if sample.unclear else {}
        made.append({"id": sample.id, "counts": counts, "seconds": share, **notes})
        if job.draw is not None:
            job.draw(sample, own)
    return made


def _forward(
    job: Job, batch: Batch, images: Tensor, seconds: dict[str, float]
) -> tuple[Logits, Attention]:
    """Get logits and attention on the device of the images, with a batch axis; note seconds."""
    own: Attention | Tensor | None = None
    ids = {"image_ids": [s.id for s in batch.samples]} if folder_by_id(job.logits) else {}
    with _timed(seconds, "logits", images.device):
        if isinstance(job.logits, PerImage):
            logits = batch.logits(images.device)
        elif isinstance(job.logits, WithAttention):
            logits, own = job.logits.both(images)
        elif (both := both_of(job.logits, job.attention)) is not None:
            logits, own = both(images, **ids)
        else:
            logits = job.logits.logits(images, **ids)
        if job.request.drop_background:
            logits = without_background(logits)
        _check_classes(logits, job.request)
    with _timed(seconds, "attention", images.device):
        h, w = logits.values.shape[-2:]
        if own is not None:
            made = own
        elif isinstance(job.attention, PerImage):
            made = batch.attention(images.device, (h, w))
        else:
            made = job.attention.attention(images)
        return logits, as_attention(made, (h, w), (images.shape[2], images.shape[3]))


def _check_classes(logits: Logits, request: EvaluateRequest) -> None:
    index, dataset = logits.prompt_index, request.dataset
    M = logits.values.shape[1] if index is None else int(torch.as_tensor(index).max()) + 1
    if M == dataset.M:
        _check_order(logits.names, dataset.names)
        return
    hint = ""
    if index is None and logits.values.shape[-1] == dataset.M:
        hint = (
            " The last axis has as many: pass [K, h, w], of an array `logits.transpose(2, 0, 1)`."
        )
    elif M == dataset.M + 1 and not request.drop_background:
        hint = " If class 0 is a background that the data set lacks, pass --drop-background."
    raise ValueError(
        f"`logits` must have the M={dataset.M} classes of {dataset.name}; got {M}.{hint}"
    )


def _check_order(names: Sequence[str], wanted: Sequence[str]) -> None:
    if tuple(names) != tuple(wanted) and sorted(names) == sorted(wanted):
        first = next(c for c, (a, b) in enumerate(zip(names, wanted, strict=True)) if a != b)
        raise ValueError(
            f"`logits` must have the classes in the order of the data set, {wanted[first]!r} at "
            f"{first}; got {names[first]!r} there."
        )


@contextmanager
def _timed(seconds: dict[str, float], part: str, device: torch.device) -> Iterator[None]:
    """Note the seconds that a block takes, including the work of the device."""
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[part] = time.perf_counter() - start
