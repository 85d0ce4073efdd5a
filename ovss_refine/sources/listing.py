"""A table of the installed sources and their licences, made without loading any of them.

A package that registers sources may have a module `about`, importable without any heavy library,
whose `ABOUT` maps "attention" or "logits", then a source's name, to the texts of `COLUMNS`. A
source that takes models of several kinds may add a row for each, "name: kind", listed below it.
One that needs a file of the user's has "your" in its weights; the page does not offer it.
"""

import importlib
from importlib.util import find_spec

from ovss_refine.registry import find, list_attention, list_logits

COLUMNS = ("weights", "licence", "parameters", "download", "needs")
UNKNOWN = dict.fromkeys(COLUMNS, "not stated")


def list_sources() -> str:
    """Format a table for each kind of source: name, weights, licence, size, requirements."""
    tables = []
    for kind, names in (("attention", list_attention()), ("logits", list_logits())):
        rows = [[kind, *COLUMNS], *(row for name in names for row in _rows(kind, name))]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        tables += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        tables.append("")
    tables.append("Missing libraries come with `pip install 'ovss-refine[models]'`.")
    return "\n".join(tables)


def facts(kind: str, name: str) -> dict[str, str]:
    """Return the texts of `COLUMNS` for a source, or `UNKNOWN` if its package has none.

    Raises:
        ValueError: if nothing is registered under `name`.
    """
    return _texts(_stated(kind, name).get(name, UNKNOWN))


def _rows(kind: str, name: str) -> list[list[str]]:
    """Return the rows of a source: its own, then one for each kind of model."""
    stated = _stated(kind, name)
    kinds = {title: row for title, row in stated.items() if title.startswith(f"{name}: ")}
    rows = {name: stated.get(name, UNKNOWN), **kinds}
    return [[title, *_texts(row).values()] for title, row in rows.items()]


def _texts(found: dict[str, str]) -> dict[str, str]:
    """Order the texts as `COLUMNS`, with the libraries that are missing."""
    texts = {column: found[column] for column in COLUMNS}
    needs = texts["needs"]
    missing = [name for name in needs.split(", ") if name.isidentifier() and not find_spec(name)]
    return texts | {"needs": f"{needs} (missing: {', '.join(missing)})"} if missing else texts


def _stated(kind: str, name: str) -> dict[str, dict[str, str]]:
    """Return what the package of a source states about all its sources of that kind."""
    return _about(find(kind, name).module.partition(".")[0]).get(kind, {})


def _about(package: str) -> dict[str, dict[str, dict[str, str]]]:
    try:
        about = importlib.import_module(f"{package}.about")
    except ModuleNotFoundError as error:
        if error.name not in (package, f"{package}.about"):
            raise  # present, but one of its own imports is broken
        return {}
    found: dict[str, dict[str, dict[str, str]]] = about.ABOUT
    return found
