"""An evaluation from Python: from functions, sources and any data set to a result.

Axes: B images, K prompts, (h, w) grid of the logits, N patches, (H, W) pixels.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from ovss_refine.attention import AttentionSource
from ovss_refine.config import RefineOptions, config_of
from ovss_refine.evaluation import DECISIONS, ROWS
from ovss_refine.evaluation.dataset import FOLDER, DataSet, list_datasets, load_from
from ovss_refine.evaluation.given import Given, as_given, without_attention
from ovss_refine.evaluation.inputs import PerImage
from ovss_refine.evaluation.pairs import Columns, pair_set
from ovss_refine.evaluation.request import Chosen, EvaluateRequest
from ovss_refine.evaluation.result import EvaluationResult
from ovss_refine.evaluation.run import run_evaluate
from ovss_refine.folders.paths import local_path
from ovss_refine.labels import Labels, LabelsLike, as_labels
from ovss_refine.logits import LogitsSource
from ovss_refine.method.modes import ModeName
from ovss_refine.sources import DtypeName
from ovss_refine.sources.processes import world_size

# Rows that are computed from the logits alone.
OF_LOGITS = ("baseline", "upsampling", *DECISIONS)
DataSetLike = str | Path | DataSet | Iterable[Any]


def evaluate(
    logits: str | Callable[[Tensor], Any] | LogitsSource | PerImage[Any],
    attention: str | Callable[[Tensor], Any] | AttentionSource | PerImage[Any] | None = None,
    *,
    dataset: DataSetLike,
    root: str | Path | None = None,
    names: LabelsLike | None = None,
    first_is_ignored: bool = False,
    columns: Columns | None = None,
    rows: Sequence[str] = ROWS,
    mode: ModeName = "maximum_velocity",
    out: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    dtype: DtypeName | None = None,
    logits_options: Mapping[str, Any] | None = None,
    attention_options: Mapping[str, Any] | None = None,
    prompts: str | None = None,
    probability_threshold: float | None = None,
    area_threshold: float | None = None,
    drop_background: bool = False,
    on_error: Literal["skip", "stop"] = "stop",
    workers: int = 2,
    pictures: int = 0,
    **options: Unpack[RefineOptions],
) -> EvaluationResult | None:
    """Compare a segmenter with its refinement on a data set.

    This is the command `ovss-refine evaluate`, with the same numbers; messages call an option by
    its flag, such as --first-is-ignored for `first_is_ignored`.

    Args:
        logits: a function from images [B, 3, H, W], float32 in [0, 1], to logits [B, K, h, w]: a
            tensor, an array, `Logits`, or what a Hugging Face segmenter returns; or to a pair
            (logits, attention), without `attention` then. Or a source: a name (`list_logits`),
            "npz:" and a folder, or an object with a method `logits(images)` or
            `for_image(image_id)`. The K maps are the data set's classes unless `Logits` say more.
        attention: a function from the same images to `Attention`, or to a map [B, N, N] or
            [B, A, N, N] over patches; or a source, as for `logits`. None: `logits` returns it too,
            or all `rows` are among "baseline", "upsampling", "rankseg" and "crf", which use none.
        dataset: a name such as "voc21", with `root`; a folder with images/, masks/ and names.txt;
            or an iterable of (image, mask), such as a data set of Hugging Face or torchvision, with
            `names`. An image has any form that `Refiner` takes; a mask is a path, a PIL image of
            one channel, or whole numbers [H, W], 255 where nothing is labelled. Iterables without
            `len` and `[i]` are kept in memory.
        root: the folder with the data set of that name.
        names: the classes, in the order of the labels, as a list, a text, the `Path` of a file or
            `Labels`; for a folder None: its names.txt.
        first_is_ignored: 0 in the masks is not labelled, and 1 is the first class.
        columns: keys of the image and the mask in the parts of an iterable, such as ("image",
            "annotation"); None: found by their usual names, or 0 and 1.
        rows: some of `ovss_refine.evaluation.ROWS`.
        mode: of the refinement, see `RefineConfig`.
        out: folder for the results. The same call resumes an interrupted run there; other settings,
            weights or code are refused. None: nothing is kept.
        limit: only the first images, at least 1; None: all.
        batch_size: images of one size at a time, at least 1.
        device: "auto", "cpu", "cuda" ...: where images are and refinement runs. None: of the
            weights that `logits` or `attention` holds or refers to, else the CPU; for names "auto".
        dtype: what the models of sources given by name compute in, as for `Segmenter`.
        logits_options: keyword arguments of `logits` if it is a name.
        attention_options: keyword arguments of `attention` if it is a name.
        prompts: family of class prompts, if `logits` is a name; None: the method's.
        probability_threshold: of the baseline, in [0, 1]: less confident pixels become class 0;
            None: the published value, or 0.
        area_threshold: of the baseline, in [0, 1]: smaller classes are dropped; None: the published
            value, or none.
        drop_background: drop class 0 of the logits, for a data set without background.
        on_error: what to do about a file that cannot be read, "skip" or "stop".
        workers: threads that read images, at least 1.
        pictures: draw the first images into `out`, at least 0.
        options: the other fields of `RefineConfig`, such as `logit_scale` for cosines.

    Returns:
        The result; under torchrun None in processes other than the first.

    Raises:
        FileNotFoundError: if a data set, a file or weights are missing.
        TypeError: on an argument of another type, an unknown option, or data in another form.
        ValueError: on a value out of range, inputs that do not fit together, a model in training
            mode, or a folder of other settings.
        ModuleNotFoundError: if a source needs a library that is not installed.
        OSError: if results cannot be written.

    Example:
        >>> import numpy as np, torch
        >>> mask = np.arange(64).reshape(8, 8) // 32  # sky above road
        >>> image = np.repeat(mask[..., None], 3, axis=2) / 2
        >>> def segment(images):  # [1, 3, 8, 8] to [1, 2, 4, 2]
        ...     sky = images.new_tensor([4, 4, 0, 0])[:, None].expand(4, 2)
        ...     return torch.stack([sky, 4 - sky])[None]
        >>> result = evaluate(
        ...     segment, lambda images: torch.eye(8)[None], dataset=[(image, mask)],
        ...     names="sky, road", rows=["baseline", "refined"],
        ... )
        >>> result.miou
        {'baseline': 100.0, 'refined': 100.0}
    """
    config = config_of({"mode": mode, **options})
    wanted = _rows(rows)
    of_logits = _chosen(logits, "logits", logits_options, pair=attention is None)
    if attention is None:
        own: Chosen = without_attention(wanted, needed=not set(wanted) <= {*OF_LOGITS})
    else:
        own = _chosen(attention, "attention", attention_options)
    described, place = _data(dataset, root, names, first_is_ignored, columns, limit)
    with tempfile.TemporaryDirectory(prefix="ovss-refine-") as scratch:
        if out is None:
            _check_kept_nowhere(pictures)
        request = EvaluateRequest(
            dataset=described,
            root=place,
            logits=of_logits,
            attention=own,
            device=_device(device, of_logits, own),
            dtype=dtype,
            limit=limit,
            rows=wanted,
            prompts=prompts,
            probability_threshold=probability_threshold,
            area_threshold=area_threshold,
            drop_background=drop_background,
            out=Path(scratch, "out") if out is None else local_path("out", out),
            on_error=on_error,
            batch_size=batch_size,
            workers=workers,
            pictures=pictures,
            config=config,
        )
        found = run_evaluate(request)
    return replace(found, out=None) if found is not None and out is None else found


def _rows(rows: Sequence[str]) -> tuple[str, ...]:
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise TypeError(f"`rows` must be a list of some of {[*ROWS]}; got {rows!r}.")
    return tuple(rows)


def _chosen(
    source: Any, name: str, options: Mapping[str, Any] | None, *, pair: bool = False
) -> Chosen:
    if isinstance(source, str):
        return Chosen(source, options or {})
    if options:
        raise ValueError(f"`{name}_options` must be left out unless `{name}` is a name.")
    return as_given(source, name, pair=pair)


def _data(
    dataset: DataSetLike,
    root: str | Path | None,
    names: LabelsLike | None,
    first_is_ignored: bool,
    columns: Columns | None,
    limit: int | None,
) -> tuple[DataSet, Path]:
    """Describe the data set; return its root too."""
    if isinstance(names, Mapping):
        raise TypeError("`names` must be a list; got a mapping. Pass `list(names.values())`.")
    labels = None if names is None else as_labels(names)
    if isinstance(dataset, (str, Path, DataSet)):
        if columns is not None:
            raise ValueError("`columns` must be left out for a data set in a folder.")
        return _in_folder(dataset, root, labels, first_is_ignored)
    if root is not None:
        raise ValueError("`root` must be left out where `dataset` is not a name.")
    if labels is None:
        raise ValueError(
            "`names` must be the classes of the data set, in the order of the labels; got None."
        )
    pairs = pair_set(
        dataset, labels, first_is_ignored=first_is_ignored, columns=columns, limit=limit
    )
    return pairs, Path()


def _in_folder(
    dataset: str | Path | DataSet,
    root: str | Path | None,
    labels: Labels | None,
    first_is_ignored: bool,
) -> tuple[DataSet, Path]:
    """Describe a data set whose files are in a folder: at `root`, or itself a folder."""
    folder = None
    if not isinstance(dataset, DataSet) and dataset not in list_datasets():
        folder = Path(dataset)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"`dataset` must be one of {list_datasets()} or an existing folder; got "
                f"`{dataset}`."
            )
        if root is not None:
            raise ValueError("`root` must be left out where `dataset` is the folder itself.")
    base = root if folder is None else folder
    if base is None:
        raise ValueError("`root` must be the folder with the data set; got None.")
    base = Path(base)
    if isinstance(dataset, DataSet):
        if labels is not None or first_is_ignored:
            raise ValueError(
                "`names` and `first_is_ignored` must be left out with a `DataSet`, which has its "
                "own."
            )
        return dataset, base
    name = str(dataset) if folder is None else FOLDER
    return load_from(name, base, labels, first_is_ignored), base


def _device(device: str | torch.device | None, *sources: Chosen) -> str:
    """Return the device that was asked for, or that of the caller's models."""
    if device is not None:
        return str(device)
    given = [source for source in sources if isinstance(source, Given)]
    for source in given:
        if (found := source.device) is not None:
            # Each of several processes has a device of its own.
            alone = world_size() == 1 or found.type == "cpu"
            return str(found) if alone else "auto"
    return "auto" if len(given) < len(sources) else "cpu"


def _check_kept_nowhere(pictures: int) -> None:
    """Raise ValueError if a run needs a folder for its results."""
    if pictures or world_size() > 1:
        raise ValueError(
            "`out` must be a folder for `pictures`, and one that all processes share if there are "
            "several; got None."
        )
