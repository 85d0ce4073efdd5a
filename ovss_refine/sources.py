"""The list of installed sources with their licences, for people; loads none of them.

A package that registers sources may have a module `about`, importable without any heavy library,
whose `ABOUT` maps "attention" or "logits", then a source's name, to the texts of `COLUMNS`.
"""

import importlib
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

KINDS = ("attention", "logits")
COLUMNS = ("weights", "licence", "parameters", "download", "needs")
UNKNOWN = dict.fromkeys(COLUMNS, "not stated")


def list_sources() -> str:
    """Lay out a table for each kind of source: name, weights, licence, size, what it needs."""
    tables = []
    for kind in KINDS:
        points = sorted(entry_points(group=f"ovss_refine.{kind}"), key=lambda point: point.name)
        rows = [[kind, *COLUMNS]] + [[point.name, *_facts(kind, point)] for point in points]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        tables += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        tables.append("")
    tables.append("Missing libraries come with `pip install 'ovss-refine[models]'`.")
    return "\n".join(tables)


def _facts(kind: str, point: EntryPoint) -> list[str]:
    """Return the texts of `COLUMNS` for a source, from its own package."""
    about = _about(point.module.partition(".")[0])
    facts = about.get(kind, {}).get(point.name, UNKNOWN)
    *texts, needs = (facts[column] for column in COLUMNS)
    missing = [name for name in needs.split(", ") if name.isidentifier() and not find_spec(name)]
    return [*texts, f"{needs} (missing: {', '.join(missing)})" if missing else needs]


def _about(package: str) -> dict[str, dict[str, dict[str, str]]]:
    try:
        found: dict[str, dict[str, dict[str, str]]] = importlib.import_module(
            f"{package}.about"
        ).ABOUT
    except ModuleNotFoundError as error:
        if error.name not in (package, f"{package}.about"):
            raise  # present, but one of its own imports is broken
        return {}
    return found
