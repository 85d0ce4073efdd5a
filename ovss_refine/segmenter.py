"""Pictures and labels in, segmentations out: a source of logits, one of attention, the refinement.

Axes: B images, K prompts, M classes, (h, w) grid of the logits, (H, W) pixels.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ovss_refine.attention import Attention, AttentionSource
from ovss_refine.baseline.bands import decide_without
from ovss_refine.checks import check_count
from ovss_refine.config import RefineOptions, config_of
from ovss_refine.images import MAX_PIXELS
from ovss_refine.images.convert import Picture, as_rgb
from ovss_refine.labels import Labels, LabelsLike, as_labels
from ovss_refine.logits import Logits, LogitsSource
from ovss_refine.method.modes import ModeName
from ovss_refine.refiner import refine
from ovss_refine.segmentation import Segmentation
from ovss_refine.sources.lazy import LogitsSlot, Slot

# Pictures of one size that are segmented together: at most so many, and of so many pixels in all.
BATCH_IMAGES, BATCH_PIXELS = 8, 1 << 23
# Backbones enlarge the shorter side to some 500 pixels, and the longer one with it: past this the
# attention map leaves the memory of a small machine (13,690 patches, 0.75 GB, at 10).
MAX_ASPECT = 10
OnStage = Callable[[str], object]


class Segmenter:
    """Segments pictures by labels. Its models are loaded at first use and kept.

    A call leaves nothing behind that a later one could see in its result. Threads may share a
    segmenter: each has its own pictures and results, and waits for the others where a model is
    loaded or run.

    Args:
        logits: name of a source of logits (`list_logits`), or a ready source.
        attention: name of a source of attention (`list_attention`), or a ready source.
        mode: see `RefineConfig`.
        device: where models are loaded to and the work is done, such as "cpu" or "cuda:1"; None
            or "auto": the first GPU if there is one, else the CPU. Ready sources stay where they
            are.
        models_dir: folder that weights are downloaded to and read from, in the layout of the
            hub's cache: fill it by the same call where there is a network. None: the hub's own.
        logits_options: what the source of logits is made with, besides the labels.
        attention_options: what the source of attention is made with.
        max_pixels: the largest picture that is taken, H * W; None: any.
        options: the other fields of `RefineConfig`, save `keep_scores`.

    Raises:
        TypeError: on an unknown option, a value of the wrong kind, or something that is no source.
        ValueError: on a value out of range, an unknown name, or a device that there is not.

    Example: `Segmenter()("photo.jpg", "cat, dog, background: wall/floor/sky").areas()`
    """

    def __init__(
        self,
        logits: str | LogitsSource = "kk-mean",
        attention: str | AttentionSource = "dinov2-b14-reg",
        *,
        mode: ModeName = "maximum_velocity",
        device: str | torch.device | None = None,
        models_dir: str | Path | None = None,
        logits_options: Mapping[str, Any] | None = None,
        attention_options: Mapping[str, Any] | None = None,
        max_pixels: int | None = MAX_PIXELS,
        **options: Unpack[RefineOptions],
    ) -> None:
        """Check everything; load nothing."""
        self.config = config_of({"mode": mode, **options})
        if self.config.keep_scores:
            raise ValueError(
                "`keep_scores` must be False; got True, but a `Segmentation` has no scores. Use "
                "`Refiner`."
            )
        if max_pixels is not None:
            check_count("max_pixels", max_pixels, 1)
        self.max_pixels = max_pixels
        self.device = _device(device)
        folder = _folder(models_dir)
        self._logits = LogitsSlot(logits, logits_options or {}, self.device, folder)
        self._attention = Slot("attention", attention, attention_options or {}, self.device, folder)
        self._given: dict[str, Any] = {
            "logits": logits,
            "attention": attention,
            "mode": mode,
            "device": device,
            "models_dir": models_dir,
            "logits_options": logits_options,
            "attention_options": attention_options,
            "max_pixels": max_pixels,
            **options,
        }

    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...],
        labels: LabelsLike | None,
        *,
        baseline: bool = ...,
        keep_attention: bool = ...,
        on_stage: OnStage | None = ...,
    ) -> list[Segmentation]: ...

    @overload
    def __call__(
        self,
        images: Picture,
        labels: LabelsLike | None,
        *,
        baseline: bool = ...,
        keep_attention: bool = ...,
        on_stage: OnStage | None = ...,
    ) -> Segmentation: ...

    def __call__(
        self,
        images: Picture | Sequence[Picture],
        labels: LabelsLike | None,
        *,
        baseline: bool = False,
        keep_attention: bool = False,
        on_stage: OnStage | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment one picture or several.

        Args:
            images: a picture: path, PIL image, [H, W, 3] uint8 or float array, or [3, H, W] uint8
                or float tensor, floats in [0, 1]; or several: a list or tuple, of any sizes, or a
                [B, 3, H, W] tensor. All are held in memory, those of one size are computed
                together.
            labels: a text such as "cat, dog/puppy, background: wall/floor/sky", a list with a
                text for each class, the `Path` of a file, or `Labels`; None: the classes of a ready
                source of logits.
            baseline: decide without refinement too, as the methods' own code does: the best
                prompt of each class, enlarged bilinearly.
            keep_attention: keep the attention map, N * N floats for each picture.
            on_stage: called with the name of every stage as it begins: "loading" where models are
                loaded or labels embedded; then, for each batch, "logits", "attention", "baseline"
                (where asked for) and "refinement".

        Returns:
            One `Segmentation` for one picture, else a list in the order of the pictures. Its
            `seconds` are those of the stages, "loading" left out.

        Raises:
            FileNotFoundError: if a picture does not exist, or weights are not to be had.
            TypeError: on pictures or labels of no such kind.
            ValueError: on labels that are empty, occur twice or are too long for the model, or
                that are not the classes of a ready source; on a picture that is damaged, too
                large, or more than 10 times as long as wide.
            ModuleNotFoundError: if a source needs a library that is not installed.
        """
        several, pictures = _listed(images)
        arrays = [as_rgb(picture, "images", self.max_pixels) for picture in pictures]
        for array in arrays:
            _check_aspect(array)
        asked = None if labels is None else as_labels(labels)
        if not arrays:
            return []
        sources = self._sources(asked, on_stage)
        found: dict[int, Segmentation] = {}
        for batch in _batches(arrays):
            stages = _Stages(self.device, on_stage)
            done = self._segment(
                [arrays[i] for i in batch], asked, sources, stages, baseline, keep_attention
            )
            found.update(zip(batch, done, strict=True))
        return [found[i] for i in range(len(arrays))] if several else found[0]

    def prepare(self, labels: LabelsLike | None = None, *, on_stage: OnStage | None = None) -> None:
        """Load what the first call with these labels would load. Raises as a call does.

        Args:
            labels: as of a call; None: load the source of attention, and of logits what is ready.
            on_stage: as of a call.
        """
        if labels is not None or not isinstance(self._logits.given, str):
            self._sources(None if labels is None else as_labels(labels), on_stage)
        else:
            self._attention.attention(_begin(on_stage))

    def to_load(self) -> dict[str, str]:
        """Name the sources that are still to be loaded, with the size of their download.

        Returns:
            Such as {"kk-mean": "0.6 GB", "dinov2-b14-reg": "0.3 GB"}; "-" where nothing is
            downloaded, "not stated" where nobody knows. What the cache has is not downloaded.
        """
        # Each is asked once: another thread may load it in between.
        sizes = [(str(slot.given), slot.download) for slot in (self._logits, self._attention)]
        return {name: size for name, size in sizes if size is not None}

    def with_options(self, **changes: Any) -> "Segmenter":
        """Return a segmenter with other options that shares the models that it still uses.

        Args:
            changes: arguments of `Segmenter`. Raises as that does.
        """
        other = Segmenter(**(self._given | changes))
        placed = ("device", "models_dir")
        for slot in ("logits", "attention"):
            if all(
                _same(self._given[k], other._given[k]) for k in (slot, f"{slot}_options", *placed)
            ):
                setattr(other, f"_{slot}", getattr(self, f"_{slot}"))
        return other

    def __repr__(self) -> str:
        """Show what was given."""
        given = ", ".join(f"{k}={v!r}" for k, v in self._given.items() if v is not None)
        return f"Segmenter({given})"

    def _sources(
        self, labels: Labels | None, on_stage: OnStage | None
    ) -> tuple[LogitsSource, AttentionSource]:
        begin = _begin(on_stage)
        return self._logits.logits(labels, begin), self._attention.attention(begin)

    def _segment(
        self,
        arrays: Sequence[NDArray[np.uint8]],
        labels: Labels | None,
        sources: tuple[LogitsSource, AttentionSource],
        stages: "_Stages",
        with_baseline: bool,
        keep_attention: bool,
    ) -> list[Segmentation]:
        """Segment pictures of one size together."""
        pixels = torch.from_numpy(np.stack(arrays)).to(self.device).permute(0, 3, 1, 2)
        pixels = (pixels.float() / 255).contiguous()  # [B, 3, H, W]
        with self._logits.lock, stages("logits"):
            logits = sources[0].logits(pixels)
        names = _names(logits, labels)
        with self._attention.lock, stages("attention"):
            attention = sources[1].attention(pixels)
        plain: list[Tensor | None] = [None] * len(arrays)
        if with_baseline:
            with stages("baseline"):
                plain = list(decide_without(logits, pixels.shape[2:]).cpu())
        with stages("refinement"):
            result = refine(logits, attention, pixels, self.config)
        share = {name: spent / len(arrays) for name, spent in stages.seconds.items()}
        return [
            Segmentation(
                image=array,
                names=names,
                labels=result.labels[b].cpu(),
                discrepancy=result.discrepancy[b].cpu(),
                kept=result.kept[b].cpu(),
                baseline=plain[b],
                seconds=dict(share),
                attention=_of_image(attention, b) if keep_attention else None,
            )
            for b, array in enumerate(arrays)
        ]


class _Stages:
    """Says which stage begins, and measures how long each takes."""

    def __init__(self, device: torch.device, on_stage: OnStage | None) -> None:
        self.device, self.on_stage = device, on_stage
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self.on_stage is not None:
            self.on_stage(name)
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] = time.perf_counter() - start


def _begin(on_stage: OnStage | None) -> Callable[[], object]:
    return lambda: None if on_stage is None else on_stage("loading")


def _device(device: str | torch.device | None) -> torch.device:
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`device` must be one that torch can use; got {device!r}: {reason}"
        ) from None
    return torch.device(device)


def _folder(models_dir: str | Path | None) -> Path | None:
    if models_dir is None:
        return None
    folder = Path(os.path.expanduser(models_dir))  # noqa: PTH111 - Path's own may raise
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`models_dir` must be a folder; `{folder}` is a file.")
    return folder


def _same(one: object, two: object) -> bool:
    """Whether two arguments are the same for sure; models and tensors are compared by identity."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    plain = (str, int, float, Path, torch.device)
    return one is two or (isinstance(one, plain) and type(one) is type(two) and one == two)


def _listed(images: Picture | Sequence[Picture]) -> tuple[bool, Sequence[Picture]]:
    """Return whether several pictures are given, and all of them."""
    if isinstance(images, Tensor) and images.ndim == 4:
        return True, list(images)
    if isinstance(images, (list, tuple)):
        return True, images
    return False, [images]  # type: ignore[list-item]  # anything else is refused as a picture


def _check_aspect(array: NDArray[np.uint8]) -> None:
    H, W = array.shape[:2]
    if max(H, W) > MAX_ASPECT * min(H, W):
        raise ValueError(
            f"`images` must be at most {MAX_ASPECT} times as long as wide; got {W} x {H} pixels. "
            "Cut the picture into parts."
        )


def _batches(arrays: Sequence[NDArray[np.uint8]]) -> Iterator[list[int]]:
    """Group pictures by size, in the order in which a size comes first."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for i, array in enumerate(arrays):
        by_size.setdefault(array.shape, []).append(i)
    for (H, W, _), group in by_size.items():
        n = max(1, min(BATCH_IMAGES, BATCH_PIXELS // (H * W)))
        yield from (group[start : start + n] for start in range(0, len(group), n))


def _names(logits: Logits, labels: Labels | None) -> tuple[str, ...]:
    """Return the names of the classes, or raise if the source has others than `labels`."""
    index, own = logits.prompt_index, tuple(logits.names)
    M = logits.values.shape[1] if index is None else int(torch.as_tensor(index).max()) + 1
    if labels is None:
        return own or tuple(f"class {c}" for c in range(M))
    # A source that knows the prompts alone calls a class by the first.
    first = tuple(row[0] for row in labels.synonyms)
    if len(labels) != M or (own and own not in (labels.names, first)):
        raise ValueError(
            f"`labels` must be the classes of `logits`, {list(own) or M}; got "
            f"{list(labels.names)}. Only a source with a method `with_classes` takes others."
        )
    return labels.names


def _of_image(attention: Attention, b: int) -> Attention:
    """Return the map of one image of a batch, on the CPU, without the batch axis."""
    if attention.factors is not None:
        q, k = (part[b].cpu() for part in attention.factors)
        return Attention(None, attention.grid, factors=(q, k))
    assert attention.weights is not None  # noqa: S101 - checked on construction
    return Attention(attention.weights[b].cpu(), attention.grid)
