"""The request of `ovss-refine evaluate`: one field for each flag. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ovss_refine.checks import check_choice, check_count
from ovss_refine.config import RefineConfig
from ovss_refine.evaluation import RIVALS, ROWS
from ovss_refine.evaluation.dataset import DataSet
from ovss_refine.labels import Labels
from ovss_refine.sources import DTYPE_HELP, OWN, DtypeName

if TYPE_CHECKING:
    from ovss_refine.evaluation.inputs import AttentionFrom, LogitsFrom
    from ovss_refine.evaluation.rows import Variant
    from ovss_refine.sources.device import Placement

FILES = "npz:"


def flag(group: str, text: str, **more: Any) -> dict[str, Any]:
    """Return the metadata of a field that is a flag."""
    return {"group": group, "help": text, **more}


@dataclass(frozen=True, slots=True)
class Chosen:
    """A source as the user named it."""

    # As registered, or "npz:" and a folder.
    name: str = field(metadata={"flag": "--{}", "metavar": "SOURCE"})
    options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "flag": "--{}-option",
            "metavar": "KEY=VALUE",
            "example": "temperature=0.1",
            "help": "option of that source, may be repeated",
        },
    )

    @property
    def folder(self) -> str | None:
        """The folder of the files; None for a registered source."""
        return self.name.removeprefix(FILES) if self.name.startswith(FILES) else None

    @property
    def takes_classes(self) -> bool:
        """Whether the source is made for the classes of the data set; files are made already."""
        return self.folder is None

    def logits(self, labels: Labels, place: "Placement") -> "LogitsFrom":
        """Make a source of logits for these classes; logits from files are already made."""
        from ovss_refine.registry import find, load_logits

        if self.folder is not None:
            return load_logits("npz", folder=self.folder, **self.options)
        placed = place.options(find("logits", self.name).load())
        return load_logits(self.name, **{"classes": labels, **placed, **self.options})

    def attention(self, place: "Placement") -> "AttentionFrom":
        """Make a source of attention."""
        from ovss_refine.evaluation.inputs import NpzAttention
        from ovss_refine.registry import find, load_attention

        if self.folder is not None:
            return NpzAttention(Path(self.folder), **self.options)
        placed = place.options(find("attention", self.name).load())
        return load_attention(self.name, **{**placed, **self.options})

    def settings(self) -> dict[str, Any]:
        """Return what two runs must agree on."""
        folder = self.folder
        name = self.name if folder is None else FILES + str(Path(folder).resolve())
        return {"name": name, **{f"option {key}": value for key, value in self.options.items()}}


def check_work(limit: int | None, on_error: str, batch_size: int, workers: int) -> None:
    """Check the options that control the work; raises TypeError or ValueError."""
    check_choice("on_error", on_error, ["skip", "stop"])
    check_count("batch_size", batch_size, 1)
    check_count("workers", workers, 1)
    if limit is not None:
        check_count("limit", limit, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """What to evaluate, and how. `help` describes the fields with a flag.

    Raises:
        TypeError: on a count of the wrong type.
        ValueError: on a value out of range.
    """

    dataset: DataSet  # --dataset, and --names for your own folder
    root: Path = field(metadata={"metavar": "ROOT", "help": "where the data set is"})
    logits: Chosen = field(
        metadata=flag(
            "sources", "name of a source, or npz:DIR with an array `logits` in <image id>.npz"
        )
    )
    attention: Chosen = field(
        metadata=flag(
            "sources",
            "name of a source; own: that of the logits' own model; or npz:DIR with an array "
            "`attention` or `features` in <image id>.npz",
        )
    )
    device: str = field(default="auto", metadata=flag("sources", "auto, cpu, cuda ..."))
    dtype: DtypeName | None = field(default=None, metadata=flag("sources", DTYPE_HELP))
    limit: int | None = field(
        default=None, metadata=flag("protocol", "only the first N images", metavar="N")
    )
    rows: tuple[str, ...] = field(
        default=ROWS,
        metadata=flag(
            "protocol",
            f"some of {', '.join((*ROWS, *RIVALS))}",
            choices=(*ROWS, *RIVALS),
            metavar="ROW",
        ),
    )
    variants: "Mapping[str, Variant]" = field(default_factory=dict)  # rows besides `rows`, by name
    prompts: str | None = field(
        default=None,
        metadata=flag(
            "protocol", "family of class prompts (default: the method's)", metavar="FAMILY"
        ),
    )
    probability_threshold: float | None = field(
        default=None,
        metadata=flag(
            "protocol",
            "of the baseline: less confident pixels become class 0 (default: the published value, "
            "or 0)",
            metavar="P",
        ),
    )
    area_threshold: float | None = field(
        default=None,
        metadata=flag(
            "protocol",
            "of the baseline: smaller classes are dropped (default: the published value, or none)",
            metavar="SHARE",
        ),
    )
    drop_background: bool = field(
        default=False,
        metadata=flag("protocol", "drop class 0 of the logits, for a data set without background"),
    )
    out: Path | None = field(
        default=None,
        metadata=flag(
            "work", "folder for the results (default: one named after the settings)", metavar="DIR"
        ),
    )
    on_error: Literal["skip", "stop"] = field(
        default="stop", metadata=flag("work", "what to do about a file that cannot be read")
    )
    batch_size: int = field(default=1, metadata=flag("work", "images at a time", metavar="B"))
    workers: int = field(default=2, metadata=flag("work", "threads that read files", metavar="N"))
    pictures: int = field(default=0, metadata=flag("work", "draw the first N images", metavar="N"))
    config: RefineConfig = field(default_factory=RefineConfig, metadata={"group": "refinement"})
    extra: dict[str, Any] = field(default_factory=dict)  # additional entries of the manifest

    def __post_init__(self) -> None:
        """Check the choices and counts."""
        if self.attention.name == OWN and self.attention.options:
            raise TypeError(f"`attention_options` must be empty with the attention {OWN!r}.")
        check_work(self.limit, self.on_error, self.batch_size, self.workers)
        check_count("pictures", self.pictures, 0)
        if taken := [name for name in self.variants if name in (*ROWS, *RIVALS)]:
            raise ValueError(f"`variants` must not have the names of rows; got {taken}.")
