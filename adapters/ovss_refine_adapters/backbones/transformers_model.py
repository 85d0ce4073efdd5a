"""Load a model of transformers by its class, as data, or take a ready one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ovss_refine.registry import require
from ovss_refine.sources.device import DtypeLike, given_device, given_dtype
from ovss_refine_adapters.backbones.folders import (
    check_config,
    fetch,
    first_line,
    listing,
    model_folder,
)
from ovss_refine_adapters.backbones.plain import plain
from ovss_refine_adapters.backbones.weights import (
    WEIGHT_FILES,
    check_finite_weights,
    check_unset,
    weight_file,
)

CONFIG = "config.json"
SAFE = "model.safetensors"


def load_transformers(
    model: str | Path | nn.Module,
    classes: Mapping[str, str],
    device: str | torch.device | None = None,
    *,
    safe: bool = False,
    dtype: DtypeLike = None,
) -> nn.Module:
    """Load a model, or take a ready one.

    Args:
        model: "owner/name" on the hub, a folder ("local-dir:PATH" or a path) with config.json and
            the weights, or a ready model, whose device and mode are left alone.
        classes: the class of transformers for each `model_type` of a config.
        device: device to load onto; None: the CPU.
        safe: read safetensors files only, not pickles of nothing but tensors.
        dtype: dtype that the model is converted to, as for `given_dtype`; None: float32.

    Raises:
        ModuleNotFoundError, FileNotFoundError: if transformers, a folder or weights are missing.
        ValueError: on another model, one that the installed transformers lacks, weights that do not
            fit or are not finite, or a folder whose files may run code.
    """
    library = require("transformers", "models")
    if isinstance(model, nn.Module):
        check_unset({"dtype": dtype}, "a ready model")
        return _ready(library, model, classes)
    device = given_device(device)
    folder = model_folder(model)
    if folder is None:
        instead = f"a folder with {CONFIG} and the weights"
        files = (SAFE,) if safe else WEIGHT_FILES
        folder = fetch(str(model), [CONFIG], files, argument="model", instead=instead)
    kind = check_config(folder, CONFIG, "model_type")
    if not isinstance(kind, str) or kind not in classes:
        raise ValueError(
            f"`{folder / CONFIG}` must describe a {' or '.join(classes)}; got {kind!r}."
        )
    name = classes[kind]
    if not hasattr(library, name):
        raise ValueError(
            f"`model` must be one that transformers {library.__version__} has; got {kind!r}, which "
            "a later version has."
        )
    if safe and not (folder / SAFE).is_file():
        raise FileNotFoundError(f"`{folder}` must hold `{SAFE}`; got {listing(folder)}.")
    weight_file(folder)  # without one, transformers may look for others
    loaded = _read(getattr(library, name), folder, safe).to(device=device).eval()
    converted = given_dtype(dtype, device or torch.device("cpu"))
    return loaded if converted is None else check_finite_weights(loaded.to(converted), str(folder))


def _ready(library: Any, model: nn.Module, classes: Mapping[str, str]) -> nn.Module:
    model = plain(model)
    names = list(dict.fromkeys(classes.values()))
    if not isinstance(model, tuple(getattr(library, n) for n in names if hasattr(library, n))):
        raise ValueError(f"`model` must be a {' or '.join(names)}; got {type(model).__name__}.")
    return check_finite_weights(model, type(model).__name__)


def _read(kind: Any, folder: Path, safe: bool) -> nn.Module:
    """Read a model of a class from a folder, with all its parameters."""
    try:
        loaded, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            weights_only=True,
            **({"use_safetensors": True} if safe else {}),
        )
    except Exception as error:  # whatever transformers raises for files of another kind
        raise ValueError(
            f"`{folder}` must hold a {kind.__name__}; got {first_line(error)}"
        ) from error
    missing = [key for name in ("missing_keys", "mismatched_keys") for key in report[name]]
    if missing:  # these would be random
        raise ValueError(
            f"the weights `{folder}` must be complete; got {len(missing)} missing parameters, "
            f"{sorted(map(str, missing))[:3]}."
        )
    return check_finite_weights(loaded, str(folder))
