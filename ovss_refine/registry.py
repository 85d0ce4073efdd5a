"""Sources by name, found through entry points; heavy imports that say how to install.

An entry point in the group `ovss_refine.attention` or `ovss_refine.logits` names a callable that
takes options and returns a source. Ours and a third party's register in the same way.
"""

import difflib
import importlib
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from ovss_refine.attention import AttentionSource
from ovss_refine.logits import LogitsSource


def load_attention(name: str, **options: Any) -> AttentionSource:
    """Make the attention source that is registered under `name`.

    Args:
        name: one of `list_attention()`.
        options: what that source takes; see its documentation.

    Raises:
        ValueError: if nothing is registered under `name`.
        ModuleNotFoundError: if the source needs a library that is not installed.
        TypeError: on an option that the source does not have.
    """
    source: AttentionSource = find("attention", name).load()(**options)
    return source


def list_attention() -> list[str]:
    """Name the attention sources that are installed."""
    return sorted(_registered("attention"))


def load_logits(name: str, **options: Any) -> LogitsSource:
    """Make the logits source that is registered under `name`.

    Args:
        name: one of `list_logits()`.
        options: what that source takes, `classes` first of all; see its documentation.

    Raises:
        ValueError: if nothing is registered under `name`.
        ModuleNotFoundError: if the source needs a library that is not installed.
        TypeError: on an option that the source does not have.
    """
    source: LogitsSource = find("logits", name).load()(**options)
    return source


def list_logits() -> list[str]:
    """Name the logits sources that are installed."""
    return sorted(_registered("logits"))


def find(kind: str, name: str) -> EntryPoint:
    """Return the entry point of a source.

    Args:
        kind: "attention" or "logits".
        name: the name it is registered under.

    Raises:
        ValueError: if nothing is registered under `name`.
    """
    known = _registered(kind)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"`{kind}` must be one of {sorted(known)}; got {name!r}.{hint}")


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which the optional dependencies called `extra` bring.

    Raises:
        ModuleNotFoundError: if it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # present, but one of its own imports is broken
        raise ModuleNotFoundError(
            f"`{module}` is not installed; run `pip install 'ovss-refine[{extra}]'`.",
            name=error.name,
        ) from error


def _registered(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"ovss_refine.{kind}")}
