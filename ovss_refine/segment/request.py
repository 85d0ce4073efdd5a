"""Command-line flags of `ovss-refine segment`, one field each. Does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovss_refine import __version__
from ovss_refine.checks import check_count
from ovss_refine.config import RefineConfig
from ovss_refine.images import MAX_PIXELS
from ovss_refine.labels import Labels
from ovss_refine.sources import DTYPE_HELP, DtypeName
from ovss_refine.upsamplers.names import settings_of

SOURCES, RESULTS, WORK = ({"group": title} for title in ("sources", "results", "work"))
SOURCE = SOURCES | {"metavar": "SOURCE", "help": "a name that `ovss-refine sources` lists"}
OPTION = SOURCES | {
    "metavar": "KEY=VALUE",
    "example": "temperature=0.1",
    "help": "option of that source, may be repeated",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Which files to write in addition to label map and overlay."""

    baseline: bool = field(
        default=False,
        metadata={"help": "write the result without refinement too, and both side by side"},
    )
    masks: bool = field(default=False, metadata={"help": "write a mask of every class"})
    maps: bool = field(default=False, metadata={"help": "draw the discrepancy maps too"})
    rle: bool = field(default=True, metadata={"help": "write the masks as COCO run lengths"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRequest:
    """What to segment, with what, and where the results go. `help` documents the fields.

    Raises:
        TypeError: on a value of the wrong type.
        ValueError: on a value out of range, or options that the labels rule out.
    """

    images: tuple[str, ...] = field(
        metadata={
            "positional": True,
            "metavar": "IMAGE",
            "help": "images, folders of them, or quoted patterns such as 'photos/**/*.jpg'",
        }
    )
    labels: Labels  # --labels or --labels-file
    logits: str = field(default="kk-mean", metadata=SOURCE)
    logits_options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"flag": "--logits-option", **OPTION}
    )
    attention: str = field(
        default="dinov2-b14-reg",
        metadata=SOURCE | {"help": f"{SOURCE['help']}, or own: that of the logits' own model"},
    )
    attention_options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"flag": "--attention-option", **OPTION}
    )
    device: str = field(default="auto", metadata=SOURCES | {"help": "auto, cpu, cuda ..."})
    dtype: DtypeName | None = field(default=None, metadata=SOURCES | {"help": DTYPE_HELP})
    models_dir: Path | None = field(
        default=None,
        metadata=SOURCES
        | {"metavar": "DIR", "help": "folder of the models (default: the cache of Hugging Face)"},
    )
    out: Path = field(metadata=RESULTS | {"metavar": "DIR", "help": "folder for the results"})
    overwrite: bool = field(
        default=False,
        metadata=RESULTS
        | {"help": "redo finished images; required if settings differ from an earlier run's"},
    )
    outputs: Outputs = field(default_factory=Outputs, metadata=RESULTS)
    batch_size: int = field(default=1, metadata=WORK | {"metavar": "B", "help": "images at a time"})
    max_pixels: int = field(
        default=MAX_PIXELS, metadata=WORK | {"metavar": "N", "help": "larger images are refused"}
    )
    config: RefineConfig = field(default_factory=RefineConfig, metadata={"group": "refinement"})

    def __post_init__(self) -> None:
        """Check the counts, and the options that the labels rule out."""
        check_count("batch_size", self.batch_size, 1)
        check_count("max_pixels", self.max_pixels, 1)
        background = self.config.background
        if background is not None and background[0] >= len(self.labels):
            raise ValueError(
                f"`background` must name one of the M={len(self.labels)} classes; got "
                f"{background[0]}."
            )
        if self.config.keep_scores:
            raise ValueError(
                "`keep_scores` must not be set: `segment` writes no scores; `ovss-refine refine` "
                "does."
            )

    def settings(self) -> dict[str, Any]:
        """Return everything that the label maps depend on."""
        return {
            "ovss_refine": __version__,
            **({} if self.dtype is None else {"dtype": self.dtype}),
            "labels": self.labels.names,
            "prompts": self.labels.prompts,
            "logits": self.logits,
            "attention": self.attention,
            **{f"logits option {key}": value for key, value in self.logits_options.items()},
            **{f"attention option {key}": value for key, value in self.attention_options.items()},
            **{key: x for key, x in settings_of(self.config).items() if key != "keep_scores"},
        }
