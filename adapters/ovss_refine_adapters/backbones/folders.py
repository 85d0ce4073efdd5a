"""Folders of models: found or fetched, and read as data before a library sees them.

open_clip, transformers, timm and diffusers hand entries of a folder's JSON files on to each other,
and some entries make them import what lies beside the weights, or ask whether to. Every such file
is therefore checked first, by the same rules for all four.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ovss_refine.folders.files import MAX_JSON
from ovss_refine.folders.paths import local_path
from ovss_refine.registry import MissingWeightsError, require
from ovss_refine.sources.hub import without_waiting

# Entries that make a library import other code, without separators and case: its own switches, and
# options that it hands on as they are. Longer names count too: some have a private copy.
CODE_KEYS = {
    *("automap", "trustremotecode", "coderevision", "customgenerate"),  # transformers
    *("attnimplementation", "expertsimplementation", "kernelconfig", "usekernels"),
    *("custompipeline", "custompipelines", "quantizationconfig"),  # diffusers
    "tokenizerkwargs",  # open_clip
    "basemodelnameorpath",  # peft: the model to load in place of the folder's own
}
# open_clip's entries for towers and tokenizers of transformers; not timm's "hf_hub_id".
TRANSFORMERS_KEY = re.compile(r"[\W_]*hf[\W_]+(?!hub)", re.IGNORECASE)
# Names of classes: one word, so that no module is named.
CLASS_KEYS = {"classname", "tokenizerclass"}
ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")
# The modules that a pipeline's list of its parts may name.
PIPELINE_FILES = ("model_index.json", "modular_model_index.json")
PIPELINE_MODULES = {"diffusers", "transformers", "stable_diffusion"}
# Files whose keys are words of a language, and their values numbers.
VOCABULARIES = {"vocab.json", "tokenizer.json", "added_tokens.json"}
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


def model_folder(model: str | Path, parts: Sequence[str] = ()) -> Path | None:
    """Return `model` as a checked folder, or None if it is a name.

    Args:
        model: a path, also after "local-dir:", or a name. A relative path of one part is one only
            if written as a path.
        parts: subfolders that will be loaded too.

    Raises:
        FileNotFoundError: if something written as a folder does not exist.
        ValueError: on a URL, or as `check_folder` does.
    """
    text = str(model)
    path = local_path("model", text.removeprefix("local-dir:")).expanduser()
    meant = isinstance(model, Path) or text.startswith(("local-dir:", "/", "./", "../", "~"))
    if path.is_dir() and (meant or len(path.parts) > 1):
        check_folder(path, parts)
        return path
    if meant:
        raise FileNotFoundError(f"`model` must be an existing folder; got `{path}`.")
    return None


@contextmanager
def from_hub(repository: str, *, argument: str, instead: str) -> Iterator[None]:
    """Turn any error of a failed download into one sentence, without waiting for a silent hub.

    Args:
        repository: "owner/name" of the weights.
        argument: the option that takes a local copy.
        instead: what to pass to it.

    Raises:
        MissingWeightsError: if the body raises an OSError, as all errors of the hub are.
    """
    constants: Any = require("huggingface_hub.constants", "models")
    with without_waiting():
        try:
            cached = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
            if constants.HF_HUB_OFFLINE and not cached.is_dir():
                raise FileNotFoundError(f"`{cached}` does not exist.")
            yield
        except OSError as error:
            offline = " (not asked: HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
            raise MissingWeightsError(
                f"the weights `{repository}` must be available; got nothing from the cache "
                f"`{constants.HF_HUB_CACHE}` or from {constants.ENDPOINT}",
                offline,
                f"run `hf download {repository}` on a machine with a network, or pass "
                f"`{argument}`, {instead}",
            ) from error


def fetch(
    repository: str,
    files: Sequence[str],
    either: Sequence[str] = (),
    *,
    argument: str,
    instead: str,
    revision: str | None = None,
    parts: Sequence[str] = (),
) -> Path:
    """Return the checked folder of a hub repository's files, downloaded unless they are cached.

    All files are of one commit, and the libraries are given the folder, so that what they load is
    what was checked.

    Args:
        repository: "owner/name", or "owner/name@revision".
        files: names of files that it must have.
        either: names of which it must have one; the first that it has is downloaded.
        argument: as in `from_hub`.
        instead: as in `from_hub`.
        revision: a branch, tag or commit; None: the latest.
        parts: as in `model_folder`.

    Raises:
        MissingWeightsError: if a file is unavailable.
        ValueError: if `repository` is no such name, or as `check_folder` does.
    """
    repository, _, named = repository.partition("@")
    if not REPOSITORY.fullmatch(repository):
        raise ValueError(f"`model` must be 'owner/name' on the hub; got {repository!r}.")
    download = require("huggingface_hub", "models").snapshot_download
    with from_hub(repository, argument=argument, instead=instead):
        for name in either or [""]:
            wanted = [*files, *filter(None, [name])]
            folder = Path(
                download(repository, revision=revision or named or None, allow_patterns=wanted)
            )
            missing = [file for file in wanted if not (folder / file).is_file()]
            if not missing:
                break
        else:
            raise FileNotFoundError(f"`{repository}` has no {missing}.")
    check_folder(folder, parts)
    return folder


def check_folder(folder: Path, parts: Sequence[str] = ()) -> None:
    """Check all JSON files of a model's folder, and of its subfolders `parts`.

    Raises:
        ValueError: if one is damaged, repeats a key, or names code or a model from elsewhere.
    """
    for place in (folder, *(folder / part for part in parts)):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if path.suffix.lower() == ".json" and path.is_file():
                _check_file(path)


def check_config(folder: Path, name: str, key: str) -> object:
    """Return the entry `key` of the JSON file `name` in `folder`, or raise."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"`{folder}` must hold `{name}`; got {listing(folder)}.")
    config = _read(path)
    if not isinstance(config, dict) or key not in config:
        found = sorted(config)[:8] if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"`{path}` must have an entry `{key}`; got {found}.")
    return config[key]


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def listing(folder: Path) -> list[str]:
    """Name the first files of a folder."""
    return sorted(path.name for path in folder.iterdir())[:8]


def _read(path: Path) -> object:
    size = path.stat().st_size
    if size > MAX_JSON:
        raise ValueError(f"`{path}` must have at most {MAX_JSON:,} bytes of JSON; got {size:,}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` must be a JSON file; got {error}.") from error


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make an object of its entries; parsers differ on which one of a repeated key they take."""
    config = dict(pairs)
    if len(config) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return config


def _check_file(path: Path) -> None:
    config = _read(path)
    if path.name.lower() in PIPELINE_FILES and isinstance(config, dict):
        for name, part in config.items():
            if isinstance(part, list) and part and part[0] not in {None, *PIPELINE_MODULES}:
                raise _refusal(path, f"{name!r}: {part}")
    words = path.name.lower() in VOCABULARIES
    for key, value in _entries(config):
        if not (words and isinstance(value, int)) and _names_code(key, value):
            raise _refusal(path, repr(key))


def _entries(config: object) -> Iterator[tuple[str, object]]:
    """Yield all entries of all objects in a parsed file."""
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from value.items()
            pending += value.values()
        elif isinstance(value, list):
            yield from (("", item) for item in value)
            pending += value


def _names_code(key: str, value: object) -> bool:
    if value is None or value is False:
        return False
    word = re.sub(r"[\W_]", "", key).casefold()
    if word.startswith(tuple(CODE_KEYS)) or TRANSFORMERS_KEY.match(key):
        return True
    if word in CLASS_KEYS:
        return not (isinstance(value, str) and value.isidentifier())
    return isinstance(value, str) and value.strip().casefold().startswith(ELSEWHERE)


def _refusal(path: Path, entry: str) -> ValueError:
    return ValueError(
        f"`{path}` must describe a model of the library itself; got {entry}, which may run code "
        "that came with the weights. Load the model yourself and pass it."
    )
