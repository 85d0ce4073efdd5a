"""Load timm's models, and say in one sentence why weights are not to be had."""

import difflib
import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ovss_refine.registry import require

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Parameters that a file may have and a model without classifier has not.
HEADS = ("head.", "fc.", "classifier.", "fc_norm.", "attn_pool.")


def load_timm(
    model: str | Path | nn.Module,
    *,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Load a timm model without its classifier, for any image size where it allows that.

    Arguments and exceptions are those of `TimmBackbone`.
    """
    if isinstance(model, nn.Module):
        for name, value in (("weights", weights), ("device", device), ("dtype", dtype)):
            if value is not None:
                raise ValueError(f"`{name}` must be None beside a ready model; got {value!r}.")
        return model
    require("timm", "models")
    folder = local_folder(model)
    if folder is not None:
        check_config(folder, "config.json", "architecture")
        loaded = _create(f"local-dir:{folder}", pretrained=False)
        _load_file(loaded, weight_file(folder if weights is None else weights))
    elif weights is not None:
        loaded = _named(str(model), pretrained=False)
        _load_file(loaded, weight_file(weights))
    else:
        loaded = _named(str(model), pretrained=True)
    return loaded.to(device=device, dtype=dtype).eval()


@contextmanager
def from_hub(repository: str, *, argument: str, instead: str) -> Iterator[None]:
    """Turn whatever a failed download raises into one sentence.

    Args:
        repository: "owner/name" of what is looked for.
        argument: the option that takes a local copy.
        instead: what that option takes.

    Raises:
        FileNotFoundError: if the body raises an OSError, as all of the hub's errors are.
    """
    try:
        yield
    except OSError as error:
        constants = require("huggingface_hub.constants", "models")
        offline = " (not asked: HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        raise FileNotFoundError(
            f"the weights `{repository}` must be at hand; got them neither from the cache "
            f"`{constants.HF_HUB_CACHE}` nor from {constants.ENDPOINT}{offline}; run `hf download "
            f"{repository}` where there is a network, or pass `{argument}`, {instead}."
        ) from error


def local_folder(model: str | Path, argument: str = "model") -> Path | None:
    """Return the folder that `model` is, as a path or after `local-dir:`, or None.

    Raises:
        FileNotFoundError: if it is meant as a folder and there is none.
    """
    text = str(model)
    path = Path(text.removeprefix("local-dir:")).expanduser()
    meant = isinstance(model, Path) or text.startswith(("local-dir:", "/", "./", "../", "~"))
    if path.is_dir() and (meant or len(path.parts) > 1):
        return path
    if meant:
        raise FileNotFoundError(f"`{argument}` must be an existing folder; `{path}` is none.")
    return None


def weight_file(path: str | Path) -> Path:
    """Return the file of weights that `path` is, or that lies in the folder `path`.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(str(path).removeprefix("local-dir:")).expanduser()
    if path.is_file():
        return path
    wanted = " or ".join(f"`{name}`" for name in WEIGHT_FILES)
    if not path.is_dir():
        raise FileNotFoundError(
            f"`weights` must be a file of weights or a folder with {wanted}; `{path}` does not "
            "exist."
        )
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"`{path}` must hold {wanted}; got {_listing(path)}.")


def check_config(folder: Path, name: str, key: str) -> object:
    """Return the entry `key` of the JSON file `name` in `folder`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON, or has no such entry.
    """
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"`{folder}` must hold `{name}`; got {_listing(folder)}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}` must be a JSON file; got {error}.") from error
    if not isinstance(config, dict) or key not in config:
        found = sorted(config)[:8] if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"`{path}` must name its `{key}`; got {found}.")
    return config[key]


def _listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())[:8]


def _named(name: str, *, pretrained: bool) -> nn.Module:
    """Make the model of a name of timm or the hub."""
    timm = require("timm", "models")
    if ":" in name:
        repository = name.partition(":")[2]
    else:
        _check_name(name, pretrained=pretrained)
        repository = timm.get_pretrained_cfg(name).hf_hub_id or name
    instead = "a file of weights or a folder that holds one"
    with from_hub(repository, argument="weights", instead=instead):
        return _create(name, pretrained=pretrained)


def _create(name: str, *, pretrained: bool) -> nn.Module:
    timm = require("timm", "models")
    try:
        made: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=0, dynamic_img_size=True
        )
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        # Convolutions take any size, and have no such option.
        made = timm.create_model(name, pretrained=pretrained, num_classes=0)
    return made


def _check_name(name: str, *, pretrained: bool) -> None:
    timm = require("timm", "models")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(name, timm.list_models(pretrained=True), n=3, cutoff=0.5)
        hint = f" Did you mean one of {near}?" if near else ""
        raise ValueError(f"`model` must be the name of a timm model; got {name!r}.{hint}")
    known = timm.list_models(f"{architecture}*", pretrained=True)
    known = [other for other in known if other.partition(".")[0] == architecture]
    if (tag and name not in known) or (pretrained and not known):
        raise ValueError(f"`model` must be one with weights, {known}; got {name!r}.")


def _load_file(model: Any, path: Path) -> None:
    """Put the weights of a file into `model`; nothing may be missing, or left over but a head."""
    kind = type(model).__name__
    helpers = require("timm.models", "models")
    # timm's own renaming of the parameters of the original releases.
    rename = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    try:
        state = helpers.load_state_dict(str(path), weights_only=True)
        state = rename(state, model) if rename else state
        result = model.load_state_dict(state, strict=False)
    except Exception as error:
        # Damaged files raise whatever their reader does.
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"`{path}` must hold the weights of this {kind}; got {reason}") from error
    odd = [key for key in result.unexpected_keys if not key.startswith(HEADS)]
    if result.missing_keys or odd:
        raise ValueError(
            f"`{path}` must hold the weights of this {kind}; got {len(odd)} that it has not "
            f"{odd[:3]}, and {len(result.missing_keys)} too few {result.missing_keys[:3]}."
        )
