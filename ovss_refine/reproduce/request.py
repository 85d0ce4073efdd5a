"""What `ovss-refine reproduce` is asked to do. Nothing here imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ovss_refine.checks import check_choice, check_count
from ovss_refine.evaluation.dataset import FOLDER, list_datasets, load_dataset
from ovss_refine.reproduce import TABLES


def parse_root(text: str) -> tuple[str, Path]:
    """Read NAME=PATH, the name of a data set and its folder.

    Raises:
        ValueError: if the text is something else.
    """
    name, equals, path = text.partition("=")
    known = [known for known in list_datasets() if known != FOLDER]
    if not equals or name not in known or not path:
        raise ValueError(f"must be NAME=PATH, NAME one of {', '.join(known)}; got {text!r}")
    return name, Path(path)


def _input(text: str, **more: Any) -> dict[str, Any]:
    return {"group": "data sets and weights", "help": text, **more}


def _work(text: str, **more: Any) -> dict[str, Any]:
    return {"group": "work", "help": text, **more}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproduceRequest:
    """Which tables to measure, with what, and where the results go.

    Attributes:
        tables: names of tables.
        only_plan: measure nothing.
        data: folder with a folder for each data set.
        roots: folders of single data sets, by name.
        datasets: only these columns; empty: all.
        models_dir: folder with a folder for each of the weights.
        limit: only the first so many images, >= 1; None: all.
        out: folder for evaluations and reports.
        csv: file for all numbers, besides those in `out`; None: no such file.
        device: "auto", or where to compute.
        batch_size: most images at a time, >= 1.
        workers: threads that read ahead, >= 1.
        on_error: what to do about an image or mask that cannot be read.

    Raises:
        FileNotFoundError: if a folder that is named does not exist.
        ValueError: on a name or number that is not allowed.
    """

    tables: tuple[str, ...]
    only_plan: bool = field(
        default=False,
        metadata={"flag": "--plan", "help": "print what would be measured, and measure nothing"},
    )
    data: Path | None = field(
        default=None, metadata=_input("folder with one folder for each data set", metavar="DIR")
    )
    roots: Mapping[str, Path] = field(
        default_factory=dict,
        metadata=_input(
            "folder of one data set, may be repeated",
            flag="--root",
            metavar="NAME=PATH",
            parse=parse_root,
        ),
    )
    datasets: tuple[str, ...] = field(
        default=(), metadata=_input("only these columns", metavar="NAME")
    )
    models_dir: Path | None = field(
        default=None,
        metadata=_input(
            "folder with one folder for each of the weights (default: the hub's cache)",
            metavar="DIR",
        ),
    )
    limit: int | None = field(default=None, metadata=_work("only the first N images", metavar="N"))
    out: Path = field(
        default=Path("ovss-refine-reproduced"),
        metadata=_work("folder for the results", metavar="DIR"),
    )
    csv: Path | None = field(
        default=None, metadata=_work("write all numbers to this file too", metavar="PATH")
    )
    device: str = field(default="auto", metadata=_work("auto, cpu, cuda ..."))
    batch_size: int = field(default=1, metadata=_work("images at a time", metavar="B"))
    workers: int = field(default=2, metadata=_work("threads that read ahead", metavar="N"))
    on_error: Literal["skip", "stop"] = field(
        default="stop", metadata=_work("what to do about a file that cannot be read")
    )

    def __post_init__(self) -> None:
        """Check names, numbers and folders."""
        for table in self.tables:
            check_choice("tables", table, TABLES)
        check_choice("on_error", self.on_error, ["skip", "stop"])
        for name in ("batch_size", "workers"):
            check_count(name, getattr(self, name), 1)
        if self.limit is not None:
            check_count("limit", self.limit, 1)
        for name in ("data", "models_dir"):
            folder = getattr(self, name)
            if folder is not None and not folder.is_dir():
                raise FileNotFoundError(f"`{name}` must be an existing folder; got `{folder}`.")
        for name, root in self.roots.items():
            load_dataset(name)
            if not root.is_dir():
                raise FileNotFoundError(
                    f"`root` must be an existing folder; got `{root}` for {name}."
                )
