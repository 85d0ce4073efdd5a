"""Tables as Markdown and as CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from ovss_refine.folders.files import write_whole


def markdown_table(rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Lay out a table with aligned columns.

    Args:
        rows: the header first.
        text_columns: number of columns of text; those after them are numbers, aligned right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * w if i < text_columns else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = zip(row, widths, strict=True)
        aligned = [x.ljust(w) if i < text_columns else x.rjust(w) for i, (x, w) in enumerate(cells)]
        lines.append(f"| {' | '.join(aligned)} |")
    return "\n".join(lines)


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV, the header first, whole or not at all.

    Surrogates, as in the name of a file that is not UTF-8, are written as backslash escapes.
    """

    def write(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        text.detach()  # flushes, and leaves `file` open for `write_whole`

    write_whole(path, write)
