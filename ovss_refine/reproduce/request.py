"""The request of `ovss-refine reproduce`: one field for each flag. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from ovss_refine.checks import check_choice
from ovss_refine.evaluation.dataset import FOLDER, list_datasets, load_dataset
from ovss_refine.evaluation.request import check_work, flag
from ovss_refine.folders.paths import local_path
from ovss_refine.reproduce import TABLES
from ovss_refine.sources import DTYPE_HELP, DtypeName


def parse_root(text: str) -> tuple[str, Path]:
    """Read NAME=PATH, the name of a data set and its folder; raises ValueError."""
    name, equals, path = text.partition("=")
    known = [known for known in list_datasets() if known != FOLDER]
    if not equals or name not in known or not path:
        raise ValueError(f"must be NAME=PATH, NAME one of {', '.join(known)}; got {text!r}")
    return name, local_path(name, path)


_input = partial(flag, "data sets and weights")
_work = partial(flag, "work")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproduceRequest:
    """Which tables to measure, with what, and where the results go. `help` describes the fields.

    Raises:
        FileNotFoundError: if a given folder does not exist.
        TypeError: on a count of the wrong type.
        ValueError: on an unknown name, or a value out of range.
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
        default=None, metadata=_work("write all values to this file too", metavar="PATH")
    )
    device: str = field(default="auto", metadata=_work("auto, cpu, cuda ..."))
    dtype: DtypeName | None = field(default=None, metadata=_work(DTYPE_HELP))
    batch_size: int = field(default=1, metadata=_work("images at a time", metavar="B"))
    workers: int = field(default=2, metadata=_work("threads that read ahead", metavar="N"))
    on_error: Literal["skip", "stop"] = field(
        default="stop", metadata=_work("what to do about a file that cannot be read")
    )

    def __post_init__(self) -> None:
        """Check the names, counts and folders."""
        for table in self.tables:
            check_choice("tables", table, TABLES)
        check_work(self.limit, self.on_error, self.batch_size, self.workers)
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
