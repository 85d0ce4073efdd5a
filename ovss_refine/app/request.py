"""The options of `ovss-refine app`, one field per flag. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path

from ovss_refine.sources import DTYPE_HELP, DtypeName


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRequest:
    """Where to serve the page, and with which limits. `help` describes the fields."""

    host: str = field(
        default="127.0.0.1",
        metadata={
            "metavar": "ADDRESS",
            "help": "address to listen on; any but the default admits other machines",
        },
    )
    port: int = field(
        default=7860, metadata={"metavar": "N", "help": "port to listen on; 0: any free port"}
    )
    device: str = field(
        default="auto",
        metadata={"metavar": "NAME", "help": "auto (a GPU if there is one), cpu, cuda ..."},
    )
    dtype: DtypeName | None = field(default=None, metadata={"help": DTYPE_HELP})
    models_dir: Path | None = field(
        default=None,
        metadata={"metavar": "DIR", "help": "folder of weights, for use without a network"},
    )
    max_bytes: int = field(
        default=32_000_000,
        metadata={"parse": _count, "metavar": "N", "help": "largest upload, in bytes"},
    )
    max_pixels: int = field(
        default=16_000_000,
        metadata={
            "parse": _count,
            "metavar": "N",
            "help": "largest image, in pixels; larger ones are scaled down",
        },
    )
    browser: bool = field(
        default=True, metadata={"flag": "--no-browser", "help": "do not open a browser"}
    )
