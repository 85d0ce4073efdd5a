"""Load timm models, and raise with one sentence if weights are unavailable."""

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovss_refine.checks import SCALES, check_number
from ovss_refine.folders.paths import local_path
from ovss_refine.registry import require
from ovss_refine.sources.device import DtypeLike, given_device, given_dtype
from ovss_refine_adapters.backbones.folders import (
    check_config,
    fetch,
    from_hub,
    listing,
    model_folder,
)

HUBS = ("hf-hub:", "hf_hub:")
INSTEAD = "a weight file or a folder with one"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Of the files that `load_head` reads.
ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
# Parameters that a file may have but a model without a classifier does not.
HEADS = ("head.", "fc.", "classifier.", "fc_norm.", "attn_pool.")


def load_timm(
    model: str | Path | nn.Module,
    *,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: DtypeLike = None,
) -> nn.Module:
    """Load a timm model without its classifier, for any image size if it supports that.

    Arguments and exceptions are those of `TimmBackbone`.
    """
    if isinstance(model, nn.Module):
        options = {"weights": weights, "device": device, "dtype": dtype}
        check_unset(options, "a ready model")
        return check_finite_weights(model, type(model).__name__)
    device = given_device(device)
    folder: Path | None
    if str(model).startswith(HUBS):
        folder = _fetch(str(model).partition(":")[2], () if weights else WEIGHT_FILES)
    else:
        folder = model_folder(model)
    # Before the model is made, which may take a minute.
    path = None if weights is None else weight_file(weights)
    if folder is None:
        loaded = _named(str(model), pretrained=path is None)
    else:
        loaded = _described(folder)
        path = weight_file(folder) if path is None else path
    if path is not None:
        _load_file(loaded, path)
    loaded = loaded.to(dtype=given_dtype(dtype, device))
    loaded = check_finite_weights(loaded, str(path or model))
    return loaded.to(device=device).eval()


def check_finite_weights(model: nn.Module, origin: str) -> nn.Module:
    """Return `model`, or raise ValueError if any of its parameters or saved buffers is not finite.

    Tensors on the device "meta", which have no values, are not checked.
    """
    for name, weight in model.state_dict().items():
        if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point():
            continue
        if weight.element_size() == 1:  # isfinite does not take 8 bits
            weight = weight.float()
        if not bool(weight.isfinite().all()):
            count = int((~weight.isfinite()).sum())
            raise ValueError(
                f"the weights `{origin}` must be finite; got {count} NaN or infinite values in "
                f"{name!r} ({weight.dtype})."
            )
    return model


def pixel_statistics(config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the `mean` and `std` of a configuration, of three channels each, or raise ValueError.

    A folder's configuration may hold anything; a model made by hand, too.
    """
    for name, low in (("mean", -SCALES[1]), ("std", SCALES[0])):
        found = config[name]
        if not isinstance(found, (list, tuple)) or len(found) != 3:
            raise ValueError(f"`{name}` of a model's pixels must be three numbers; got {found!r}.")
        for number in found:
            check_number(name, number, low, SCALES[1])
    return tuple(config["mean"]), tuple(config["std"])


def check_unset(options: Mapping[str, object], beside: str) -> None:
    """Raise ValueError if an option that does not go with another argument is not None."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"`{name}` must be None with {beside}; got {value!r}.")


def did_you_mean(value: str, known: Sequence[str]) -> str:
    """Return a sentence that proposes similar names; empty if there are none."""
    near = difflib.get_close_matches(value, known, n=3)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def weight_file(path: str | Path) -> Path:
    """Return the weight file at `path`, or in the folder `path`, or raise FileNotFoundError."""
    path = local_path("weights", str(path).removeprefix("local-dir:")).expanduser()
    if path.is_file():
        return path
    wanted = " or ".join(f"`{name}`" for name in WEIGHT_FILES)
    if not path.is_dir():
        raise FileNotFoundError(
            f"`weights` must be an existing weight file or folder with {wanted}; got `{path}`."
        )
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"`{path}` must hold {wanted}; got {listing(path)}.")


def load_head(
    path: str | Path,
    argument: str,
    file: str,
    make: Callable[[Mapping[str, Tensor]], nn.Module],
    old_names: Mapping[str, str] | None = None,
) -> nn.Module:
    """Load a small module that was trained on a frozen model.

    Args:
        path: a safetensors file, or a pickle of nothing but tensors, or a folder with one; either
            also after "local-dir:". In it, or under its key "model_state_dict" or "model", are the
            module's tensors; others are ignored.
        argument: the option that named it.
        file: the released file's name, which is read in a folder; if it is not there, the only
            weight file.
        make: returns the module, given the file's tensors by name, for their shapes.
        old_names: beginnings of tensors' names in older files, and what they are now.

    Raises:
        FileNotFoundError: if there is no such file, or the folder has none or several.
        ValueError: if it is damaged or of another kind, or its values are not finite.
    """
    path = _head_file(path, argument, file)
    try:
        state = _read_tensors(path)
        for old, new in (old_names or {}).items():
            state = {
                new + name.removeprefix(old) if name.startswith(old) else name: value
                for name, value in state.items()
            }
        head = make(state)
        head.load_state_dict({name: state[name] for name in head.state_dict()})
    except Exception as error:  # damaged files raise whatever their reader raises
        found = f"no {error}" if isinstance(error, KeyError) else _reason(error)
        raise ValueError(
            f"`{argument}` must hold the tensors of its module; got {found} in `{path}`."
        ) from error
    return check_finite_weights(head.float(), str(path)).requires_grad_(False).eval()


def _head_file(path: str | Path, argument: str, file: str) -> Path:
    """Return the weight file at `path`, or in the folder `path`, or raise FileNotFoundError."""
    path = local_path(argument, str(path).removeprefix("local-dir:")).expanduser()
    if not path.is_dir():
        if path.is_file():
            return path
        raise FileNotFoundError(
            f"`{argument}` must be an existing weight file or folder with one; got `{path}`."
        )
    if (path / file).is_file():
        return path / file
    found = sorted(one for one in path.iterdir() if one.suffix in ENDINGS and one.is_file())
    if len(found) == 1:
        return found[0]
    raise FileNotFoundError(
        f"`{argument}` must be a folder with `{file}` or a single weight file "
        f"({', '.join(ENDINGS)}); got {[one.name for one in found[:8]] or 'none'} in `{path}`."
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        state: Any = require("safetensors.torch", "models").load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("model_state_dict", "model"):
        state = state.get(key, state)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _fetch(repository: str, weights: Sequence[str]) -> Path:
    """Return the folder of a model's files on the hub."""
    return fetch(repository, ["config.json"], weights, argument="weights", instead=INSTEAD)


def _described(folder: Path) -> nn.Module:
    """Create the model that a folder's configuration describes."""
    architecture = check_config(folder, "config.json", "architecture")
    if not (isinstance(architecture, str) and require("timm", "models").is_model(architecture)):
        raise ValueError(
            f"`{folder / 'config.json'}` must have the name of a timm model as `architecture`; got "
            f"{architecture!r}."
        )
    try:
        return _create(f"local-dir:{folder}", pretrained=False)
    except Exception as error:  # models raise what they like for arguments they do not know
        raise ValueError(
            f"`{folder / 'config.json'}` must describe a timm model; got {_reason(error)}"
        ) from error


def _named(name: str, *, pretrained: bool) -> nn.Module:
    """Create a model by its timm name."""
    timm = require("timm", "models")
    _check_name(name, pretrained=pretrained)
    repository = timm.get_pretrained_cfg(name).hf_hub_id or name
    if not pretrained:
        return _create(name, pretrained=False)
    with from_hub(repository, argument="weights", instead=INSTEAD):
        return _create(name, pretrained=True)


def _reason(error: Exception) -> str:
    """Return the last line of an error's text, or its kind."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()


def _create(name: str, *, pretrained: bool) -> nn.Module:
    timm = require("timm", "models")
    try:
        made: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=0, dynamic_img_size=True
        )
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        # Convolutional models take any size and have no such option.
        made = timm.create_model(name, pretrained=pretrained, num_classes=0)
    return made


def _check_name(name: str, *, pretrained: bool) -> None:
    timm = require("timm", "models")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = did_you_mean(name, timm.list_models(pretrained=True))
        raise ValueError(f"`model` must be the name of a timm model; got {name!r}.{hint}")
    known = timm.list_models(f"{architecture}*", pretrained=True)
    known = [other for other in known if other.partition(".")[0] == architecture]
    if (tag and name not in known) or (pretrained and not known):
        raise ValueError(f"`model` must be a name with weights, one of {known}; got {name!r}.")


def _load_file(model: Any, path: Path) -> None:
    """Load a file's weights into `model`: none missing, none left over but a classifier's."""
    kind = type(model).__name__
    helpers = require("timm.models", "models")
    # timm's own renaming of the original releases' parameters.
    rename = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    try:
        state = helpers.load_state_dict(str(path), weights_only=True)
        state = rename(state, model) if rename else state
        result = model.load_state_dict(state, strict=False)
    except Exception as error:
        # Damaged files raise whatever their reader raises.
        raise ValueError(
            f"`{path}` must hold the weights of this {kind}; got {_reason(error)}"
        ) from error
    unexpected = [key for key in result.unexpected_keys if not key.startswith(HEADS)]
    if result.missing_keys or unexpected:
        raise ValueError(
            f"`{path}` must hold the weights of this {kind}; got {len(unexpected)} unexpected "
            f"{unexpected[:3]} and {len(result.missing_keys)} missing {result.missing_keys[:3]}."
        )
