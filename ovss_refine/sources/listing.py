"""The list of installed sources with their licences, for people; loads none of them.

A package that registers sources may have a module `about`, importable without any heavy library,
whose `ABOUT` maps "attention" or "logits", then a source's name, to the texts of `COLUMNS`.
"""

import importlib
from importlib.metadata import entry_points
from importlib.util import find_spec

KINDS = ("attention", "logits")
COLUMNS = ("weights", "licence", "parameters", "download", "needs")
UNKNOWN = dict.fromkeys(COLUMNS, "not stated")


def list_sources() -> str:
    """Lay out a table for each kind of source: name, weights, licence, size, what it needs."""
    tables = []
    for kind in KINDS:
        names = sorted(point.name for point in entry_points(group=f"ovss_refine.{kind}"))
        rows = [[kind, *COLUMNS], *([name, *facts(kind, name).values()] for name in names)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        tables += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        tables.append("")
    tables.append("Missing libraries come with `pip install 'ovss-refine[models]'`.")
    return "\n".join(tables)


def facts(kind: str, name: str) -> dict[str, str]:
    """Return the texts of `COLUMNS` for a source, from its own package; `UNKNOWN` without any.

    Args:
        kind: "attention" or "logits".
        name: the name it is registered under.

    Raises:
        ValueError: if nothing is registered under `name`.
    """
    modules = {p.name: p.module for p in entry_points(group=f"ovss_refine.{kind}")}
    if name not in modules:
        raise ValueError(f"`{kind}` must be the name of a source; got {name!r}.")
    found = _about(modules[name].partition(".")[0]).get(kind, {}).get(name, UNKNOWN)
    texts = {column: found[column] for column in COLUMNS}
    needs = texts["needs"]
    missing = [name for name in needs.split(", ") if name.isidentifier() and not find_spec(name)]
    return texts | {"needs": f"{needs} (missing: {', '.join(missing)})"} if missing else texts


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
