"""The paper's tables and curves as data: the published values, and how each row is measured.

`paper_tables.csv` has the published values and `paper_tables.toml` the rows. They are joined by
table, backbone, method and data set. Nothing here imports torch.
"""

import csv
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ovss_refine.config import PAPER, RefineConfig

HERE = Path(__file__).parent
CSV_NAME = "paper_tables.csv"
# Columns of the CSV that are data sets, and the names of the data sets.
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
# Rows that do not depend on the variants that an evaluation measures.
COMMON = (BASELINE, UPSAMPLING, *CONTROLS)
# A published refinement, in an evaluation of its own: for thousands of tokens it takes long.
RIVAL = "lposs"
OURS = {
    BASELINE: "not refined",
    UPSAMPLING: "upsampling alone",
    "propagation": "propagation",
    "anchored": "anchored",
    RIVAL: "LPOSS",
}
Options = Mapping[str, Any]
Key = tuple[str, str, str, str]  # table, backbone, method, data set


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights that sources need."""

    repository: str  # "owner/name" on the hub
    size: str  # of the download, as text
    preset: str | None = None  # name of the weights in CLIP's sources; None: not CLIP's
    # Patterns of required files in the hub's cache, "|" between alternatives.
    in_cache: Sequence[str]
    in_folder: Sequence[str]  # the same for a folder of --models-dir
    file: str = ""  # the one file that a source takes; "": it takes the folder
    get: str = ""  # how to get them; "": by loading the source of attention of that name


@dataclass(frozen=True, kw_only=True, eq=False)
class PaperRow:
    """One row of a table, or one point of a curve, for every data set."""

    method: str  # name of the row; in a curve, of the series
    backbone: str  # of the logits, as in the paper
    published: str = ""  # table of the CSV with its values; "": none
    missing: str = ""  # why it cannot be measured here, a key of `reasons`; "": it can
    note: str = ""  # how an ambiguity of the paper was resolved; "": none
    logits: str = ""
    logits_options: Options = field(default_factory=dict)
    attention: str = ""  # source of attention; "": not needed
    attention_options: Options = field(default_factory=dict)
    show: str = BASELINE  # the row of the evaluation that has its value
    measured: str = ""  # set of variants that the evaluation measures; "": none
    panel: str = ""  # of a curve: the meaning of `x`
    x: float | None = None  # of a curve: the horizontal position
    cost: Mapping[str, float] = field(default_factory=dict)  # published costs

    @property
    def sources(self) -> str:
        """Its sources, as text."""
        names = f"{self.logits} + {self.attention}" if self.attention else self.logits
        options = [
            " + ".join(value) if isinstance(value, Mapping) else f"{key} {value}"
            for key, value in self.attention_options.items()
        ]
        return f"{names} ({', '.join(options)})" if options else names

    @cached_property
    def of_logits(self) -> str:
        """Key of the rows that refine the same logits."""
        return json.dumps([self.backbone, self.logits, self.logits_options], sort_keys=True)

    @cached_property
    def pair(self) -> str:
        """Key of the rows that share a forward pass."""
        return json.dumps([self.of_logits, self.attention, self.attention_options], sort_keys=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTable:
    """One table, or one figure's curves."""

    name: str  # on the command line
    title: str  # shown to users
    datasets: Sequence[str]  # its columns
    rows: Sequence[PaperRow]  # those of the paper, then those of this library
    says: str = ""  # what the paper states in place of values
    limit: int | None = None  # default number of images; None: all

    @property
    def curves(self) -> bool:
        """Whether its rows are points of curves."""
        return any(row.panel for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTables:
    """All tables."""

    tables: Mapping[str, PaperTable]  # by name
    # For each set, variants by name: options of the refinement.
    variants: Mapping[str, Mapping[str, Options]]
    weights: Mapping[str, Weights]
    reasons: Mapping[str, str]  # why rows cannot be measured, as text
    backbones: Mapping[str, str]  # weights of each backbone
    # Weights of sources of logits on other models than the backbone, by option.
    models: Mapping[str, Mapping[str, str]]
    second_model: Mapping[str, str]  # weights that a source of logits needs besides its backbone
    folders: Mapping[str, Sequence[str]]  # subfolders of --data in which a data set may be

    def needs(self, row: PaperRow) -> list[str]:
        """Return the names of the weights that a row needs."""
        named = [*self.models_of(row).values(), self.second_model.get(row.logits), row.attention]
        return list(dict.fromkeys(name for name in named if name))

    def models_of(self, row: PaperRow) -> Mapping[str, str]:
        """Return the weights of a row's source of logits, by the option that takes them."""
        return self.models.get(row.logits) or {"model": self.backbones[row.backbone]}


@cache
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
        **{key: raw[key] for key in ("reasons", "backbones", "models", "second_model", "folders")},
    )


def published() -> dict[Key, float]:
    """Read the published values, mIoU in percent."""
    with (HERE / CSV_NAME).open(encoding="utf-8", newline="") as file:
        return {
            (line["table"], line["backbone"], line["method"], COLUMNS[column]): float(line[column])
            for line in csv.DictReader(file)
            for column in COLUMNS
            if line[column]
        }


def rows_of(row: PaperRow) -> tuple[str, ...]:
    """Name the rows of its evaluation besides the variants."""
    if not row.attention:
        return BASELINE, UPSAMPLING
    return (RIVAL,) if row.measured == RIVAL else COMMON


def variant_config(options: Options) -> RefineConfig:
    """Make the refinement of a variant: its options, and else the paper's."""
    return RefineConfig(**{**PAPER, **options})


def _group(group: Options, variants: Mapping[str, Mapping[str, Options]]) -> Iterator[PaperRow]:
    """Expand rows that share values."""
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
    """Expand the points of curves over an option of the attention or a field of the refinement."""
    over_field = "field" in sweep
    for x in sweep["values"]:
        # The default is omitted, so that its evaluation is shared with the other tables.
        named = {} if over_field or x == sweep["default"] else {sweep["option"]: x}
        point = PaperRow(
            method="",
            backbone="ViT-B/16",
            logits="kk-mean",
            attention="sd2",
            attention_options=named,
            measured=name if over_field else "paper",  # O.P. and M.V.
            panel=sweep["label"],
            x=x,
        )
        shown = {"O.P.": "optimal_path", "M.V.": "maximum_velocity"}
        if over_field:
            shown = {series: f"{series}, {x}" for series in sweep["series"]}
            for series, options in sweep["series"].items():
                member = {**options, sweep["field"]: x}
                variants.setdefault(name, {})[shown[series]] = member
        for series, show in (shown | {OURS[show]: show for show in COMMON}).items():
            yield replace(point, method=series, show=show)


def _ours(rows: Sequence[PaperRow]) -> Iterator[PaperRow]:
    """Add rows that the paper lacks: the logits alone, the upsampling alone, the controls."""
    able = [row for row in rows if not row.missing]
    alone = {row.of_logits for row in able if row.show == BASELINE}
    added: set[tuple[str, str]] = set()
    for row in able:
        for show in (*rows_of(row), *([RIVAL] if row.measured == "paper" else [])):
            attends = show in (*CONTROLS, RIVAL)
            key = (row.pair if attends else row.of_logits, show)
            if key in added or (show == BASELINE and row.of_logits in alone):
                continue
            added.add(key)
            method = f"{row.sources if attends else row.logits}, {OURS[show]}"
            ours = replace(row, method=method, published="", note="", show=show, cost={})
            yield replace(ours, measured=RIVAL) if show == RIVAL else ours
