"""Sources by name, found through entry points; heavy imports that say how to install.

An entry point in the group `ovss_refine.attention` or `ovss_refine.logits` names a callable that
takes options and returns a source. Third-party sources register exactly as ours do. This module
does not import torch.
"""

import difflib
import importlib
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovss_refine.attention import AttentionSource
    from ovss_refine.logits import LogitsSource


class MissingWeightsError(FileNotFoundError):
    """Raised by a source whose weights are neither cached nor can be downloaded."""

    def __init__(self, lack: str, not_asked: str, fix: str) -> None:
        """Join what is missing, why the hub was not asked (or ""), and what to do."""
        super().__init__(f"{lack}{not_asked}; {fix}.")
        self.lack, self.not_asked, self.fix = lack, not_asked, fix


def load_attention(name: str, **options: Any) -> "AttentionSource":
    """Make the attention source registered under `name`.

    Args:
        name: one of `list_attention()`.
        options: keyword arguments of that source; see its documentation.

    Raises:
        ValueError: if nothing is registered under `name`.
        ModuleNotFoundError: if the source needs a library that is not installed.
        TypeError: on an option that the source does not have.
    """
    source: AttentionSource = find("attention", name).load()(**options)
    return source


def list_attention() -> list[str]:
    """List the names of the installed attention sources.

    Example:
        >>> "dinov2-b14-reg" in list_attention()
        True
    """
    return sorted(_registered("attention"))


def load_logits(name: str, **options: Any) -> "LogitsSource":
    """Make the logits source registered under `name`.

    Args:
        name: one of `list_logits()`.
        options: keyword arguments of that source, among them `classes`; see its documentation.

    Raises:
        ValueError: if nothing is registered under `name`.
        ModuleNotFoundError: if the source needs a library that is not installed.
        TypeError: on an option that the source does not have.

    Example:
        >>> source = load_logits("callable", fn=lambda x: x[:, :2], classes=["red", "green"])
        >>> source.classes.names
        ('red', 'green')
    """
    source: LogitsSource = find("logits", name).load()(**options)
    return source


def list_logits() -> list[str]:
    """List the names of the installed logits sources.

    Example:
        >>> "kk-mean" in list_logits()
        True
    """
    return sorted(_registered("logits"))


def find(kind: str, name: str, built_in: Sequence[str] = ()) -> EntryPoint:
    """Return the entry point of `kind` "attention", "logits" or "upsampler".

    Args:
        kind: the end of the group's name.
        name: of the entry point.
        built_in: names that need no entry point, for the message.

    Raises:
        ValueError: if nothing is registered under `name`; names the nearest.
    """
    known = _registered(kind)
    if name in known:
        return known[name]
    names = [*built_in, *sorted(known)]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"`{kind}` must be one of {names}; got {name!r}.{hint}")


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, an optional dependency that the extra `extra` installs.

    Raises:
        ModuleNotFoundError: if it is not installed; the message says how to install it.
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
