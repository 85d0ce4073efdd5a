"""Commands, and their flags made from the fields of a dataclass.

A field with `help` in its metadata becomes a flag: its type says how text is parsed, its default is
the flag's. All other fields are left to the caller of `request_of`. A field whose type is a
dataclass stands for the flags of that dataclass, which inherit its metadata. Annotations that
are strings are not evaluated, so that a field without a flag may name a type of a heavy module.

The keys of the metadata:

* `help`: what the flag is for; the default is appended;
* `flag`: its name, if it is not the field's; "{}" is the field that holds the dataclass. A name
  that begins with "--no-" is for a field that is True by default;
* `positional`: True for an argument without a flag;
* `group`: the heading under which the help lists it;
* `metavar`, `choices`: as in argparse; a `Literal` has its own choices;
* `parse`: parses text, for a collection the text of one item; its ValueError is a usage error;
* `example`: quoted in the usage error of a tuple of fixed length or of a mapping.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

from ovss_refine.folders.paths import local_path

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], object],
    request: "type[DataclassInstance] | None" = None,
    **texts: Any,
) -> argparse.ArgumentParser:
    """Add a command that calls `run`, with a flag for every field of `request`.

    Args:
        commands: what `add_subparsers` returned.
        name: of the command.
        run: takes the parsed flags; returns the exit status, or None for 0.
        request: as for `add_flags`.
        texts: `help`, `description` and other options of the parser.
    """
    parser: argparse.ArgumentParser = commands.add_parser(name, allow_abbrev=False, **texts)
    parser.set_defaults(run=run)
    if request is not None:
        add_flags(parser, request)
    return parser


def add_flags(parser: argparse.ArgumentParser, request: "type[DataclassInstance]") -> None:
    """Add a flag for every field of `request` that has `help`.

    Raises:
        TypeError: if such a field has a type that cannot be parsed from text.
    """
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    for flag in _flags(request):
        title = flag.metadata.get("group", "")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(flag.flag, **flag.options())


def request_of(args: argparse.Namespace, request: type[R], **given: Any) -> R:
    """Build `request` from the parsed flags, and from `given` values of fields without a flag.

    Raises:
        TypeError: on a value of the wrong type, as the dataclass says.
        ValueError: on a value out of range, as the dataclass says.
    """
    values: dict[str, dict[str, Any]] = {}
    for flag in _flags(request):
        found = getattr(args, flag.destination)
        collect = {Mapping: dict, tuple: tuple}.get(flag.collection)
        values.setdefault(flag.holder, {})[flag.name] = collect(found) if collect else found
    own = values.pop("", {})
    types: dict[str, Any] = {field.name: field.type for field in fields(request)}
    return request(**own, **{name: types[name](**x) for name, x in values.items()}, **given)


def _flags(request: Any, holder: str = "", **inherited: Any) -> "Iterator[_Flag]":
    for field in fields(request):
        metadata = {**inherited, **field.metadata}
        if is_dataclass(field.type):
            yield from _flags(field.type, field.name, **field.metadata)
        elif "help" in metadata:
            make = field.default_factory
            default = field.default if make is MISSING else make()
            yield _Flag(field.name, _without_none(field.type), default, metadata, holder)


def _without_none(hint: Any) -> Any:
    members = [member for member in get_args(hint) if member is not type(None)]
    return members[0] if len(members) == 1 < len(get_args(hint)) else hint


@dataclass(frozen=True, slots=True)
class _Flag:
    """A field with a flag; `holder` is the field that holds its dataclass, or ""."""

    name: str
    type: Any  # without None
    default: Any  # or MISSING
    metadata: Mapping[str, Any]
    holder: str

    @property
    def destination(self) -> str:
        """Name of the parsed value."""
        return f"{self.holder}.{self.name}".removeprefix(".")

    @property
    def flag(self) -> str:
        """What is typed; for a positional argument, its name."""
        if self.metadata.get("positional"):
            return self.destination
        own = "--" + self.name.replace("_", "-")
        return str(self.metadata.get("flag", own)).format(self.holder)

    @property
    def collection(self) -> Any:
        """Mapping or tuple, if any number of values may be given."""
        form = get_origin(self.type)
        return None if form is tuple and get_args(self.type)[-1] is not ... else form

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of `add_argument`."""
        options = self._reading() | {"help": self._help()}
        if self.metadata.get("positional"):
            return options
        if self.default is MISSING:
            return options | {"dest": self.destination, "required": True}
        default = list(self.default.items()) if self.collection is Mapping else self.default
        return options | {"dest": self.destination, "default": default}

    def _reading(self) -> dict[str, Any]:
        """Return the options that make argparse parse text as the type."""
        if self.type is bool:
            no = self.flag.startswith("--no-")
            yes = "store_false" if no else argparse.BooleanOptionalAction
            return {"action": yes if self.default else "store_true"}
        given = {key: self.metadata[key] for key in ("metavar", "choices") if key in self.metadata}
        if get_origin(self.type) is Literal:
            return {"choices": get_args(self.type)} | given
        item = get_args(self.type)[0] if self.collection is tuple else self.type
        known: dict[Any, Any] = {kind: kind for kind in (int, float, str)}
        known |= {Path: partial(local_path, self.name), Mapping: self._pair, tuple: self._items}
        read = self.metadata.get("parse", known.get(get_origin(item) or item))
        if read is None:
            raise TypeError(
                f"`{self.name}` must have a type that can be parsed from text; got {self.type}."
            )
        options: dict[str, Any] = {"type": read if isinstance(read, type) else _with_message(read)}
        options |= {Mapping: {"action": "append"}, tuple: {"nargs": "+"}}.get(self.collection, {})
        if "choices" not in given:
            options["metavar"] = (item.__name__ if item in (int, float) else self.name).upper()
        return options | given

    def _help(self) -> str:
        """Return the help, escaped for argparse, with the default if it is informative."""
        text, default = str(self.metadata["help"]).replace("%", "%%"), self.default
        if default in (MISSING, None, (), {}) or default is False or self.flag[:5] == "--no-":
            return text
        if default is True:
            return f"{text} (default: yes)"
        if default == self.metadata.get("choices"):
            return f"{text} (default: all)"
        if isinstance(default, tuple):
            return f"{text} (default: {', '.join(map(str, default))})"
        many = isinstance(default, int) and default > 99_999
        return f"{text} (default: {f'{default:_}' if many else default})"

    def _items(self, text: str) -> tuple[Any, ...]:
        """Parse a tuple of fixed length, separated by commas."""
        kinds, items = get_args(self.type), text.split(",")
        try:
            return tuple(kind(item) for kind, item in zip(kinds, items, strict=True))
        except ValueError:
            raise ValueError(self._expected(text)) from None

    def _pair(self, text: str) -> tuple[str, Any]:
        """Parse KEY=VALUE; a value that is not JSON is taken as text."""
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(self._expected(text))
        try:
            return key, json.loads(value)
        except json.JSONDecodeError:
            return key, value
        except (ValueError, RecursionError):  # thousands of digits or brackets
            raise ValueError(self._expected(text)) from None

    def _expected(self, text: str) -> str:
        metavar, example = self.metadata["metavar"], self.metadata["example"]
        return f"must be {metavar} such as {example}; got {_short(text)!r}"


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _with_message(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Convert a ValueError to the one exception whose message argparse shows."""

    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError as err:
            raise argparse.ArgumentTypeError(str(err)) from None

    return checked
