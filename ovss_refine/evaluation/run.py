"""What `ovss-refine evaluate` does: from a request to the tables."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ovss_refine import __version__
from ovss_refine.evaluation import report
from ovss_refine.evaluation.batches import Sample
from ovss_refine.evaluation.dataset import DataSet, Item, fingerprint
from ovss_refine.evaluation.engine import Job, LabelMaps, evaluate
from ovss_refine.evaluation.inputs import (
    AttentionFrom,
    LogitsFrom,
    files_digest,
    weights_digest,
)
from ovss_refine.evaluation.processes import ProcessGroup, join
from ovss_refine.evaluation.published import OF_DECISION, Published
from ovss_refine.evaluation.request import EvaluateRequest
from ovss_refine.evaluation.rows import Baseline, choose, make_rows
from ovss_refine.folders.manifest import digest
from ovss_refine.folders.records import Records
from ovss_refine.folders.results import ResultsFolder, check_writable

HOME = Path("ovss-refine-results")
# What decides on the labels, for the comparison of two runs.
OF_LABELS = ("name", "names", "first_is_ignored", "mask_suffix", "split")


def run_evaluate(
    request: EvaluateRequest, group: ProcessGroup | None = None
) -> dict[str, Any] | None:
    """Evaluate, alone or as one process of several.

    Args:
        request: what to evaluate.
        group: the processes, for several evaluations one after the other; None: found out, and
            left afterwards.

    Returns:
        The results; None in a process that does not lead.

    Raises:
        FileNotFoundError: if the data set, or a source's files or weights, are not there.
        ValueError: on input that does not fit together, or a folder of other settings.
        OSError: if results cannot be written.
    """
    if group is not None:
        return _run(request, group)
    group = join(request.device)
    try:
        return _run(request, group)
    finally:
        group.leave()


def _run(request: EvaluateRequest, group: ProcessGroup) -> dict[str, Any] | None:
    dataset = request.dataset
    items = dataset.items(request.root)[: request.limit]
    if request.on_error == "stop":
        check_all_there(dataset, items)
    # What the user gives the source holds for the decision as well.
    published = Published.of(dataset.method(request.logits.name) | dict(request.logits.options))
    baseline = baseline_of(request, published)
    table = choose(make_rows(request.config, baseline), request.rows)
    table |= {name: variant.label for name, variant in request.variants.items()}
    if group.leads:  # before the models are loaded
        check_writable(request.out or HOME)
    logits, attention, settings = _make_sources(request, group, items, published)
    settings |= _settings(request, items, baseline, tuple(table)) | {"device": group.device.type}
    out = request.out or HOME / f"{dataset.name}-{digest(settings)}"
    folder = ResultsFolder(out, settings, _started(request)) if group.leads else None
    group.wait()  # nobody writes before the folder has been checked
    records = Records(out, group.rank) if folder is None else folder.records
    drawn = {item.id for item in items[: request.pictures]}
    job = Job(
        dataset=dataset,
        items=items,
        logits=logits,
        attention=attention,
        rows=table,
        records=records,
        drop_background=request.drop_background,
        on_error=request.on_error,
        batch_size=request.batch_size,
        workers=request.workers,
        draw=partial(_draw, out, dataset, drawn) if drawn else None,
    )
    try:
        totals = evaluate(job, group)
    finally:
        (folder or records).close()
    if not group.leads:
        return None
    check_complete(items, totals.done | set(totals.failures), out)
    if not totals.done:
        raise ValueError(f"`root` must have an image that can be read; all {len(items)} failed.")
    return report.write_results(out, dataset, totals) | {"out": str(out)}


def _make_sources(
    request: EvaluateRequest, group: ProcessGroup, items: Sequence[Item], published: Published
) -> tuple[LogitsFrom, AttentionFrom, dict[str, Any]]:
    """Make both sources, and the settings that they stand for."""
    chosen = request.logits
    if chosen.folder is not None and request.prompts is not None:
        raise ValueError("`prompts` must be left out where logits come from files, made already.")
    family = request.prompts or published.prompts
    labels = request.dataset.labels(family)
    settings: dict[str, Any] = {}
    if chosen.folder is None:
        chosen = replace(chosen, options=published.source)
        settings = {"prompts": family, "classes": list(labels.prompts)}
    logits, attention = (
        chosen.logits(labels, group.device),
        request.attention.attention(group.device),
    )
    for kind, source, name in (
        ("logits", logits, chosen),
        ("attention", attention, request.attention),
    ):
        settings |= {f"{kind} {key}": value for key, value in name.settings().items()}
        if name.folder is None:
            settings[f"{kind} weights"] = weights_digest(source)
        else:
            files = [Path(name.folder, f"{item.id}.npz") for item in items]
            settings[f"{kind} files"] = files_digest(files)
    return logits, attention, settings


def baseline_of(request: EvaluateRequest, published: Published) -> Baseline:
    """Choose the baseline's decision: what the user says, else what was published."""
    asked = {key: getattr(request, key) for key in OF_DECISION}
    decision = {key: value for key, value in asked.items() if value is not None}
    return Baseline(
        **{**published.decision, **decision},
        short_side=published.source.get("short_side"),
        enlarged_twice=published.enlarged_twice,
        pamr_iterations=published.pamr_iterations,
    )


def _settings(
    request: EvaluateRequest, items: Sequence[Item], baseline: Baseline, rows: tuple[str, ...]
) -> dict[str, Any]:
    """All that the numbers depend on, apart from the sources."""
    return {
        "ovss_refine": __version__,
        **{f"dataset {key}": getattr(request.dataset, key) for key in OF_LABELS},
        "dataset images": len(items),
        "dataset files": fingerprint(items),
        "limit": request.limit,
        "rows": rows,
        "drop_background": request.drop_background,
        **{f"baseline {key}": value for key, value in asdict(baseline).items()},
        **{f"refinement {key}": value for key, value in asdict(request.config).items()},
        **{f"variant {name}": asdict(one) for name, one in request.variants.items()},
    }


def _started(request: EvaluateRequest) -> dict[str, Any]:
    return {
        "root": str(request.root.resolve()),
        "batch_size": request.batch_size,
        "workers": request.workers,
        "pictures": request.pictures,
        "on_error": request.on_error,
        **request.extra,
    }


def check_all_there(dataset: DataSet, items: Sequence[Item]) -> None:
    """Raise ValueError if any image has no mask, or the reverse; before any work is done."""
    lacking = [path for item in items for path in (item.image, item.mask) if not path.is_file()]
    if lacking:
        raise ValueError(
            f"`root` must have an image and a mask for each of {len(items)} images; "
            f"{len(lacking)} are missing, `{lacking[0]}` the first. `ovss-refine dataset check "
            f"{dataset.name}` lists them; --on-error skip leaves them out."
        )


def check_complete(items: Sequence[Item], seen: set[str], out: Path) -> None:
    """Raise ValueError unless every image has a record."""
    lacking = [item.id for item in items if item.id not in seen]
    if lacking:
        raise ValueError(
            f"`out` must be a folder that all processes share; in `{out}` {len(lacking)} of "
            f"{len(items)} images have no record, {lacking[0]!r} the first."
        )


def _draw(out: Path, dataset: DataSet, drawn: set[str], sample: Sample, labels: LabelMaps) -> None:
    if sample.id in drawn:
        report.draw_rows(out, dataset, sample, labels)
