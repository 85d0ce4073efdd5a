"""What `reproduce` works on: data sets in folders, weights in the hub's cache or in a folder.

Both are looked for without loading or fetching anything, so that what is missing is known at once.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovss_refine.attention import Attention, AttentionSource
from ovss_refine.evaluation.dataset import DataSet, fingerprint, load_dataset
from ovss_refine.evaluation.inputs import AttentionFrom, LogitsFrom
from ovss_refine.evaluation.request import Chosen
from ovss_refine.labels import Labels, PromptTexts
from ovss_refine.registry import load_attention, require
from ovss_refine.reproduce.tables import PaperRow, load_tables

LIBRARIES = ("open_clip", "timm", "diffusers", "transformers", "safetensors", "scipy")
# As much of both ends of a file of weights tells it from another: its header, and its last tensors.
END = 1 << 20
NO_ATTENTION = "none"


@dataclass(frozen=True, slots=True)
class Found:
    """A data set, found or not.

    Attributes:
        dataset: what it is.
        root: where it is; None: nowhere.
        images: number of its images.
        digest: hash of its files' names and sizes.
        lack: what is missing; "": nothing.
    """

    dataset: DataSet
    root: Path | None = None
    images: int = 0
    digest: str = ""
    lack: str = ""


def find_data(name: str, data: Path | None, roots: Mapping[str, Path]) -> Found:
    """Look for a data set.

    Args:
        name: of the data set.
        data: folder with a folder for each data set, or None.
        roots: folders of single data sets, by name, which come first.
    """
    dataset = load_dataset(name)
    tried = [roots[name]] if name in roots else _folders(name, data)
    reasons: dict[str, None] = {}  # why what is there will not do
    for root in tried:
        try:
            items = dataset.items(root)
        except FileNotFoundError as err:
            if _has_images(dataset, root):
                reasons[str(err)] = None
            continue
        except ValueError as err:
            return Found(dataset, lack=f"data set `{name}`: {err}")
        if any(item.mask.is_file() for item in items):
            return Found(dataset, root, len(items), fingerprint(items))
        none = f"`{items[0].mask.parent}` must have a mask for some image; got none."
        reasons[dataset.without_masks(dataset.locate(root)) or none] = None
    looked = f"looked in {', '.join(f'`{path}`' for path in tried)}" if tried else "none was named"
    looked += "".join(f"; {reason.removesuffix('.')}" for reason in reasons)
    needed = ", ".join(
        f"`{part}`" for part in (dataset.images, dataset.masks, dataset.split) if part
    )
    return Found(
        dataset,
        lack=f"data set `{name}` ({dataset.title}; {needed}): {looked}; pass --data DIR or "
        f"--root {name}=PATH",
    )


def _has_images(dataset: DataSet, root: Path) -> bool:
    try:
        dataset.locate(root)
    except FileNotFoundError:
        return False
    return True


def _folders(name: str, data: Path | None) -> list[Path]:
    if data is None:
        return []
    folders = [data / part for part in load_tables().folders[name]]
    return [*(folder for folder in folders if folder.is_dir()), data]


class WeightsFolder:
    """The weights that are available, in a folder or the hub's cache, and sources made with them.

    Args:
        models_dir: folder with a folder for each of the weights, which come first; or None.
    """

    def __init__(self, models_dir: Path | None = None) -> None:
        """Remember the folder."""
        self.models_dir = models_dir
        # Those made last: data sets come one after the other with the same sources.
        self._kept: dict[str, tuple[object, Any]] = {}
        self._digests: dict[str, str] = {}

    def lack(self, name: str) -> str:
        """Say what is missing of some weights; "": nothing."""
        weights = load_tables().weights[name]
        if self.place(name) is not None:
            return ""
        looked = [] if self.models_dir is None else [f"the folder `{self.models_dir / name}`"]
        looked.append(f"the hub's cache `{_cache()}`")
        files = ", ".join(f"`{pattern.replace('|', '` or `')}`" for pattern in weights.in_folder)
        return (
            f"weights `{name}` ({weights.repository}, {weights.size}; {files}): not in "
            f'{" nor in ".join(looked)}; `python -c "import ovss_refine as o; '
            f"o.load_attention('{name}')\"` fetches them"
        )

    def place(self, name: str) -> Path | None:
        """Find the folder that holds some weights, of one's own or in the hub's cache."""
        weights = load_tables().weights[name]
        if self.models_dir is not None and _holds(self.models_dir / name, weights.in_folder):
            return self.models_dir / name
        repository = _cache() / f"models--{weights.repository.replace('/', '--')}"
        newest = repository / "refs" / "main"
        if not newest.is_file():
            return None
        snapshot = repository / "snapshots" / newest.read_text(encoding="utf-8").strip()
        return snapshot if _holds(snapshot, weights.in_cache) else None

    def own(self, name: str) -> Path | None:
        """Return the folder of one's own that holds some weights."""
        place = self.place(name)
        inside = place is not None and place.parent == self.models_dir
        return place if inside else None

    def digest(self, name: str) -> str:
        """Hash names, sizes and both ends of the files of some weights that are at hand, once."""
        if name not in self._digests:
            place, weights = self.place(name), load_tables().weights[name]
            assert place is not None  # noqa: S101 - whoever asks has seen that nothing lacks
            own = place.parent == self.models_dir
            digest = hashlib.sha256()
            for path in _files(place, weights.in_folder if own else weights.in_cache):
                size = path.stat().st_size
                digest.update(f"{path.relative_to(place)} {size}\n".encode())
                with path.open("rb") as file:
                    digest.update(file.read(END))
                    file.seek(max(0, size - END))
                    digest.update(file.read(END))
            self._digests[name] = digest.hexdigest()
        return self._digests[name]

    def keep(self, kind: str, key: object, make: Callable[[], Any]) -> Any:
        """Return the source of a kind that was made for the same key, or make it."""
        if kind not in self._kept or self._kept[kind][0] != key:
            self._kept.pop(kind, None)  # before the next: two of them may not fit
            self._kept[kind] = (key, make())
        return self._kept[kind][1]


@dataclass(frozen=True, slots=True)
class RowSource(Chosen):
    """A source of a table, made with the weights that are found; its settings do not say where.

    Attributes:
        weights: where the weights are.
        row: which of them.
    """

    weights: WeightsFolder = field(kw_only=True)
    row: PaperRow = field(kw_only=True)

    def logits(self, labels: Labels, device: torch.device) -> LogitsFrom:
        """Make a source of logits, of the one before if they differ in their classes alone."""
        name = load_tables().backbones[self.row.backbone]
        folder = self.weights.own(name)
        model = load_tables().weights[name].preset if folder is None else f"local-dir:{folder}"
        options = {**self.options, "model": model}

        def make() -> Any:
            own = Chosen(self.name, {**options, **self._second_model(device)})
            return own.logits(labels, device)

        key = (self.name, str(options), str(device))
        kept = self.weights.keep("logits", key, make)
        source: LogitsFrom = kept.with_classes(PromptTexts(labels))
        return source

    def _second_model(self, device: torch.device) -> dict[str, Any]:
        name = load_tables().second_model.get(self.name)
        folder = None if name is None else self.weights.own(name)
        if name is None or folder is None:
            return {}  # by its published name
        made: Any = load_attention(name, model=f"local-dir:{folder}", size=None, device=str(device))
        return {"proxy": made.backbone}

    def attention(self, device: torch.device) -> AttentionFrom:
        """Make a source of attention, or take the one before if it is the same."""
        if self.name == NO_ATTENTION:
            return NoAttention()
        folder = self.weights.own(self.name)
        options = dict(self.options)
        if folder is not None:
            options["model"] = f"local-dir:{folder}"
        key = (self.name, str(options), str(device))
        source: AttentionFrom = self.weights.keep(
            "attention", key, lambda: Chosen(self.name, options).attention(device)
        )
        return source


class NoAttention(AttentionSource):
    """Attention of a single patch to itself, for rows that look at none."""

    def attention(self, images: Tensor) -> Attention:
        """Attend over [B, 3, H, W] `images`: [B, 1, 1]."""
        return Attention(torch.ones(len(images), 1, 1, device=images.device), (1, 1))


def missing_libraries() -> str:
    """Say which libraries are not installed; "": none."""
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
