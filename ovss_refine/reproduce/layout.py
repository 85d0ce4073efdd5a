"""Numbers as the paper rounds them, Markdown tables, and the published tables. No torch here."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ovss_refine.reproduce.tables import PaperRow, PaperTable, published

MIOU = "mIoU"
SECONDS = "seconds"
# Columns of the cost: the parts that are measured, and what is not counted here.
PARTS = {"logits": "logits", "attention": "attention", "distribution": "distribution"}
PARTS |= {"upsampling": "JBU"}
UNCOUNTED = {"gflops": "GFLOPs", "parameters": "parameters (M)"}
COSTS = {SECONDS: SECONDS, **PARTS, **UNCOUNTED, "miou": MIOU}
ABSENT = "-"
NOT_MEASURED = "not measured here"


def published_text(tables: Sequence[PaperTable]) -> str:
    """Lay out the published numbers of some tables, marked as not measured here."""
    numbers = published()
    parts = ["## The published tables", "mIoU in percent, by J. Li et al."]
    for table in tables:
        parts.append(f"### `{table.name}`: {table.title}")
        if table.says:
            parts.append(f"{table.says[0].upper()}{table.says[1:]}.")
        if not table.curves:
            parts.append(markdown_table(list(_published_lines(table, numbers))))
    return "\n\n".join(parts)


def _published_lines(table: PaperTable, numbers: Mapping[Any, float]) -> Iterator[list[str]]:
    """Yield the rows of a table as it was published."""
    costs = COSTS if table.name == "cost" else {}
    quantities = [*costs.values()] or [MIOU] * len(table.datasets)
    yield ["backbone", "method", *(costs.values() or table.datasets), "ours"]
    for row in table.rows:
        if row.published or row.cost:
            key = (row.published, row.backbone, row.method)
            values = [row.cost.get(name) for name in costs] or [
                numbers.get((*key, name)) for name in table.datasets
            ]
            ours = row.missing or NOT_MEASURED
            texts = [number_text(*pair) for pair in zip(values, quantities, strict=True)]
            yield [row.backbone, row_name(row), *texts, ours]


def row_name(row: PaperRow) -> str:
    """Name a row; methods of two tables that are shown as one carry theirs."""
    table = row.published.partition("(")[2].rstrip(")")
    return f"{row.method} ({table})" if table else row.method


def number_text(value: float | None, quantity: str = MIOU) -> str:
    """Round as the paper does: percent to a tenth, seconds to a hundredth."""
    if value is None:
        return ABSENT
    return f"{value:.{2 if value < 10 and quantity != MIOU else 1}f}"


def signed_text(value: float | None, quantity: str) -> str:
    """Round a difference, with its sign."""
    return ABSENT if value is None else f"{value:+.{1 if quantity == MIOU else 2}f}"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Lay out a table, the head first, with aligned columns: two of text, the others of numbers."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        [*(text.ljust(w) for text, w in zip(line[:2], widths[:2], strict=True))]
        + [text.rjust(w) for text, w in zip(line[2:], widths[2:], strict=True)]
        for line in lines
    ]
    rule = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])
