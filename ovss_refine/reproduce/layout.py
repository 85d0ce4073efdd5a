"""Rounding as in the paper, and the published tables as text. Nothing here imports torch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ovss_refine.folders.tables import markdown_table
from ovss_refine.reproduce.tables import PaperRow, PaperTable, published

MIOU, SECONDS = "mIoU", "seconds"
# Columns of the cost; GFLOPs and parameters are published only.
COSTS = {
    SECONDS: SECONDS,
    "logits": "logits",
    "attention": "attention",
    "distribution": "distribution",
    "upsampling": "JBU",
    "gflops": "GFLOPs",
    "parameters": "parameters (M)",
    "miou": MIOU,
}
ABSENT = "-"


def published_text(tables: Sequence[PaperTable]) -> str:
    """Lay out the published values of some tables, marked as not measured here."""
    numbers = published()
    parts = ["## The published tables", "mIoU in percent, by J. Li et al."]
    for table in tables:
        parts.append(f"### `{table.name}`: {table.title}")
        if table.says:
            parts.append(f"{table.says[0].upper()}{table.says[1:]}.")
        if not table.curves:
            rows = list(_published_rows(table, numbers))
            parts.append(markdown_table(rows, text_columns=2))
    return "\n\n".join(parts)


def _published_rows(table: PaperTable, numbers: Mapping[Any, float]) -> Iterator[list[str]]:
    costs = COSTS if table.name == "cost" else {}
    quantities = [*costs.values()] or [MIOU] * len(table.datasets)
    yield ["backbone", "method", *(costs.values() or table.datasets), "ours"]
    for row in table.rows:
        if row.published or row.cost:
            key = (row.published, row.backbone, row.method)
            values = [row.cost.get(name) for name in costs] or [
                numbers.get((*key, name)) for name in table.datasets
            ]
            ours = row.missing or "not measured here"
            yield [row.backbone, row_name(row), *map(number_text, values, quantities), ours]


def row_name(row: PaperRow) -> str:
    """Name a row; a row of two tables that are shown as one has that of its table in brackets."""
    table = row.published.partition("(")[2].rstrip(")")
    return f"{row.method} ({table})" if table else row.method


def number_text(value: float | None, quantity: str) -> str:
    """Round as the paper does: percent to tenths, seconds to hundredths."""
    if value is None:
        return ABSENT
    return f"{value:.{2 if value < 10 and quantity != MIOU else 1}f}"
