"""What `ovss-refine evaluate` can be asked for: one field for each flag. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ovss_refine.checks import check_choice, check_count
from ovss_refine.config import RefineConfig
from ovss_refine.evaluation import ROWS
from ovss_refine.evaluation.dataset import DataSet
from ovss_refine.labels import Labels, PromptTexts

if TYPE_CHECKING:
    import torch

    from ovss_refine.evaluation.inputs import AttentionFrom, LogitsFrom
    from ovss_refine.evaluation.rows import Variant

FILES = "npz:"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A source as the user named it.

    Attributes:
        name: as registered, or "npz:" and a folder.
        options: what it is made with.
    """

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
        """The folder of the files, or None."""
        return self.name.removeprefix(FILES) if self.name.startswith(FILES) else None

    def logits(self, labels: Labels, device: "torch.device") -> "LogitsFrom":
        """Make a source of logits for these classes; files have theirs already."""
        from ovss_refine.registry import load_logits

        if self.folder is not None:
            return load_logits("npz", folder=self.folder, **self.options)
        options = {"classes": PromptTexts(labels), **_placed(device), **self.options}
        return load_logits(self.name, **options)

    def attention(self, device: "torch.device") -> "AttentionFrom":
        """Make a source of attention."""
        from ovss_refine.evaluation.inputs import NpzAttention
        from ovss_refine.registry import load_attention

        if self.folder is not None:
            return NpzAttention(Path(self.folder), **self.options)
        return load_attention(self.name, **{**_placed(device), **self.options})

    def settings(self) -> dict[str, Any]:
        """Return what two runs have to agree on."""
        folder = self.folder
        name = self.name if folder is None else FILES + str(Path(folder).resolve())
        return {"name": name, **{f"option {key}": value for key, value in self.options.items()}}


def _placed(device: "torch.device") -> dict[str, str]:
    """Return the option that places models on a device; none for the CPU, where they start."""
    return {} if device.type == "cpu" else {"device": str(device)}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """What to evaluate, and how. `help` describes the fields with a flag.

    Attributes:
        dataset: the data set.
        variants: rows beside `rows`, by name.
        extra: what else to keep in the manifest.

    Raises:
        TypeError: on a count of the wrong type.
        ValueError: on a value out of range.
    """

    dataset: DataSet  # --dataset, and --names for a folder of one's own
    root: Path = field(metadata={"metavar": "ROOT", "help": "where the data set is"})
    logits: Chosen = field(
        metadata={
            "group": "sources",
            "help": "name of a source, or npz:DIR with an array `logits` in <image id>.npz",
        }
    )
    attention: Chosen = field(
        metadata={
            "group": "sources",
            "help": "name of a source, or npz:DIR with an array `attention` or `features` in "
            "<image id>.npz",
        }
    )
    device: str = field(
        default="auto", metadata={"group": "sources", "help": "auto, cpu, cuda ..."}
    )
    limit: int | None = field(
        default=None,
        metadata={"group": "protocol", "metavar": "N", "help": "only the first N images"},
    )
    rows: tuple[str, ...] = field(
        default=ROWS,
        metadata={
            "group": "protocol",
            "choices": ROWS,
            "metavar": "ROW",
            "help": f"some of {', '.join(ROWS)}",
        },
    )
    variants: "Mapping[str, Variant]" = field(default_factory=dict)
    prompts: str | None = field(
        default=None,
        metadata={
            "group": "protocol",
            "metavar": "FAMILY",
            "help": "family of class prompts (default: the method's)",
        },
    )
    probability_threshold: float | None = field(
        default=None,
        metadata={
            "group": "protocol",
            "metavar": "P",
            "help": "of the baseline: less confident pixels become class 0 (default: the published "
            "one, or 0)",
        },
    )
    area_threshold: float | None = field(
        default=None,
        metadata={
            "group": "protocol",
            "metavar": "SHARE",
            "help": "of the baseline: smaller classes are dropped (default: the published one, or "
            "none)",
        },
    )
    drop_background: bool = field(
        default=False,
        metadata={
            "group": "protocol",
            "help": "drop class 0 of the logits, for a data set without background",
        },
    )
    out: Path | None = field(
        default=None,
        metadata={
            "group": "work",
            "metavar": "DIR",
            "help": "folder for the results (default: one named after the settings)",
        },
    )
    on_error: Literal["skip", "stop"] = field(
        default="stop",
        metadata={"group": "work", "help": "what to do about a file that cannot be read"},
    )
    batch_size: int = field(
        default=1, metadata={"group": "work", "metavar": "B", "help": "images at a time"}
    )
    workers: int = field(
        default=2, metadata={"group": "work", "metavar": "N", "help": "threads that read files"}
    )
    pictures: int = field(
        default=0, metadata={"group": "work", "metavar": "N", "help": "draw the first N images"}
    )
    config: RefineConfig = field(default_factory=RefineConfig, metadata={"group": "refinement"})
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the choices and counts."""
        check_choice("on_error", self.on_error, ["skip", "stop"])
        for name in ("batch_size", "workers"):
            check_count(name, getattr(self, name), 1)
        check_count("pictures", self.pictures, 0)
        if self.limit is not None:
            check_count("limit", self.limit, 1)
        if taken := [name for name in self.variants if name in ROWS]:
            raise ValueError(f"`variants` must have names that no row has; got {taken}.")
