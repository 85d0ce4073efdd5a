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

from ovss_refine.registry import require
from ovss_refine_adapters.backbones.plain import plain
from ovss_refine_adapters.backbones.weights import (
    check_config,
    check_no_code,
    check_unset,
    did_you_mean,
    from_hub,
    local_folder,
)

# OpenAI's weights, which all published training-free methods use.
PRESETS = {
    "B/16": ("ViT-B-16-quickgelu", "openai"),
    "L/14": ("ViT-L-14-quickgelu", "openai"),
}
LOCAL, HUB = "local-dir:", "hf-hub:"
CONFIG = "open_clip_config.json"
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pth")
INSTEAD = f"a folder with {CONFIG} and the weights"

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
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load_clip(
    model: str | Path | nn.Module = "B/16",
    pretrained: str | Path | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    device: str | torch.device | None = None,
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

    Raises:
        ModuleNotFoundError, FileNotFoundError: if open_clip, a folder, a file or weights are
            missing.
        ValueError: on an unknown name or tag, an activation that differs from that of the
            weights, weights that do not fit, or a missing or superfluous `pretrained`.
    """
    library = require("open_clip", "models")
    if isinstance(model, nn.Module):
        check_unset({"pretrained": pretrained}, "a ready model")
        model = plain(model)
        return _clip(library, model, tokenizer or _own_tokenizer(library, model))
    name = str(model)
    if name in PRESETS:
        name, tag = PRESETS[name]
        pretrained = pretrained or tag
    if name not in library.list_models() and not name.startswith(HUB):
        name = _folder(library, model)
    if name.startswith((LOCAL, HUB)):
        check_unset({"pretrained": pretrained}, f"{name!r}, which has its own weights")
        if name.startswith(HUB):
            repository = name.removeprefix(HUB)
            with from_hub(repository, argument="model='local-dir:PATH'", instead=INSTEAD):
                fetch = library.pretrained.download_pretrained_from_hf
                config = Path(fetch(repository, filename=CONFIG)).parent
                check_no_code(check_config(config, CONFIG, "model_cfg"), name)
                fetch(repository)  # the weights, whatever their name
    else:
        _check_weights(library, name, pretrained)
    loaded = _create(library, name, pretrained, device)
    return _clip(library, loaded, tokenizer or library.get_tokenizer(name))


def _clip(library: ModuleType, model: nn.Module, tokenizer: Tokenizer) -> Clip:
    pixels = getattr(getattr(model, "visual", None), "preprocess_cfg", None) or {}
    mean = pixels.get("mean", library.OPENAI_DATASET_MEAN)
    std = pixels.get("std", library.OPENAI_DATASET_STD)
    return Clip(model, tokenizer, tuple(mean), tuple(std))


def _own_tokenizer(library: ModuleType, model: nn.Module) -> Tokenizer:
    tokenizer: Any = library.SimpleTokenizer(context_length=getattr(model, "context_length", 77))
    vocabulary = getattr(model, "vocab_size", tokenizer.vocab_size)
    if vocabulary != tokenizer.vocab_size:
        raise ValueError(
            f"`tokenizer` must be given for a vocabulary of {vocabulary} tokens; CLIP's has "
            f"{tokenizer.vocab_size}."
        )
    own: Tokenizer = tokenizer
    return own


def _folder(library: ModuleType, model: str | Path) -> str:
    """Treat a name unknown to open_clip as a folder, or raise."""
    folder = Path(model) if Path(model).is_dir() else local_folder(model)
    if folder is None:
        hint = did_you_mean(str(model), [*PRESETS, *library.list_models()])
        raise ValueError(f"`model` must be an open_clip name or a folder; got {model!r}.{hint}")
    check_no_code(check_config(folder, CONFIG, "model_cfg"), folder / CONFIG)
    # Without weights, open_clip would keep random ones.
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES):
        raise FileNotFoundError(
            f"`model` must be {INSTEAD}; `{folder}` has no {' or '.join(WEIGHT_FILES)}."
        )
    return f"{LOCAL}{folder}"


def _check_weights(library: ModuleType, name: str, pretrained: str | Path | None) -> None:
    tags = library.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(f"`pretrained` must be one of {tags} or a file for {name!r}; got None.")
    if Path(pretrained).is_file():
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
    library: ModuleType, name: str, pretrained: str | Path | None, device: str | torch.device | None
) -> nn.Module:
    weights = None if pretrained is None else str(pretrained)
    try:
        model: nn.Module = library.create_model(
            name,
            pretrained=weights,
            device=device or "cpu",
            require_pretrained=True,
            weights_only=True,
        )
    except Exception as error:  # every format has its own errors for a damaged file
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"the weights `{weights or name}` must be tensors that fit the model `{name}`; {first}"
        ) from error
    return model.eval()
