"""Text features of class names: synonyms, templates, CLIP's text tower, a cache on disk.

Every prompt (a class has one, or several synonyms) is inserted into every template; the unit
vectors of the resulting texts are averaged and the mean is normalised again, as A. Radford et al.,
"Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 3.1.4,
do for classes. Synonyms stay separate: which one counts is decided per pixel.

Axes: M classes, K prompts, S templates, D channels of the joint image-text space.
"""

import hashlib
import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine.checks import check_finite, check_float, check_shape
from ovss_refine.folders.arrays import read_array
from ovss_refine.folders.files import clear_leftovers, make_folder, write_whole
from ovss_refine.folders.paths import local_path
from ovss_refine.labels import Labels, LabelsLike, as_labels, read_labels
from ovss_refine.registry import require
from ovss_refine_adapters.backbones.open_clip import Clip, Tokenizer
from ovss_refine_adapters.backbones.plain import undisturbed

# Texts per pass through the text tower.
CHUNK = 256
SINGLE = ("a photo of a {}.",)
# What CLIP Surgery adds to OpenAI's 80.
SCENES = (
    *(f"there is {word} {{}} in the scene." for word in ("a", "the")),
    *(f"this is {word} {{}} in the scene." for word in ("a", "the", "one")),
)

Templates = Literal["imagenet", "imagenet-scene", "single"] | Sequence[str]
# The name under which `read_labels` was documented here.
read_classes = read_labels


def as_classes(classes: LabelsLike) -> Labels:
    """Read the `classes` of a source like `as_labels`, except that a string is a file's path."""
    if not isinstance(classes, str):
        return as_labels(classes)
    if not local_path("classes", classes).is_file():
        raise FileNotFoundError(
            f"`classes` must be a list of names or a file of them; `{classes}` does not exist. For "
            "a single class, pass a list of one."
        )
    return read_labels(classes)


def as_templates(templates: Templates) -> tuple[str, ...]:
    """Return templates with "{}" where the name goes.

    They are "imagenet" for OpenAI's 80, "imagenet-scene" for these and CLIP Surgery's five,
    "single" for "a photo of a {}.", or a list.
    """
    if templates in ("imagenet", "imagenet-scene"):
        known = require("open_clip", "models").OPENAI_IMAGENET_TEMPLATES
        more = SCENES if templates == "imagenet-scene" else ()
        return (*(template("{}") for template in known), *more)
    if templates == "single":
        return SINGLE
    if isinstance(templates, str) or not templates:
        raise ValueError(
            f"`templates` must be 'imagenet', 'imagenet-scene', 'single' or a list of strings; got "
            f"{templates!r}."
        )
    if wrong := [x for x in templates if x.count("{}") != 1]:
        raise ValueError(f"`templates` must have exactly one '{{}}' each; got {wrong[0]!r}.")
    return tuple(templates)


def cached(
    cache_dir: str | Path | Literal["default"] | None,
    name: Callable[[], str],
    compute: Callable[[], Tensor],
) -> Tensor:
    """Return an embedding from the cache, or compute and cache it.

    Args:
        cache_dir: its folder; "default": `default_cache()`; None: always compute.
        name: returns the name of the file, with a digest of all that the embedding depends on.
        compute: returns the embedding; called if it is not cached.
    """
    if cache_dir is None:
        return compute()
    folder = default_cache() if cache_dir == "default" else local_path("cache_dir", cache_dir)
    path = folder / f"{name()}.npy"
    if path.is_file():
        try:
            return torch.from_numpy(read_array(path))
        except ValueError as error:
            warnings.warn(f"`{path}` is damaged ({error}); computed again.", stacklevel=3)
    embedding = compute()
    _write(path, embedding.cpu().numpy())
    return embedding


def default_cache() -> Path:
    """Return the cache folder: ovss_refine in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ovss_refine"


def text_features(
    clip: Clip,
    classes: Labels,
    templates: Templates = "imagenet",
    cache_dir: str | Path | Literal["default"] | None = None,
    *,
    unit: bool = True,
) -> Tensor:
    """Embed the prompts, as unit vectors by default.

    Args:
        clip: the model and its tokenizer.
        classes: whose prompts to embed.
        templates: see `as_templates`.
        cache_dir: as in `cached`. The file's name is a digest of the text tower's weights and
            modules and of all token ids, so that it is reused only for the same model, templates
            and names.
        unit: average unit vectors over the templates and return unit vectors; False: average the
            text tower's own vectors.

    Returns:
        [K, D] float32 rows on the model's device.

    Raises:
        ValueError: on wrong templates, or if a prompt in one has more tokens than the model takes.
    """
    texts = [t.replace("{}", p) for p in classes.all_prompts for t in as_templates(templates)]
    tokens = clip.tokenizer(texts)  # [K * S, context]
    _check_length(clip.tokenizer, texts, tokens, classes)
    device = next(clip.model.parameters()).device
    K = len(classes.all_prompts)
    return cached(
        cache_dir,
        lambda: f"text-{'' if unit else 'raw-'}{_digest(clip.model, tokens, K)}",
        lambda: _embed(clip.model, tokens.to(device), K, unit),
    ).to(device)


def raw_text_features(
    clip: Clip, classes: Labels, how: Any, axes: str, *, background: bool
) -> Tensor:
    """Return the features that were given, or embed the prompts, without making them unit vectors.

    Args:
        clip: the model and its tokenizer.
        classes: whose prompts to embed.
        how: has `text_features`, None or [K, D]; `templates` and `cache_dir` of `text_features`.
        axes: of what was given, for messages: "K D".
        background: whether class 0 has no features: its row is left out.

    Returns:
        [K, D] float32, or [K - 1, D].

    Raises:
        TypeError, ValueError: on features of another type or shape, or not finite.
    """
    given = how.text_features
    if given is None:
        given = text_features(clip, classes, how.templates, how.cache_dir, unit=False)
    check_shape("text_features", given, axes, K=len(classes.all_prompts))
    check_float("text_features", given)
    check_finite("text_features", given)
    rows: Tensor = given.detach().float()[1 if background else 0 :]
    return rows


def _check_length(
    tokenizer: Tokenizer, texts: Sequence[str], tokens: Tensor, classes: Labels
) -> None:
    """Raise if a text was truncated to the model's context, if the tokenizer takes another length.

    open_clip's does; a custom tokenizer must check this itself.
    """
    context = tokens.shape[1]
    # A token is at least one byte, apart from what is cleaned up before.
    long = [i for i, text in enumerate(texts) if len(text.encode()) > context // 2]
    if not long or "context_length" not in inspect.signature(tokenizer).parameters:
        return
    longer: Any = tokenizer
    whole = longer([texts[i] for i in long], context_length=context + 1)
    for i, row in zip(long, whole, strict=True):
        if not torch.equal(row[:context], tokens[i]):
            prompt = classes.all_prompts[i * len(classes.all_prompts) // len(texts)]
            raise ValueError(
                f"`classes` must fit in the model's {context} tokens in every template; got "
                f"{prompt!r}. Shorten it."
            )


def _embed(model: Any, tokens: Tensor, K: int, unit: bool) -> Tensor:
    """Embed [K * S, context] tokens and average over the S templates: [K, D]."""
    with undisturbed(model):
        chunks = [model.encode_text(x).float() for x in torch.split(tokens, CHUNK)]
    rows = torch.cat(chunks).reshape(K, len(tokens) // K, -1)  # [K, S, D]
    if not unit:
        return rows.mean(dim=1)
    return F.normalize(F.normalize(rows, dim=-1).mean(dim=1), dim=-1)


def _digest(model: nn.Module, tokens: Tensor, K: int) -> str:
    """Hash everything that the vectors depend on."""
    digest = hashlib.sha256(f"{K} {tuple(tokens.shape)}".encode())
    digest.update(tokens.cpu().contiguous().numpy().tobytes())
    # The weights tell neither the activations between them nor the number of heads.
    for name, module in model.named_modules():
        if not name.startswith("visual") and name:
            heads = getattr(module, "num_heads", "")
            digest.update(f"{name} {type(module).__name__} {heads} ".encode())
    for name, weight in model.state_dict().items():
        if not name.startswith("visual."):
            held = weight.detach().cpu().contiguous()
            digest.update(f"{name} {held.dtype} ".encode())
            digest.update(held.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _write(path: Path, features: Any) -> None:
    try:
        make_folder(path.parent)
        clear_leftovers(path.parent)
        write_whole(path, lambda file: np.save(file, features, allow_pickle=False))
    except OSError as error:
        warnings.warn(
            f"the embedding of text was not cached in `{path.parent}`: {error}", stacklevel=4
        )
