"""Images for the conformance suites, and checks that a source leaves its model unchanged."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# Attributes that are compared by value. Of the others, callable ones (`forward`, processors) are
# compared by identity, and the rest are ignored: libraries keep caches on their modules.
PLAIN = (bool, int, float, str, bytes, tuple, type(None))
# Square, wide and tall, with no common multiple: no model's own size.
SIZES = ((64, 64), (48, 80), (83, 37))
# How much the order of float32 operations may change, as a share of the largest value.
ORDER_TOLERANCE = 1e-4
# How much rounding the images to half precision may change, likewise; a wrong result changes all.
HALF_TOLERANCE = 0.1


def demand(condition: bool, message: str) -> None:
    """Raise AssertionError with `message` unless `condition` holds."""
    if not condition:
        raise AssertionError(message)


def modules_of(thing: object) -> list[nn.Module]:
    """List the outermost modules that `thing` holds, in attributes, containers and closures."""
    found: dict[int, nn.Module] = {}
    seen: dict[int, object] = {}  # the objects are kept alive, so that no id is reused
    queue = [thing]
    while queue:
        one = queue.pop()
        if id(one) in seen or isinstance(one, (Tensor, type, *PLAIN[:5])):
            continue
        seen[id(one)] = one
        if isinstance(one, nn.Module):
            found[id(one)] = one
        else:
            queue += _held(one)
    inner = {id(part) for m in found.values() for part in m.modules() if part is not m}
    return [module for key, module in found.items() if key not in inner]


def _held(thing: Any) -> list[object]:
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, (list, tuple, set, frozenset)):
        return list(thing)
    held: list[object] = list(getattr(thing, "__dict__", {}).values())
    for kind in type(thing).__mro__:
        slots = getattr(kind, "__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            held.append(getattr(thing, name, None))
    if isinstance(thing, partial):
        held += [thing.func, *thing.args, *thing.keywords.values()]
    held += [cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()]
    held.append(getattr(thing, "__self__", None))
    return held


def snapshot(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what is compared of a module, by the names of its parts."""
    return {name: _state(part) for name, part in module.named_modules()}


def difference(before: dict[str, dict[str, Any]], module: nn.Module) -> str:
    """Say how `module` differs from its snapshot, or return an empty string."""
    now = snapshot(module)
    if now.keys() != before.keys():
        return f"parts {sorted(now.keys() ^ before.keys())}"
    for part, old in before.items():
        for name in old.keys() | now[part].keys():
            if not _same(old.get(name, _ABSENT), now[part].get(name, _ABSENT)):
                return f"`{name}` of {part or 'the model'}"
    return ""


_ABSENT = object()


def _state(module: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, value in vars(module).items():
        if "hook" in name and isinstance(value, dict):
            state[name] = list(value.items())  # by the number of each hook, in order
        elif isinstance(value, PLAIN) or callable(value):
            state[name] = value
    for name, parameter in module.named_parameters(recurse=False):
        state[f"parameter {name}"] = (parameter, parameter.detach().clone())
        state[f"gradient of {name}"] = parameter.grad
        state[f"requires_grad of {name}"] = parameter.requires_grad
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:  # those are caches
            state[f"buffer {name}"] = (buffer, buffer.detach().clone())
    return state


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, tuple) and len(one) == 2 and isinstance(one[1], Tensor):
        return isinstance(two, tuple) and one[0] is two[0] and _equal(one[1], two[1])
    comparable = isinstance(one, (list, *PLAIN)) and type(one) is type(two)
    return one is two or (comparable and bool(one == two))


def _equal(one: Tensor, two: Tensor) -> bool:
    same_kind = one.shape == two.shape and one.dtype == two.dtype and one.device == two.device
    return same_kind and torch.equal(one, two)


@contextmanager
def left_as_found(modules: list[nn.Module], when: str) -> Iterator[None]:
    """Raise AssertionError if the body, unless it raises, changes one of `modules`."""
    before = [snapshot(module) for module in modules]
    yield
    for module, old in zip(modules, before, strict=True):
        changed = difference(old, module)
        demand(
            not changed,
            f"a source must leave its model as it was found; {when} {changed} of "
            f"{type(module).__name__} is not what it was.",
        )


class InjectedError(Exception):
    """The exception that the suites raise inside a model."""


def calls_of(modules: list[nn.Module], run: Callable[[], object]) -> list[nn.Module]:
    """List the leaf modules that `run` calls, in order, each once."""
    called: dict[nn.Module, None] = {}
    leaves = [part for m in modules for part in m.modules() if not list(part.children())]
    with ExitStack() as stack:
        for leaf in leaves:
            note = leaf.register_forward_pre_hook(lambda module, _: called.setdefault(module))
            stack.callback(note.remove)
        run()
    return list(called)


def interrupt(module: nn.Module, run: Callable[[], object]) -> None:
    """Raise an exception when `run` calls `module`; demand that `run` lets it through."""

    def stop(_module: nn.Module, _args: object) -> None:
        raise InjectedError

    handle = module.register_forward_pre_hook(stop)
    try:
        run()
    except InjectedError:
        return
    finally:
        handle.remove()
    raise AssertionError("a source must not swallow an exception of its model; it did.")


def smooth_images(B: int, H: int, W: int) -> Tensor:
    """Make B smooth images, all different."""
    generator = torch.Generator().manual_seed(H * W)
    coarse = torch.rand(B, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (H, W), mode="bilinear")
    return (smooth + 0.1 * torch.rand(B, 3, H, W, generator=generator)).clamp(0, 1)


@contextmanager
def settings_left_alone() -> Iterator[None]:
    """Raise AssertionError if the body changes a global setting or draws random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.rand(7)  # a state that no seed gives, so that seeding is detected
        before = _settings()
        yield
        demand(
            before == _settings(),
            "a source must leave gradient mode, default type, threads and random numbers alone; "
            "it did not.",
        )


def _settings() -> tuple[object, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        tuple(torch.get_rng_state().tolist()),
    )


def check_refusals(run: Callable[[Tensor], object]) -> None:
    """Check that anything but a batch of images in [0, 1] is refused, apart from uint8 images."""
    images = smooth_images(1, 64, 64)
    wrong: dict[str, Tensor] = {
        "without a batch axis": images[0],
        "with four channels": images[:, [0, 1, 2, 0]],
        "of whole numbers": (255 * images).int(),
        "in [0, 255]": 255 * images,
        "with a NaN": images.clone().index_fill(3, torch.tensor([5]), torch.nan),
    }
    for what, given in wrong.items():
        got = "a result"
        try:
            run(given)
        except Exception as error:
            if isinstance(error, (TypeError, ValueError)):
                continue
            got = type(error).__name__
        raise AssertionError(f"images {what} must raise ValueError or TypeError; got {got}.")


def check_interruptions(source: object, run: Callable[[], object]) -> None:
    """Check that an exception in the first, middle or last module called leaves no trace."""
    modules = modules_of(source)
    if not modules:
        return
    called = calls_of(modules, run)
    demand(bool(called), "a source must use the model that it holds; none of its parts was called.")
    for place in sorted({0, len(called) // 2, len(called) - 1}):
        with left_as_found(modules, "after an exception in the middle"):
            interrupt(called[place], run)
        run()
