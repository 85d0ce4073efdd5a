"""What the result of a user's function depends on: its code, and what it refers to."""

import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

# Where functions come from that a version identifies.
INSTALLED = tuple(map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
PLAIN = (str, bytes, int, float, complex, type(None))


def referenced(function: FunctionType) -> dict[str, Any]:
    """Return what a function refers to by name: defaults, variables around it and global ones.

    Modules, classes and functions of installed packages are left out.
    """
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    found = {name: function.__globals__[name] for name in names & function.__globals__.keys()}
    found |= {f"default {i}": value for i, value in enumerate(function.__defaults__ or ())}
    found |= function.__kwdefaults__ or {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return {name: value for name, value in found.items() if not _foreign(value)}


def parts(thing: object) -> dict[str, Any] | None:
    """Return what a function, a method or a partial call consists of; None for other objects."""
    if isinstance(thing, FunctionType):
        return referenced(thing)
    if isinstance(thing, MethodType):
        return {"object": thing.__self__, "function": thing.__func__}
    if isinstance(thing, functools.partial):
        positional = {f"argument {i}": value for i, value in enumerate(thing.args)}
        return {"function": thing.func, **positional, **thing.keywords}
    return None


def code_digest(function: object) -> str | None:
    """Hash the code of a function, and the numbers and texts that it refers to.

    Functions that it calls are hashed too, but not those of installed packages.

    Returns:
        16 hexadecimal digits; None for other objects that can be called.
    """
    if parts(function) is None:
        return None
    digest = hashlib.blake2b(digest_size=8)
    _add_code(digest, function, seen=set())
    return digest.hexdigest()


def _add_code(digest: Any, thing: object, seen: set[int]) -> None:
    own = parts(thing)
    if own is None or id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, FunctionType):
        for code in _codes(thing.__code__):
            constants = [one for one in code.co_consts if isinstance(one, PLAIN)]
            digest.update(code.co_code + repr((code.co_names, constants)).encode())
    for name, value in sorted(own.items()):
        if isinstance(value, PLAIN):
            digest.update(f"{name}={value!r}".encode())
        _add_code(digest, value, seen)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Iterate over the code of a function and of those within it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)


def _foreign(value: object) -> bool:
    """Whether a value is a module, a class, or a function that was installed."""
    if isinstance(value, FunctionType):
        return value.__code__.co_filename.startswith(INSTALLED)
    return isinstance(value, (ModuleType, type))
