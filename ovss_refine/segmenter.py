"""Segment images by labels: a source of logits, a source of attention, and the refinement.

Axes: B images, K prompts, M classes, (h, w) grid of the logits, (H, W) pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack, overload

import numpy as np
import torch
from torch import Tensor

from ovss_refine.attention import AttentionSource
from ovss_refine.baseline.bands import decide_without
from ovss_refine.checks import check_count
from ovss_refine.config import RefineOptions, config_of
from ovss_refine.images import MAX_PIXELS
from ovss_refine.images.batches import batches
from ovss_refine.images.convert import ImageLike, ImagesLike, as_image_list, as_rgb
from ovss_refine.images.read import RGB
from ovss_refine.labels import Labels, LabelsLike, as_labels
from ovss_refine.logits import Logits, LogitsSource
from ovss_refine.method.modes import ModeName
from ovss_refine.refiner import refine
from ovss_refine.segmentation import Segmentation
from ovss_refine.sources.device import DtypeLike, Placement, given_dtype, resolve_device
from ovss_refine.sources.lazy import check_models_dir
from ovss_refine.sources.run import load_pair, make_pair, run_sources
from ovss_refine.sources.stages import OnStage, Stages, announce_loading

# Backbones resize the shorter side to some 500 pixels and keep the aspect ratio: beyond this limit
# the attention map does not fit a small machine's memory (13,690 patches, 0.75 GB, at 10).
MAX_ASPECT = 10


class Segmenter:
    """Segments images by labels. Its models are loaded at first use and kept.

    No call affects the result of a later one. Threads may share a segmenter: they wait for each
    other only while a model is loaded or run.

    Args:
        logits: name of a source of logits (`list_logits`), or a ready source.
        attention: name of a source of attention (`list_attention`), or a ready source; or "own":
            that which the source of logits computes, in the same pass if it takes whole images. A
            ready source given for both runs once if it has a method `logits_and_attention(images)`.
        mode: see `RefineConfig`.
        device: where models are loaded and run, such as "cpu" or "cuda:1"; None or "auto": the
            first GPU if there is one, else the CPU. Ready sources stay where they are.
        dtype: what models that are loaded by name compute in: None: the dtype of their weights,
            float32 as a rule; "float32", "bfloat16", "float16" or a dtype of torch; "auto": float16
            on a GPU, bfloat16 on a CPU with instructions for it, else float32. Logits and
            attention are float32 in any case.
        models_dir: folder that weights are downloaded to and read from, in the layout of the
            hub's cache; the same call on a machine with a network fills it. None: the hub's own.
        logits_options: keyword arguments of the source of logits, except the labels.
        attention_options: keyword arguments of the source of attention.
        max_pixels: the largest image accepted, H * W; None: any.
        options: the other fields of `RefineConfig`, except `keep_scores`.

    Raises:
        TypeError: on an unknown option, a value of the wrong type, or an object that is not a
            source.
        ValueError: on a value out of range, an unknown name, or an unavailable device.

    Example: `Segmenter()("photo.jpg", "cat, dog, background: wall/floor/sky").areas()`
    """

    def __init__(
        self,
        logits: str | LogitsSource = "kk-mean",
        attention: str | AttentionSource = "dinov2-b14-reg",
        *,
        mode: ModeName = "maximum_velocity",
        device: str | torch.device | None = None,
        dtype: DtypeLike = None,
        models_dir: str | Path | None = None,
        logits_options: Mapping[str, Any] | None = None,
        attention_options: Mapping[str, Any] | None = None,
        max_pixels: int | None = MAX_PIXELS,
        **options: Unpack[RefineOptions],
    ) -> None:
        """Check the arguments; load nothing."""
        self.config = config_of({"mode": mode, **options})
        if self.config.keep_scores:
            raise ValueError(
                "`keep_scores` must be False; got True, but a `Segmentation` has no scores. Use "
                "`Refiner`."
            )
        if max_pixels is not None:
            check_count("max_pixels", max_pixels, 1)
        self.max_pixels = max_pixels
        self.device = resolve_device(device)
        given_dtype(dtype, self.device)  # raises before anything is loaded
        where = Placement(self.device, dtype), check_models_dir(models_dir)
        of = logits_options or {}, attention_options or {}
        self._logits, self._attention = make_pair(logits, attention, *of, *where)
        named = {"logits": logits, "attention": attention, "mode": mode, "device": device}
        self._given: dict[str, Any] = named | {
            **{"dtype": dtype, "models_dir": models_dir, "max_pixels": max_pixels},
            **{"logits_options": logits_options, "attention_options": attention_options},
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
        keep_logits: bool = ...,
        on_stage: OnStage | None = ...,
    ) -> list[Segmentation]: ...

    @overload
    def __call__(
        self,
        images: ImageLike,
        labels: LabelsLike | None,
        *,
        baseline: bool = ...,
        keep_attention: bool = ...,
        keep_logits: bool = ...,
        on_stage: OnStage | None = ...,
    ) -> Segmentation: ...

    def __call__(
        self,
        images: ImagesLike,
        labels: LabelsLike | None,
        *,
        baseline: bool = False,
        keep_attention: bool = False,
        keep_logits: bool = False,
        on_stage: OnStage | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment one image or several.

        Args:
            images: one image: a path, a PIL image, an array [H, W, 3] or a tensor [3, H, W], uint8
                or float in [0, 1]; or several: a list of images of any sizes, a tensor
                [B, 3, H, W] or an array [B, H, W, 3]. All are held in memory; images of one size
                are computed together.
            labels: a text such as "cat, dog/puppy, background: wall/floor/sky", a list with a
                text for each class, the `Path` of a file, or `Labels`; None: the classes of a ready
                source of logits.
            baseline: also decide without refinement, as the methods' own code does: the best
                prompt of each class, upsampled bilinearly.
            keep_attention: keep the attention map, N * N floats for each image.
            keep_logits: keep the logits, K * h * w floats for each image: what `refine` needs, with
                the attention, to refine the image again.
            on_stage: called with the name of every stage as it begins: "loading" if models are
                loaded or labels embedded; then, for each batch, "logits", "attention", "baseline"
                (if requested) and "refinement".

        Returns:
            One `Segmentation` for one image, else a list in the order of the images. `seconds` has
            every stage but "loading".

        Raises:
            FileNotFoundError: if an image does not exist, or weights are unavailable.
            TypeError: on images or labels in none of these forms.
            ValueError: on labels that are empty, occur twice, are too long for the model, or are
                not the classes of a ready source; on an image that is damaged, too large, or more
                than 10 times as long as wide.
            ModuleNotFoundError: if a source needs a library that is not installed.
        """
        named, several = as_image_list(images, "images")
        arrays = [self._read(image, name) for image, name in named]
        asked = None if labels is None else as_labels(labels)
        if not arrays:
            return []
        begin = announce_loading(on_stage)
        sources = load_pair(self._logits, self._attention, asked, begin)
        keep = keep_attention, keep_logits
        found: dict[int, Segmentation] = {}
        for batch in batches(arrays):
            stages = Stages(self.device, on_stage)
            done = self._segment([arrays[i] for i in batch], asked, sources, stages, baseline, keep)
            found.update(zip(batch, done, strict=True))
        return [found[i] for i in range(len(arrays))] if several else found[0]

    def prepare(self, labels: LabelsLike | None = None, *, on_stage: OnStage | None = None) -> None:
        """Load what the first call with these labels would load. Raises as a call does.

        Args:
            labels: as in a call; None: load the source of attention only.
            on_stage: as in a call.
        """
        begin = announce_loading(on_stage)
        if labels is not None or not isinstance(self._logits.given, str):
            asked = None if labels is None else as_labels(labels)
            load_pair(self._logits, self._attention, asked, begin)
        elif self._attention is not self._logits:
            self._attention.attention(begin)

    def to_load(self) -> dict[str, str]:
        """Return the sources that are not loaded yet, with the sizes of their downloads.

        Returns:
            Such as {"kk-mean": "0.6 GB", "dinov2-b14-reg": "0.3 GB"}; "-" if nothing is
            downloaded, "not stated" if the size is unknown. Cached weights are listed too.

        Example:
            >>> Segmenter().to_load()
            {'kk-mean': '0.6 GB', 'dinov2-b14-reg': '0.3 GB'}
        """
        # `download` is read once: another thread may load the source in between.
        sizes = [(str(x.given), x.download) for x in (self._logits, self._attention)]
        return {name: size for name, size in sizes if size is not None}

    def with_options(self, **changes: Any) -> "Segmenter":
        """Return a segmenter with changed arguments that shares every model it still needs.

        `changes` are arguments of `Segmenter`, by name; raises as that does.
        """
        other = Segmenter(**(self._given | changes))
        own = other._attention is other._logits
        if self._logits.same_as(other._logits):
            other._logits = self._logits
        if own:
            other._attention = other._logits
        elif self._attention.same_as(other._attention):
            other._attention = self._attention
        return other

    def __repr__(self) -> str:
        """Show the arguments."""
        given = ", ".join(f"{k}={v!r}" for k, v in self._given.items() if v is not None)
        return f"Segmenter({given})"

    def _read(self, image: ImageLike, name: str) -> RGB:
        """Read an image and check its size."""
        array = as_rgb(image, name, self.max_pixels)
        H, W = array.shape[:2]
        if max(H, W) > MAX_ASPECT * min(H, W):
            raise ValueError(
                f"`{name}` must be at most {MAX_ASPECT} times as long as wide; got {W} x {H} "
                "pixels. Cut the image into parts."
            )
        return array

    def _segment(
        self,
        arrays: Sequence[RGB],
        labels: Labels | None,
        sources: tuple[LogitsSource, AttentionSource],
        stages: Stages,
        with_baseline: bool,
        keep: tuple[bool, bool],
    ) -> list[Segmentation]:
        """Segment images of one size together; `keep` attention and logits."""
        pixels = torch.from_numpy(np.stack(arrays)).to(self.device).permute(0, 3, 1, 2)
        pixels = (pixels.float() / 255).contiguous()  # [B, 3, H, W]
        logits, attention = run_sources(self._logits, self._attention, sources, pixels, stages)
        names = _names(logits, labels)
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
                attention=attention[b].to("cpu") if keep[0] else None,
                logits=replace(logits, values=logits.values[b].cpu(), names=names)
                if keep[1]
                else None,
            )
            for b, array in enumerate(arrays)
        ]


def _names(logits: Logits, labels: Labels | None) -> tuple[str, ...]:
    """Return the names of the classes, or raise if `labels` are not the source's classes."""
    index, own = logits.prompt_index, tuple(logits.names)
    M = logits.values.shape[1] if index is None else int(torch.as_tensor(index).max()) + 1
    if labels is None:
        return own or tuple(f"class {c}" for c in range(M))
    # A source that knows only the prompts names each class after the first.
    first = tuple(row[0] for row in labels.synonyms)
    if len(labels) != M or (own and own not in (labels.names, first)):
        raise ValueError(
            f"`labels` must be the classes of `logits`, {list(own) or M}; got "
            f"{list(labels.names)}. Only a source with a method `with_classes` takes others."
        )
    return labels.names
