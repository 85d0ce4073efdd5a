"""Load an open_clip model by name and tag, from a folder or a file, or take a ready one.

open_clip only warns if a name and its weights disagree on the activation, and keeps random weights
if it finds no others. Here both raise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ovss_refine.folders.paths import local_path
from ovss_refine.registry import MissingWeightsError, require
from ovss_refine.sources.device import DtypeLike, given_device, given_dtype
from ovss_refine_adapters.backbones.folders import (
    check_config,
    fetch,
    first_line,
    from_hub,
    model_folder,
)
from ovss_refine_adapters.backbones.plain import plain
from ovss_refine_adapters.backbones.weights import (
    check_finite_weights,
    check_unset,
    did_you_mean,
    pixel_statistics,
)

# OpenAI's weights, which all published training-free methods use.
PRESETS = {
    "B/16": ("ViT-B-16-quickgelu", "openai"),
    "L/14": ("ViT-L-14-quickgelu", "openai"),
}
LOCAL, HUB = "local-dir:", "hf-hub:"
CONFIG = "open_clip_config.json"
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pth")
HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
ARGUMENT = "model='local-dir:PATH'"
INSTEAD = f"a folder with {CONFIG} and the weights"

# CLIP's, for models that do not say.
CONTEXT, VOCABULARY = 77, 49408

Tokenizer = Callable[[list[str]], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """An open_clip model, its tokenizer and its pixel statistics.

    Attributes:
        model: with `visual` and `encode_text`.
        tokenizer: texts to [n, context] int64 token ids.
        mean: mean of the training pixels, RGB in [0, 1].
        std: standard deviation of the same pixels.
    """

    model: nn.Module
    tokenizer: Tokenizer
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_clip(
    model: str | Path | nn.Module = "B/16",
    pretrained: str | Path | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    device: str | torch.device | None = None,
    dtype: DtypeLike = None,
) -> Clip:
    """Load a model, or take a ready one.

    Args:
        model: "B/16" or "L/14" (OpenAI's weights), an open_clip name, "hf-hub:owner/name", a
            folder ("local-dir:PATH" or its path, with open_clip_config.json and the weights), or
            a ready model, whose device and mode are left alone.
        pretrained: for an open_clip name: a tag of its weights, or a file of tensors
            (.safetensors, or a state dict that `torch.load(weights_only=True)` reads). The
            activation (GELU or QuickGELU) is checked for a tag, not for a file: choose the name
            with "-quickgelu" for weights trained by OpenAI.
        tokenizer: for a ready model whose vocabulary is not CLIP's.
        device: device to load onto; None: the CPU.
        dtype: dtype that the image tower is converted to, as for `given_dtype`; None: unchanged.
            The text tower, which embeds a prompt once, keeps its own.

    Raises:
        ModuleNotFoundError, FileNotFoundError: if open_clip, a folder, a file or weights are
            missing.
        ValueError: on an unknown name or tag, an activation that differs from that of the
            weights, weights that do not fit, or a missing or superfluous `pretrained`.
    """
    library = require("open_clip", "models")
    if isinstance(model, nn.Module):
        check_unset({"pretrained": pretrained, "dtype": dtype}, "a ready model")
        model = plain(model)
        check_finite_weights(model, type(model).__name__)
        return _clip(library, model, tokenizer or _of_model(model))
    device = given_device(device)
    name = str(model)
    if name in PRESETS:
        name, tag = PRESETS[name]
        pretrained = pretrained or tag
    more: dict[str, Any] = {}
    if name in library.list_models():
        _check_weights(library, name, pretrained)
        more = _transformers_text(library, name)
    else:
        folder = _folder(library, model)
        name = f"{LOCAL}{folder}"
        check_unset({"pretrained": pretrained}, f"{name!r}, which has its own weights")
    loaded = _create(library, name, pretrained, **more)
    if (converted := given_dtype(dtype, device)) is not None:
        check_finite_weights(getattr(loaded, "visual", loaded).to(converted), name)
    loaded = loaded.to(device=device).eval()
    return _clip(library, loaded, tokenizer or _tokenizer(library, name, loaded))


def _clip(library: ModuleType, model: nn.Module, tokenizer: Tokenizer) -> Clip:
    pixels = getattr(getattr(model, "visual", None), "preprocess_cfg", None) or {}
    known = {"mean": library.OPENAI_DATASET_MEAN, "std": library.OPENAI_DATASET_STD}
    return Clip(model, tokenizer, *pixel_statistics(known | pixels))


def own_tokenizer(context: int, vocabulary: int) -> Tokenizer:
    """Return CLIP's tokenizer for texts of `context` tokens, or raise on another vocabulary."""
    tokenizer: Any = require("open_clip", "models").SimpleTokenizer(context_length=context)
    if vocabulary != tokenizer.vocab_size:
        raise ValueError(
            f"`tokenizer` must be given for a vocabulary of {vocabulary} tokens; CLIP's has "
            f"{tokenizer.vocab_size}."
        )
    own: Tokenizer = tokenizer
    return own


def _of_model(model: nn.Module) -> Tokenizer:
    """Return CLIP's tokenizer for a model, unless that has another vocabulary."""
    context = getattr(model, "context_length", CONTEXT)
    return own_tokenizer(context, getattr(model, "vocab_size", VOCABULARY))


def _tokenizer(library: ModuleType, name: str, model: nn.Module) -> Tokenizer:
    """Return the tokenizer of a loaded model: CLIP's, or one of a class that transformers has."""
    config = library.get_model_config(name)
    if name.startswith(LOCAL):
        return _of_model(model)
    repository = config["text_cfg"].get("hf_tokenizer_name")
    if not repository:
        known: Tokenizer = library.get_tokenizer(name)
        return known
    try:
        with from_hub(repository, argument="tokenizer", instead="a function of texts"):
            made: Tokenizer = library.get_tokenizer(name, trust_remote_code=False)
    except MissingWeightsError:
        raise
    except Exception as error:  # whatever transformers raises for files of another kind
        raise ValueError(
            f"`tokenizer` must be given for {name!r}; its own, `{repository}`, did not load as "
            f"data: {first_line(error)}"
        ) from error
    return made


def _transformers_text(library: ModuleType, name: str) -> dict[str, Any]:
    """Return the options by which a text tower of transformers is described by a checked file."""
    text = library.get_model_config(name)["text_cfg"]
    if "hf_model_name" not in text:
        return {}
    folder = fetch(text["hf_model_name"], ["config.json"], argument="model", instead="a model")
    described = {"hf_model_name": str(folder), "hf_model_pretrained": False}
    return {"text_cfg": text | described}


def _folder(library: ModuleType, model: str | Path) -> Path:
    """Return the folder of a model unknown to open_clip, fetched from the hub or local, or raise.

    Without weights, open_clip would keep random ones.
    """
    folder: Path | None
    if str(model).startswith(HUB):
        repository = str(model).removeprefix(HUB)
        folder = fetch(repository, [CONFIG], HUB_WEIGHTS, argument=ARGUMENT, instead=INSTEAD)
    else:
        folder = model_folder(Path(model) if Path(model).is_dir() else model)
    if folder is None:
        hint = did_you_mean(str(model), [*PRESETS, *library.list_models()])
        raise ValueError(f"`model` must be an open_clip name or a folder; got {model!r}.{hint}")
    check_config(folder, CONFIG, "model_cfg")
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES):
        raise FileNotFoundError(
            f"`model` must be {INSTEAD}; `{folder}` has no {' or '.join(WEIGHT_FILES)}."
        )
    return folder


def _check_weights(library: ModuleType, name: str, pretrained: str | Path | None) -> None:
    if pretrained is not None:
        local_path("pretrained", pretrained)
    tags = library.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(f"`pretrained` must be one of {tags} or a file for {name!r}; got None.")
    if Path(pretrained).is_file():
        if Path(pretrained).suffix in {".npz", ".npy"}:
            raise ValueError(
                "`pretrained` must be a .safetensors file or a state dict; got arrays of NumPy, "
                f"`{pretrained}`."
            )
        return
    wanted = library.get_pretrained_cfg(name, str(pretrained))
    if not wanted:
        if Path(pretrained).suffix:
            raise FileNotFoundError(f"`pretrained` must be an existing file; got `{pretrained}`.")
        raise ValueError(
            f"`pretrained` must be one of {tags} or a file for {name!r}; "
            f"got {pretrained!r}.{did_you_mean(str(pretrained), tags)}"
        )
    _check_activation(library, name, str(pretrained), wanted.get("quick_gelu", False))
    repository = "/".join(wanted["hf_hub"].split("/")[:2])  # a file's name may follow
    with from_hub(repository, argument="pretrained='PATH.safetensors'", instead="a weight file"):
        library.download_pretrained(wanted)


def _check_activation(library: ModuleType, name: str, tag: str, trained: bool) -> None:
    built = bool(library.get_model_config(name).get("quick_gelu", False))
    if built == trained:
        return
    stem = name.removesuffix("-quickgelu")
    other = f"{stem}-quickgelu" if trained else stem
    fix = f" Use {other!r}." if other in library.list_models() else ""
    raise ValueError(
        f"`model` must have the activation that its weights were trained with: {tag!r} has "
        f"{'QuickGELU' if trained else 'GELU'}; got {name!r}, which has "
        f"{'QuickGELU' if built else 'GELU'}.{fix}"
    )


def _create(
    library: ModuleType, name: str, pretrained: str | Path | None, **more: Any
) -> nn.Module:
    """Create a model on the CPU with finite weights."""
    weights = None if pretrained is None else str(pretrained)
    try:
        model: nn.Module = library.create_model(
            name, pretrained=weights, require_pretrained=True, weights_only=True, **more
        )
    except Exception as error:  # every format has its own errors for a damaged file
        raise ValueError(
            f"the weights `{weights or name}` must be tensors that fit the model `{name}`; "
            f"{first_line(error)}"
        ) from error
    return check_finite_weights(model, weights or name)
