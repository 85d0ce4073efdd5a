"""Load timm models, and raise with one sentence if weights are unavailable."""

import difflib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ovss_refine.registry import MissingWeightsError, require

# Entries by which a configuration makes a library import code, or load a tokenizer that does.
CODE_KEYS = ("auto_map", "custom_pipelines", "tokenizer_kwargs", "trust_remote_code")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Parameters that a file may have but a model without a classifier does not.
HEADS = ("head.", "fc.", "classifier.", "fc_norm.", "attn_pool.")


def load_timm(
    model: str | Path | nn.Module,
    *,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Load a timm model without its classifier, for any image size if it supports that.

    Arguments and exceptions are those of `TimmBackbone`.
    """
    if isinstance(model, nn.Module):
        options = {"weights": weights, "device": device, "dtype": dtype}
        check_unset(options, "a ready model")
        return model
    folder = local_folder(model)
    if folder is not None:
        check_config(folder, "config.json", "architecture")
        loaded = _create(f"local-dir:{folder}", pretrained=False)
        weights = folder if weights is None else weights
    else:
        loaded = _named(str(model), pretrained=weights is None)
    if weights is not None:
        _load_file(loaded, weight_file(weights))
    return loaded.to(device=device, dtype=dtype).eval()


def check_unset(options: Mapping[str, object], beside: str) -> None:
    """Raise ValueError if an option that does not go with another argument is not None."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"`{name}` must be None with {beside}; got {value!r}.")


def did_you_mean(value: str, known: Sequence[str]) -> str:
    """Return a sentence that proposes similar names; empty if there are none."""
    near = difflib.get_close_matches(value, known, n=3)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


@contextmanager
def from_hub(repository: str, *, argument: str, instead: str) -> Iterator[None]:
    """Turn any error of a failed download into one sentence.

    Args:
        repository: "owner/name" of the weights.
        argument: the option that takes a local copy.
        instead: what to pass to it.

    Raises:
        MissingWeightsError: if the body raises an OSError, as all errors of the hub are.
    """
    try:
        yield
    except OSError as error:
        constants = require("huggingface_hub.constants", "models")
        offline = " (not asked: HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        raise MissingWeightsError(
            f"the weights `{repository}` must be available; got nothing from the cache "
            f"`{constants.HF_HUB_CACHE}` or from {constants.ENDPOINT}",
            offline,
            f"run `hf download {repository}` on a machine with a network, or pass `{argument}`, "
            f"{instead}",
        ) from error


def local_folder(model: str | Path) -> Path | None:
    """Return `model` as a folder, given as a path or after `local-dir:`, or None if it is a name.

    Something written as a folder that does not exist raises FileNotFoundError.
    """
    text = str(model)
    path = Path(text.removeprefix("local-dir:")).expanduser()
    meant = isinstance(model, Path) or text.startswith(("local-dir:", "/", "./", "../", "~"))
    if path.is_dir() and (meant or len(path.parts) > 1):
        return path
    if meant:
        raise FileNotFoundError(f"`model` must be an existing folder; got `{path}`.")
    return None


def weight_file(path: str | Path) -> Path:
    """Return the weight file at `path`, or in the folder `path`, or raise FileNotFoundError."""
    path = Path(str(path).removeprefix("local-dir:")).expanduser()
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
    raise FileNotFoundError(f"`{path}` must hold {wanted}; got {_listing(path)}.")


def check_config(folder: Path, name: str, key: str) -> object:
    """Return the entry `key` of the JSON file `name` in `folder`, or raise."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"`{folder}` must hold `{name}`; got {_listing(folder)}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}` must be a JSON file; got {error}.") from error
    if not isinstance(config, dict) or key not in config:
        found = sorted(config)[:8] if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"`{path}` must have an entry `{key}`; got {found}.")
    return config[key]


def check_no_code(config: object, origin: str | Path) -> None:
    """Raise ValueError if the configuration of a model names code or a tokenizer from elsewhere.

    The libraries hand such entries on to transformers, which may import what lies beside them.

    Args:
        config: a parsed JSON file.
        origin: what to call it in the message.
    """
    if isinstance(config, list):
        for one in config:
            check_no_code(one, origin)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if key in CODE_KEYS or key.startswith("hf_"):
            raise ValueError(
                f"`{origin}` must describe a model of the library itself; got {key!r}, which may "
                "run code that came with the weights. Load the model yourself and pass it."
            )
        check_no_code(value, origin)


def _listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())[:8]


def _named(name: str, *, pretrained: bool) -> nn.Module:
    """Create a model by its timm or hub name."""
    timm = require("timm", "models")
    if ":" in name:
        repository = name.partition(":")[2]
    else:
        _check_name(name, pretrained=pretrained)
        repository = timm.get_pretrained_cfg(name).hf_hub_id or name
    with from_hub(repository, argument="weights", instead="a weight file or a folder with one"):
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
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"`{path}` must hold the weights of this {kind}; got {reason}") from error
    unexpected = [key for key in result.unexpected_keys if not key.startswith(HEADS)]
    if result.missing_keys or unexpected:
        raise ValueError(
            f"`{path}` must hold the weights of this {kind}; got {len(unexpected)} unexpected "
            f"{unexpected[:3]} and {len(result.missing_keys)} missing {result.missing_keys[:3]}."
        )
