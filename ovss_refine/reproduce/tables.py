"""The paper's tables and curves as data: what was published, and what stands for each row here.

`paper_tables.csv` has the published numbers, `paper_tables.toml` the rows: read here, expanded, and
joined by table, backbone, method and data set. Nothing here imports torch.
"""

import csv
import functools
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ovss_refine.config import RefineConfig

HERE = Path(__file__).parent
CSV_NAME = "paper_tables.csv"
# Columns of the CSV that are data sets, as they are called here.
COLUMNS = {
    "VOC21": "voc21",
    "Context60": "context60",
    "COCO-Obj": "coco-object",
    "VOC20": "voc20",
    "Context59": "context59",
    "COCO-Stuff": "coco-stuff",
    "Cityscapes": "cityscapes",
    "ADE20K": "ade20k",
}
BASELINE, UPSAMPLING = "baseline", "upsampling"
CONTROLS = ("propagation", "anchored")
# Rows that are alike whatever else an evaluation measures.
COMMON = (BASELINE, UPSAMPLING, *CONTROLS)
PAPER = "paper"  # the set of O.P. and M.V.
OURS = {
    BASELINE: "not refined",
    UPSAMPLING: "upsampling alone",
    "propagation": "propagation",
    "anchored": "anchored",
}
Options = Mapping[str, Any]
Key = tuple[str, str, str, str]  # table, backbone, method, data set


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights that sources need.

    Attributes:
        repository: "owner/name" on the hub.
        size: of the download, for people.
        preset: what CLIP's sources call them; None: they are not CLIP's.
        in_cache: patterns of files that must be in the hub's cache, "|" between alternatives.
        in_folder: the same of a folder of one's own.
    """

    repository: str
    size: str
    preset: str | None = None
    in_cache: Sequence[str]
    in_folder: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PaperRow:
    """One row of a table, or one point of a curve, for every data set.

    Attributes:
        method: what the row is called; in a curve, the series.
        backbone: of the logits, as the paper calls it.
        published: table of the CSV that has its numbers; "": it has none.
        missing: reason why it cannot be measured here; "": it can.
        note: how something that the paper leaves open was read; "": nothing.
        logits: source of logits.
        logits_options: what it is made with.
        attention: source of attention; "": none is needed.
        attention_options: what it is made with.
        show: which row of the evaluation is its number.
        measured: set of variants that the evaluation measures; "": none.
        panel: of a curve: the meaning of `x`.
        x: of a curve: where the point is.
        cost: published costs.
    """

    method: str
    backbone: str
    published: str = ""
    missing: str = ""
    note: str = ""
    logits: str = ""
    logits_options: Options = field(default_factory=dict)
    attention: str = ""
    attention_options: Options = field(default_factory=dict)
    show: str = BASELINE
    measured: str = ""
    panel: str = ""
    x: float | None = None
    cost: Mapping[str, float] = field(default_factory=dict)

    @property
    def sources(self) -> str:
        """Its sources, for people."""
        names = f"{self.logits} + {self.attention}" if self.attention else self.logits
        return f"{names}{_bracket(self.attention_options)}"

    @property
    def of_logits(self) -> str:
        """What rows have in common that refine the same scores, as text."""
        return _of_logits(self)

    @property
    def pair(self) -> str:
        """What rows have in common that come from one forward pass, as text."""
        return _pair(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTable:
    """One table, or one figure's curves.

    Attributes:
        name: on the command line.
        title: for people.
        datasets: its columns.
        rows: those of the paper, then what is ours.
        says: what the paper says where it gives no numbers.
        limit: images that are enough; None: all.
    """

    name: str
    title: str
    datasets: Sequence[str]
    rows: Sequence[PaperRow]
    says: str = ""
    limit: int | None = None

    @property
    def curves(self) -> bool:
        """Whether its rows are points."""
        return any(row.panel for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTables:
    """All tables.

    Attributes:
        tables: by name.
        variants: for each set, rows by name: options of the refinement, and `upsampling`.
        weights: by name.
        reasons: texts of what is missing for good.
        backbones: weights of each backbone.
        second_model: weights that a source of logits needs beside its backbone.
        folders: where a data set may be in a folder of data.
    """

    tables: Mapping[str, PaperTable]
    variants: Mapping[str, Mapping[str, Options]]
    weights: Mapping[str, Weights]
    reasons: Mapping[str, str]
    backbones: Mapping[str, str]
    second_model: Mapping[str, str]
    folders: Mapping[str, Sequence[str]]

    def needs(self, row: PaperRow) -> list[str]:
        """Name the weights that a row needs."""
        named = [self.backbones[row.backbone], self.second_model.get(row.logits), row.attention]
        return list(dict.fromkeys(name for name in named if name))


@functools.cache
def load_tables() -> PaperTables:
    """Read all tables."""
    text = (HERE / "paper_tables.toml").read_text(encoding="utf-8")
    raw: dict[str, Any] = tomllib.loads(text)
    variants: dict[str, dict[str, Options]] = raw["variants"]
    tables = {}
    for name, described in raw["tables"].items():
        rows = [row for group in described.pop("groups", ()) for row in _group(group, variants)]
        rows += _ours(rows)
        for sweep in described.pop("sweeps", ()):
            rows += _sweep(name, sweep, variants)
        tables[name] = PaperTable(name=name, rows=tuple(rows), **described)
    return PaperTables(
        tables=tables,
        variants=variants,
        weights={name: Weights(**one) for name, one in raw["weights"].items()},
        **{key: raw[key] for key in ("reasons", "backbones", "second_model", "folders")},
    )


def published() -> dict[Key, float]:
    """Read the published numbers, mIoU in percent."""
    with (HERE / CSV_NAME).open(encoding="utf-8", newline="") as file:
        return {
            (line["table"], line["backbone"], line["method"], COLUMNS[column]): float(line[column])
            for line in csv.DictReader(file)
            for column in COLUMNS
            if line[column]
        }


def split_variant(options: Options) -> tuple[RefineConfig, Any]:
    """Split a variant into the options of the refinement and how it is enlarged."""
    rest = {key: value for key, value in options.items() if key != UPSAMPLING}
    return RefineConfig(**rest), options.get(UPSAMPLING, "edges")


def _group(group: Options, variants: Mapping[str, Mapping[str, Options]]) -> Iterator[PaperRow]:
    """Expand the rows that have something in common."""
    common = {key: value for key, value in group.items() if key != "rows"}
    for described in group["rows"]:
        values = {**common, **described}
        if values.pop("own", False):
            values["published"] = ""
        if values.get("missing"):
            named = ("method", "backbone", "published", "missing")
            values = {key: values[key] for key in named}
        if values.get("attention"):
            sets = (name for name, members in variants.items() if values["show"] in members)
            values.setdefault("measured", next(sets))
        yield PaperRow(**values)


def _sweep(
    name: str, sweep: Options, variants: dict[str, dict[str, Options]]
) -> Iterator[PaperRow]:
    """Expand the points of curves, over an option of the attention or a field of the refinement."""
    over_field = "field" in sweep
    for x in sweep["values"]:
        # The default value is not named, so that it is the evaluation of the other tables.
        named = {} if over_field or x == sweep["default"] else {sweep["option"]: x}
        point = PaperRow(
            method="",
            backbone="ViT-B/16",
            logits="kk-mean",
            attention="sd2",
            attention_options=named,
            measured=name if over_field else PAPER,
            panel=sweep["label"],
            x=x,
        )
        shown = {"O.P.": "optimal_path", "M.V.": "maximum_velocity"}
        if over_field:
            shown = {series: f"{series}, {x}" for series in sweep["series"]}
            for series, options in sweep["series"].items():
                member = {**options, sweep["field"]: x}
                variants.setdefault(name, {})[shown[series]] = member
        for series, show in (shown | {text: show for show, text in OURS.items()}).items():
            yield replace(point, method=series, show=show)


def _ours(rows: Sequence[PaperRow]) -> Iterator[PaperRow]:
    """Add what the paper does not show: the scores alone, the upsampling alone, the controls."""
    able = [row for row in rows if not row.missing]
    alone = {row.of_logits for row in able if row.show == BASELINE}
    added: set[tuple[str, str]] = set()
    for row in able:
        for show in COMMON if row.attention else (BASELINE, UPSAMPLING):
            control = show in CONTROLS
            key = (row.pair if control else row.of_logits, show)
            if key in added or (show == BASELINE and row.of_logits in alone):
                continue
            added.add(key)
            method = f"{row.sources if control else row.logits}, {OURS[show]}"
            yield replace(row, method=method, published="", note="", show=show, cost={})


def _bracket(options: Options) -> str:
    """Say options in brackets, shares by the names that have one."""
    texts = [
        " + ".join(value) if isinstance(value, Mapping) else f"{key} {value}"
        for key, value in options.items()
    ]
    return f" ({', '.join(texts)})" if texts else ""


@functools.cache
def _of_logits(row: PaperRow) -> str:
    return json.dumps([row.backbone, row.logits, row.logits_options], sort_keys=True)


@functools.cache
def _pair(row: PaperRow) -> str:
    return json.dumps([row.of_logits, row.attention, row.attention_options], sort_keys=True)
