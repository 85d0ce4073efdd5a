"""Run `ovss-refine evaluate`: from a request to the tables."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ovss_refine import __version__
from ovss_refine.config import RefineConfig
from ovss_refine.evaluation import report
from ovss_refine.evaluation.batches import Sample
from ovss_refine.evaluation.engine import Job, LabelMaps, evaluate
from ovss_refine.evaluation.functions import code_digest
from ovss_refine.evaluation.inputs import (
    AttentionFrom,
    LogitsFrom,
    files_digest,
    folder_by_id,
    weights_digest,
)
from ovss_refine.evaluation.items import Item
from ovss_refine.evaluation.published import OF_DECISION, Published
from ovss_refine.evaluation.request import Chosen, EvaluateRequest
from ovss_refine.evaluation.result import EvaluationResult
from ovss_refine.evaluation.rows import Baseline, choose, make_rows
from ovss_refine.evaluation.totals import Totals
from ovss_refine.folders.manifest import digest
from ovss_refine.folders.records import Records
from ovss_refine.folders.results import ResultsFolder, check_results, check_writable
from ovss_refine.sources import OWN
from ovss_refine.sources.device import Placement
from ovss_refine.sources.processes import ProcessGroup, join
from ovss_refine.sources.run import own_attention
from ovss_refine.upsamplers.names import BUILT_IN, resolved, settings_of

HOME = Path("ovss-refine-results")
# The fields of a data set that determine the labels; two runs must agree on them.
OF_LABELS = ("name", "names", "first_is_ignored", "mask_suffix", "split")


def run_evaluate(
    request: EvaluateRequest, group: ProcessGroup | None = None
) -> EvaluationResult | None:
    """Evaluate, as a single process or as one of several.

    Args:
        request: what to evaluate.
        group: the processes, if several evaluations share them; None: joined, and left at the end.

    Returns:
        The results; None in processes other than the first.

    Raises:
        FileNotFoundError: if the data set, or a source's files or weights, are missing.
        ValueError: on inputs that do not fit together, or a folder of other settings.
        OSError: if results cannot be written.
    """
    if group is not None:
        return _run(request, group)
    group = join(request.device)
    try:
        return _run(request, group)
    finally:
        group.leave()


def _run(request: EvaluateRequest, group: ProcessGroup) -> EvaluationResult | None:
    dataset = request.dataset
    items = dataset.items(request.root)[: request.limit]
    if request.on_error == "stop":
        _check_files(request, items)
    # The user's options of the source apply to the decision as well.
    published = Published.of(dataset.method(request.logits.name) | dict(request.logits.options))
    baseline = baseline_of(request, published)
    table = choose(make_rows(request.config, baseline), request.rows)
    table |= {name: variant.label for name, variant in request.variants.items()}
    if group.leads:
        # Before the models are loaded.
        check_writable(HOME) if request.out is None else check_results(request.out)
    logits, attention, settings = _make_sources(request, group, items, published)
    settings |= _settings(request, items, baseline, tuple(table)) | {"device": group.device.type}
    out = request.out or HOME / f"{dataset.name}-{digest(settings)}"
    folder = ResultsFolder(out, settings, _started(request)) if group.leads else None
    group.wait()  # no process writes before the folder is checked
    records = Records(out, group.rank) if folder is None else folder.records
    job = Job(
        request=request,
        items=items,
        logits=logits,
        attention=attention,
        rows=table,
        records=records,
        draw=_drawing(request, items, out),
    )
    try:
        totals = evaluate(job, group)
    finally:
        (folder or records).close()
    if not group.leads:
        return None
    _check_results(items, totals, out)
    lost = dataset.left_out(request.root)
    found = report.write_results(out, dataset, totals, [lost] * bool(lost))
    return EvaluationResult(found, totals.counts, dataset.names, out)


def _make_sources(
    request: EvaluateRequest, group: ProcessGroup, items: Sequence[Item], published: Published
) -> tuple[LogitsFrom, AttentionFrom, dict[str, Any]]:
    """Make both sources and their settings."""
    chosen = request.logits
    if not chosen.takes_classes and request.prompts is not None:
        made = "are read from files" if chosen.folder is not None else "come from your own source"
        raise ValueError(f"`prompts` must be left out if logits {made}.")
    family = request.prompts or published.prompts
    labels = request.dataset.labels(family)
    settings: dict[str, Any] = {}
    if chosen.takes_classes:
        chosen = replace(chosen, options=published.source)
        settings = {"prompts": family, "classes": list(labels.prompts)}
    place = Placement(group.device, request.dtype)
    logits = chosen.logits(labels, place)
    settings |= _source_settings("logits", chosen, logits, items)
    if request.attention.name == OWN:
        attention: AttentionFrom = own_attention(logits, request.logits.name)
    else:
        attention = request.attention.attention(place)
    settings |= _source_settings("attention", request.attention, attention, items)
    return logits, attention, settings


def _source_settings(
    kind: str, chosen: Chosen, source: object, items: Sequence[Item]
) -> dict[str, Any]:
    settings = {f"{kind} {key}": value for key, value in chosen.settings().items()}
    folder = chosen.folder or folder_by_id(source)
    if chosen.folder is None:
        settings |= {f"{kind} weights": weights_digest(source)}
    if folder is None:
        return settings
    files = [Path(folder, f"{item.id}.npz") for item in items]
    return settings | {f"{kind} files": files_digest(files)}


def baseline_of(request: EvaluateRequest, published: Published) -> Baseline:
    """Make the baseline: the published settings, unless the user gives others."""
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
    """Return everything that the numbers depend on, except the sources."""
    return {
        "ovss_refine": __version__,
        **{f"dataset {key}": getattr(request.dataset, key) for key in OF_LABELS},
        "dataset images": len(items),
        "dataset files": request.dataset.fingerprint(items),
        "limit": request.limit,
        "rows": rows,
        "drop_background": request.drop_background,
        **{f"baseline {key}": value for key, value in asdict(baseline).items()},
        **{f"refinement {key}": value for key, value in _options(request.config).items()},
        **{f"variant {name}": _options(one.config) for name, one in request.variants.items()},
    }


def _options(config: RefineConfig) -> dict[str, Any]:
    """Return the options of a refinement, and what an upsampler of the user's consists of."""
    options = settings_of(config)
    if options["upsampler"] in BUILT_IN:
        return options
    own = resolved(config.upsampler)
    code = {"upsampler code": code_digest(own), "upsampler weights": weights_digest(own)}
    return options | code


def _started(request: EvaluateRequest) -> dict[str, Any]:
    """Return what the manifest notes about this start: options that change no number."""
    noted = ("batch_size", "workers", "pictures", "on_error")
    options = {name: getattr(request, name) for name in noted}
    return {"root": str(request.root.resolve()), **options, **request.extra}


def _check_files(request: EvaluateRequest, items: Sequence[Item]) -> None:
    """Raise ValueError if an image has no mask, or the reverse."""
    if lacking := request.dataset.missing(items):
        raise ValueError(
            f"`root` must have an image and a mask for each of {len(items)} images; "
            f"{len(lacking)} are missing, `{lacking[0]}` the first. `ovss-refine dataset check "
            f"{request.dataset.name}` lists them; --on-error skip leaves them out. "
            f"{request.dataset.left_out(request.root)}".rstrip()
        )


def _check_results(items: Sequence[Item], totals: Totals, out: Path) -> None:
    """Raise ValueError unless every image has a record, and some image a result."""
    seen = totals.done | set(totals.failures)
    if lacking := [item.id for item in items if item.id not in seen]:
        raise ValueError(
            f"`out` must be a folder that all processes share; in `{out}` {len(lacking)} of "
            f"{len(items)} images have no record, {lacking[0]!r} the first."
        )
    if not totals.done:
        raise ValueError(f"`root` must have an image that can be read; all {len(items)} failed.")


def _drawing(
    request: EvaluateRequest, items: Sequence[Item], out: Path
) -> Callable[[Sample, LabelMaps], None] | None:
    drawn = {item.id for item in items[: request.pictures]}

    def draw(sample: Sample, labels: LabelMaps) -> None:
        if sample.id in drawn:
            report.draw_rows(out, request.dataset, sample, labels)

    return draw if drawn else None
