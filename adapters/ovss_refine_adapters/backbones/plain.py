"""Models as they are written in Python, whatever was put around them, and left as they were found.

Compiled code may be that of an earlier run, which does not call a hook registered since, and
wrappers hide the parts of a model.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from types import FunctionType
from typing import Any

import torch
from torch import nn

# Wrappers by the name of their class, as importing it may be slow, and where the model is.
WRAPPERS = {
    "OptimizedModule": "_orig_mod",  # of torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}
_SHARDED = "which holds a share of the weights. Gather them in a model that is not sharded."
_SCRIPTED = "which runs as TorchScript. Pass the model that was scripted or traced."
# Modules without parts that can be called one by one.
SEALED = {
    "FullyShardedDataParallel": _SHARDED,
    "FSDPModule": _SHARDED,
    "ScriptModule": _SCRIPTED,
}
# Hooks and modes are the model's, so another thread's run would be seen by the hooks of this one.
_ONE_AT_A_TIME = RLock()


def plain(model: nn.Module) -> nn.Module:
    """Return the model inside `torch.compile`, `DataParallel` or `DistributedDataParallel`.

    Raises:
        ValueError: if it is, or has a part that is, sharded or TorchScript, or has no values.
    """
    for part in model.modules():
        for kind in type(part).__mro__:
            if kind.__name__ in SEALED:
                raise ValueError(
                    f"`model` must be a plain PyTorch model; got {type(part).__name__}, "
                    f"{SEALED[kind.__name__]}"
                )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("`model` must have its weights loaded; got parameters on the device meta.")
    return _unwrapped(model)


@contextmanager
def undisturbed(*models: nn.Module) -> Iterator[None]:
    """Compute in evaluation mode, uncompiled, without gradient or autocast; restore every module.

    Inside, parts of the models are never wrapped; other threads wait. `models` themselves must be
    `plain`.
    """
    with ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        for module in [module for model in models for module in model.modules()]:
            stack.callback(setattr, module, "training", module.training)
            _replace(stack, vars(module), _functions_inside(module))
            _replace(stack, module._modules, _children_inside(module))
        for module in [module for model in models for module in model.modules()]:
            module.training = False
        for device in {next(model.parameters()).device.type for model in models}:
            stack.enter_context(torch.autocast(device, enabled=False))
        with torch.no_grad():
            yield


def _unwrapped(module: nn.Module) -> nn.Module:
    for kind in type(module).__mro__:
        if kind.__name__ in WRAPPERS:
            return _unwrapped(getattr(module, WRAPPERS[kind.__name__]))
    return module


def _children_inside(module: nn.Module) -> dict[str, nn.Module]:
    """Return what is inside the wrapped ones of a module's children."""
    children = {name: child for name, child in module._modules.items() if child is not None}
    inside = {name: _unwrapped(child) for name, child in children.items()}
    return {name: child for name, child in inside.items() if child is not children[name]}


def _functions_inside(module: nn.Module) -> dict[str, Any]:
    """Return what is inside the compiled ones of a module's own methods.

    `torch.compile(module.forward)` and `module.compile()` leave such methods.
    """
    functions = {k: value for k, value in vars(module).items() if isinstance(value, FunctionType)}
    inside = {k: vars(one).get("_torchdynamo_orig_callable") for k, one in functions.items()}
    return {name: function for name, function in inside.items() if function is not None}


def _replace(stack: ExitStack, values: dict[str, Any], new: dict[str, Any]) -> None:
    """Update a dictionary until the stack is closed."""
    if new:
        stack.callback(values.update, {name: values[name] for name in new})
        values.update(new)
