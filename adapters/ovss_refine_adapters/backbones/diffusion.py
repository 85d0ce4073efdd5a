"""Load the parts of Stable Diffusion, and embed the empty prompt once.

The original repositories of Stable Diffusion 2 were deleted; if they are in your cache, pass their
names with HF_HUB_OFFLINE=1.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ovss_refine.registry import require
from ovss_refine_adapters.backbones.plain import plain
from ovss_refine_adapters.backbones.weights import check_config, check_unset, from_hub, local_folder
from ovss_refine_adapters.text import cached

INSTEAD = "a folder with the subfolders vae, unet, scheduler, text_encoder and tokenizer"


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
    dtype: torch.dtype | None,
    cache_dir: str | Path | Literal["default"] | None,
) -> Parts:
    """Load vae, UNet, scheduler and the empty prompt; ready parts are unwrapped.

    Arguments and exceptions are those of `StableDiffusionAttention`.
    """
    options = {"revision": revision, "variant": variant, "device": device, "dtype": dtype}
    if isinstance(model, Parts):
        check_unset(options, "ready parts")
        return replace(model, vae=plain(model.vae), unet=plain(model.unet))
    folder = local_folder(model)
    source = str(model) if folder is None else str(folder)
    if folder is not None:
        for part, kind in (("vae", "AutoencoderKL"), ("unet", "UNet2DConditionModel")):
            found = check_config(folder, f"{part}/config.json", "_class_name")
            if found != kind:
                raise ValueError(f"`{folder / part}` must hold {kind}; got {found!r}.")
    vae, unet, scheduler = _load(source, options)
    prompt = cached(
        cache_dir,
        lambda: f"prompt-{_prompt_digest(source, revision)}",
        lambda: _embed_empty_prompt(source, revision, variant),
    )
    return Parts(vae, unet, scheduler, prompt)


@contextmanager
def _load_errors(source: str) -> Iterator[None]:
    """Report in one sentence what a folder lacks or the hub does not provide."""
    if not Path(source).is_dir():
        with from_hub(source, argument="model", instead=INSTEAD):
            yield
        return
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(f"`{source}` must be {INSTEAD}; {reason}") from error


def _load(source: str, options: dict[str, Any]) -> tuple[nn.Module, nn.Module, Any]:
    """Load vae, UNet and scheduler."""
    diffusers = require("diffusers", "models")
    revision, variant = options["revision"], options["variant"]

    def load(kind: str, part: str) -> nn.Module:
        model, report = getattr(diffusers, kind).from_pretrained(
            source,
            subfolder=part,
            revision=revision,
            variant=variant,
            torch_dtype=options["dtype"],
            use_safetensors=True,
            output_loading_info=True,
        )
        _check_complete(f"{source}, {part}", report)
        loaded: nn.Module = model.to(device=options["device"]).eval()
        return loaded

    with _load_errors(source):
        scheduler = diffusers.DDPMScheduler.from_pretrained(
            source, subfolder="scheduler", revision=revision
        )
        return load("AutoencoderKL", "vae"), load("UNet2DConditionModel", "unet"), scheduler


def _check_complete(what: str, report: dict[str, Any]) -> None:
    """Raise ValueError if parameters were left random."""
    missing = [key for name in ("missing_keys", "mismatched_keys") for key in report[name]]
    if missing:
        raise ValueError(
            f"the weights `{what}` must be complete; got {len(missing)} missing parameters, "
            f"{sorted(map(str, missing))[:3]}."
        )


def _embed_empty_prompt(source: str, revision: str | None, variant: str | None) -> Tensor:
    """Run the model's own text encoder on the empty prompt; it is freed afterwards."""
    transformers = require("transformers", "models")
    if Path(source).is_dir():  # if a part is missing, transformers makes one of its own
        check_config(Path(source), "text_encoder/config.json", "hidden_size")
        check_config(Path(source), "tokenizer/tokenizer_config.json", "tokenizer_class")
    with _load_errors(source):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(
            source, subfolder="tokenizer", revision=revision
        )
        encoder, report = transformers.CLIPTextModel.from_pretrained(
            source,
            subfolder="text_encoder",
            revision=revision,
            variant=variant,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    _check_complete(f"{source}, text_encoder", report)
    if len(tokenizer) != encoder.config.vocab_size:
        raise ValueError(
            f"`{source}/tokenizer` must have the {encoder.config.vocab_size} tokens of the text "
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
