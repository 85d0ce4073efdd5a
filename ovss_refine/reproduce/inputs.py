"""The inputs of `reproduce`: data sets in folders, weights in the hub's cache or in a folder.

Both are found without loading or downloading anything, so that what is missing is known at once.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ovss_refine.evaluation.dataset import DataSet, load_dataset
from ovss_refine.evaluation.inputs import AttentionFrom, LogitsFrom, NoAttention
from ovss_refine.evaluation.request import Chosen
from ovss_refine.labels import Labels
from ovss_refine.registry import load_attention, require
from ovss_refine.reproduce.tables import PaperRow, load_tables
from ovss_refine.sources.device import Placement

LIBRARIES = ("open_clip", "timm", "diffusers", "transformers", "safetensors", "scipy")
# Bytes at both ends of a file of weights that identify it: its header, and its last tensors.
END = 1 << 20
NO_ATTENTION = "none"


@dataclass(frozen=True, slots=True)
class Found:
    """A data set, and where it was found."""

    dataset: DataSet
    root: Path | None = None  # where it is; None: not found
    images: int = 0  # number of its images
    digest: str = ""  # hash of the names and sizes of its files
    lack: str = ""  # what is missing; "": nothing


def find_data(name: str, data: Path | None, roots: Mapping[str, Path]) -> Found:
    """Find a data set.

    Args:
        name: of the data set.
        data: folder with a folder for each data set, or None.
        roots: folders of single data sets, by name; they replace `data`.
    """
    dataset = load_dataset(name)
    tried = [roots[name]] if name in roots else _folders(name, data)
    reasons: dict[str, None] = {}  # why incomplete data cannot be used
    for root in tried:
        try:
            items = dataset.items(root)
        except FileNotFoundError as err:
            if any((root / part / dataset.images).is_dir() for part in dataset.inside):
                reasons[str(err)] = None  # there are images
            continue
        except ValueError as err:
            return Found(dataset, lack=f"data set `{name}`: {err}")
        if any(item.mask.is_file() for item in items):
            return Found(dataset, root, len(items), dataset.fingerprint(items))
        none = f"`{items[0].mask.parent}` must have a mask for some image; got none."
        reasons[dataset.without_masks(dataset.locate(root)) or none] = None
    looked = f"looked in {', '.join(f'`{path}`' for path in tried)}" if tried else "no folder given"
    looked += "".join(f"; {reason.removesuffix('.')}" for reason in reasons)
    parts = filter(None, (dataset.images, dataset.masks, dataset.split))
    needed = ", ".join(f"`{part}`" for part in parts)
    return Found(
        dataset,
        lack=f"data set `{name}` ({dataset.title}; {needed}): {looked}; pass --data DIR or "
        f"--root {name}=PATH",
    )


def _folders(name: str, data: Path | None) -> list[Path]:
    if data is None:
        return []
    folders = [data / part for part in load_tables().folders[name]]
    return [*(folder for folder in folders if folder.is_dir()), data]


class WeightsFolder:
    """The available weights, in a folder or the hub's cache, and the sources made with them.

    Args:
        models_dir: folder with a folder for each of the weights, preferred to the cache; or None.
    """

    def __init__(self, models_dir: Path | None = None) -> None:
        """Keep the folder."""
        self.models_dir = models_dir
        # The sources made last: consecutive data sets use the same ones.
        self._kept: dict[str, tuple[object, Any]] = {}
        self._digests: dict[str, str] = {}

    def lack(self, name: str) -> str:
        """Describe what is missing of some weights; "": nothing."""
        weights = load_tables().weights[name]
        if self.place(name) is not None:
            return ""
        looked = [] if self.models_dir is None else [f"the folder `{self.models_dir / name}`"]
        looked.append(f"the hub's cache `{_cache()}`")
        files = ", ".join(f"`{pattern.replace('|', '` or `')}`" for pattern in weights.in_folder)
        load = f"import ovss_refine as o; o.load_attention('{name}')"
        return (
            f"weights `{name}` ({weights.repository}, {weights.size}; {files}): not in "
            f"{' nor in '.join(looked)}; " + (weights.get or f'`python -c "{load}"` downloads them')
        )

    def place(self, name: str) -> Path | None:
        """Find the folder of some weights, under `models_dir` or in the hub's cache."""
        own, weights = self.own(name), load_tables().weights[name]
        if own is not None:
            return own
        repository = _cache() / f"models--{weights.repository.replace('/', '--')}"
        newest = repository / "refs" / "main"
        if not newest.is_file():
            return None
        snapshot = repository / "snapshots" / newest.read_text(encoding="utf-8").strip()
        return snapshot if _holds(snapshot, weights.in_cache) else None

    def own(self, name: str) -> Path | None:
        """Find the folder of some weights under `models_dir`."""
        folder = self.models_dir and self.models_dir / name
        return folder if folder and _holds(folder, load_tables().weights[name].in_folder) else None

    def given(self, name: str) -> str | None:
        """Return what a source is given to load some weights; None: it loads them by default."""
        weights, folder = load_tables().weights[name], self.own(name)
        if weights.file:
            return str((self.place(name) or Path()) / weights.file)
        return weights.preset if folder is None else f"local-dir:{folder}"

    def digest(self, name: str) -> str:
        """Hash names, sizes and both ends of the files of available weights, once."""
        if name not in self._digests:
            place, weights = self.place(name), load_tables().weights[name]
            assert place is not None  # noqa: S101 - callers have checked that nothing is missing
            patterns = weights.in_folder if self.own(name) else weights.in_cache
            digest = hashlib.sha256()
            for path in _files(place, patterns):
                size = path.stat().st_size
                digest.update(f"{path.relative_to(place)} {size}\n".encode())
                with path.open("rb") as file:
                    digest.update(file.read(END))
                    file.seek(max(0, size - END))
                    digest.update(file.read(END))
            self._digests[name] = digest.hexdigest()
        return self._digests[name]

    def keep(self, kind: str, key: object, make: Callable[[], Any]) -> Any:
        """Return the kept source of a kind if its key is the same; otherwise make and keep one."""
        if kind not in self._kept or self._kept[kind][0] != key:
            self._kept.pop(kind, None)  # first: memory may not hold two of them
            self._kept[kind] = (key, make())
        return self._kept[kind][1]


@dataclass(frozen=True, slots=True)
class RowSource(Chosen):
    """A source of a table row, made with available weights, whose folder is not in its settings."""

    weights: WeightsFolder = field(kw_only=True)
    row: PaperRow = field(kw_only=True)

    def logits(self, labels: Labels, place: Placement) -> LogitsFrom:
        """Make a source of logits, from the kept one if only the classes differ."""
        models = load_tables().models_of(self.row)
        given = {option: self.weights.given(name) for option, name in models.items()}
        options = {**self.options, **{k: path for k, path in given.items() if path is not None}}

        def make() -> Any:
            own = Chosen(self.name, {**options, **self._second_model(place)})
            return own.logits(labels, place)

        key = (self.name, str(options), place)
        kept = self.weights.keep("logits", key, make)
        source: LogitsFrom = kept.with_classes(labels)
        return source

    def _second_model(self, place: Placement) -> dict[str, Any]:
        name = load_tables().second_model.get(self.name)
        folder = name and self.weights.own(name)
        if not name or folder is None:
            return {}  # loaded by its published name
        where = {"device": str(place.device), "dtype": place.dtype}
        made: Any = load_attention(name, model=f"local-dir:{folder}", size=None, **where)
        return {"proxy": made.backbone}

    def attention(self, place: Placement) -> AttentionFrom:
        """Make a source of attention, or return the kept one if it is the same."""
        if self.name == NO_ATTENTION:
            return NoAttention()
        folder = self.weights.own(self.name)
        options = {**self.options, **({"model": f"local-dir:{folder}"} if folder else {})}
        key = (self.name, str(options), place)
        source: AttentionFrom = self.weights.keep(
            "attention", key, lambda: Chosen(self.name, options).attention(place)
        )
        return source


def missing_libraries() -> str:
    """Name the libraries that are not installed, and the fix; "": none."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if not missing:
        return ""
    return f"libraries ({', '.join(missing)}): run `pip install 'ovss-refine[models]'`"


def _cache() -> Path:
    return Path(require("huggingface_hub.constants", "models").HF_HUB_CACHE)


def _files(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        for alternative in pattern.split("|"):
            yield from sorted(folder.glob(alternative))


def _holds(folder: Path, patterns: Sequence[str]) -> bool:
    return all(any(path.is_file() for path in _files(folder, [one])) for one in patterns)
