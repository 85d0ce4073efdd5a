"""Load the parts of Stable Diffusion, and embed the empty prompt once.

The original repositories of Stable Diffusion 2 were deleted; if they are in your cache, pass their
names with HF_HUB_OFFLINE=1.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ovss_refine.registry import require
from ovss_refine.sources.device import DtypeLike, given_device, given_dtype
from ovss_refine_adapters.backbones.folders import (
    check_config,
    fetch,
    first_line,
    model_folder,
)
from ovss_refine_adapters.backbones.plain import plain
from ovss_refine_adapters.backbones.weights import check_finite_weights, check_unset
from ovss_refine_adapters.text import cached

INSTEAD = "a folder with the subfolders vae, unet, scheduler, text_encoder and tokenizer"
PARTS = ("vae", "unet", "scheduler", "text_encoder", "tokenizer")
KINDS = {"vae": "AutoencoderKL", "unet": "UNet2DConditionModel"}
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
WEIGHTS = "diffusion_pytorch_model.safetensors"
MODEL_FILES = (
    "scheduler/scheduler_config.json",
    *(f"{part}/{name}" for part in KINDS for name in ("config.json", WEIGHTS)),
)
TEXT_FILES = (
    *("text_encoder/config.json", "text_encoder/model.safetensors"),
    *("tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The parts of Stable Diffusion that are used.

    Attributes:
        vae: an `AutoencoderKL` of diffusers.
        unet: a `UNet2DConditionModel` of diffusers.
        scheduler: of diffusers, with `add_noise`; has the number of time steps.
        prompt: [1, tokens, channels] embedding of the empty prompt.
    """

    vae: Any
    unet: Any
    scheduler: Any
    prompt: Tensor


def load_parts(
    model: str | Path | Parts,
    *,
    revision: str | None,
    variant: str | None,
    device: str | torch.device | None,
    dtype: DtypeLike,
    cache_dir: str | Path | Literal["default"] | None,
) -> Parts:
    """Load vae, UNet, scheduler and the empty prompt; ready parts are unwrapped.

    Arguments and exceptions are those of `StableDiffusionAttention`.
    """
    options = {"revision": revision, "variant": variant, "device": device, "dtype": dtype}
    if isinstance(model, Parts):
        check_unset(options, "ready parts")
        vae, unet = plain(model.vae), plain(model.unet)
        for ready in (vae, unet):
            check_finite_weights(ready, type(ready).__name__)
        return replace(model, vae=vae, unet=unet)
    device = given_device(device)
    local = model_folder(Path(model) if Path(model).is_dir() else model, PARTS)
    suffix = ".safetensors" if variant is None else f".{variant}.safetensors"
    folder = local or _fetch(str(model), revision, MODEL_FILES, suffix)
    for part, kind in KINDS.items():
        _check_class(folder, f"{part}/config.json", "_class_name", [kind])
    vae, unet, scheduler = _load(folder, variant, device, given_dtype(dtype, device))

    def embed() -> Tensor:
        whole = local or _fetch(str(model), revision, TEXT_FILES, suffix)
        return _embed_empty_prompt(whole, variant)

    name = str(local or model)
    prompt = cached(cache_dir, lambda: f"prompt-{_prompt_digest(name, revision)}", embed)
    return Parts(vae, unet, scheduler, prompt)


def _fetch(repository: str, revision: str | None, files: Sequence[str], suffix: str) -> Path:
    """Return the checked folder of some files of a hub repository."""
    return fetch(
        repository,
        [file.replace(".safetensors", suffix) for file in files],
        revision=revision,
        parts=PARTS,
        argument="model",
        instead=INSTEAD,
    )


def _check_class(folder: Path, name: str, key: str, known: Sequence[str]) -> None:
    """Raise ValueError unless a configuration names a class that is loaded here."""
    found = check_config(folder, name, key)
    if found not in known:
        raise ValueError(
            f"`{folder / name.partition('/')[0]}` must hold {' or '.join(known)}; got {found!r}."
        )


@contextmanager
def _load_errors(folder: Path) -> Iterator[None]:
    """Report in one sentence what a folder lacks; each file format has its own errors."""
    try:
        yield
    except Exception as error:
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(f"`{folder}` must be {INSTEAD}; {first_line(error)}") from error


def _load(
    folder: Path, variant: str | None, device: torch.device | None, dtype: torch.dtype | None
) -> tuple[nn.Module, nn.Module, Any]:
    """Load vae, UNet and scheduler."""
    diffusers = require("diffusers", "models")

    def load(part: str) -> nn.Module:
        with _load_errors(folder):
            model, report = getattr(diffusers, KINDS[part]).from_pretrained(
                folder,
                subfolder=part,
                variant=variant,
                torch_dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
            )
        _check_complete(f"{folder}, {part}", report)
        loaded = check_finite_weights(model, f"{folder}, {part}")
        return loaded.to(device=device).eval()

    with _load_errors(folder):
        scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    return load("vae"), load("unet"), scheduler


def _check_complete(what: str, report: dict[str, Any]) -> None:
    """Raise ValueError if parameters were left random."""
    missing = [key for name in ("missing_keys", "mismatched_keys") for key in report[name]]
    if missing:
        raise ValueError(
            f"the weights `{what}` must be complete; got {len(missing)} missing parameters, "
            f"{sorted(map(str, missing))[:3]}."
        )


def _embed_empty_prompt(folder: Path, variant: str | None) -> Tensor:
    """Run the model's own text encoder on the empty prompt; it is freed afterwards."""
    transformers = require("transformers", "models")
    # If a part is missing, transformers makes one of its own.
    check_config(folder, "text_encoder/config.json", "hidden_size")
    _check_class(folder, "tokenizer/tokenizer_config.json", "tokenizer_class", TOKENIZERS)
    with _load_errors(folder):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(
            folder, subfolder="tokenizer", trust_remote_code=False
        )
        encoder, report = transformers.CLIPTextModel.from_pretrained(
            folder,
            subfolder="text_encoder",
            variant=variant,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
    _check_complete(f"{folder}, text_encoder", report)
    check_finite_weights(encoder, f"{folder}, text_encoder")
    if len(tokenizer) != encoder.config.vocab_size:
        raise ValueError(
            f"`{folder}/tokenizer` must have the {encoder.config.vocab_size} tokens of the text "
            f"encoder; got {len(tokenizer)}."
        )
    tokens = tokenizer(
        "", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        embedded: Tensor = encoder.eval()(tokens)[0]
    return embedded.contiguous()


def _prompt_digest(source: str, revision: str | None) -> str:
    """Hash everything that the embedding depends on."""
    key = [source, str(revision)]
    for part in ("text_encoder", "tokenizer"):
        inside = Path(source) / part
        for path in sorted(inside.iterdir()) if inside.is_dir() else ():
            facts = path.stat()
            key += [str(path.resolve()), str(facts.st_size), str(facts.st_mtime_ns)]
    return hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]
