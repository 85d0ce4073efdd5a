"""Sources of logits and attention: a registered source, or one file for each image.

Axes: K prompts, (h, w) grid, N = gh * gw patches.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ovss_refine.attention import Attention, AttentionSource
from ovss_refine.checks import SCALES, check_number
from ovss_refine.evaluation import functions
from ovss_refine.folders.paths import local_path
from ovss_refine.logits import Logits, LogitsSource
from ovss_refine.sources.files import read_attention

PLAIN = (str, bytes, int, float, type(None))
Value = TypeVar("Value", covariant=True)


@runtime_checkable
class PerImage(Protocol[Value]):
    """A source that is given the id of an image, ahead of its use and in another thread.

    It may also have a method `read(image_id)`, which reads the file and returns a function that
    computes the value. That function is called in the thread of the models: torch starts a thread
    pool in every thread that computes, and the pools compete for cores.
    """

    def for_image(self, image_id: str) -> Value:
        """Return the value for one image, without a batch axis."""
        ...


class MapSource(Protocol):
    """An `AttentionSource` that need not know its grid."""

    def attention(self, images: Tensor) -> Attention | Tensor:
        """Return B maps for [B, 3, H, W] `images`."""
        ...


LogitsFrom = LogitsSource | PerImage[Logits]
# A tensor is a map without its grid, which depends on the logits: `checks.find_grid`.
AttentionFrom = MapSource | PerImage[Attention | Tensor]


@dataclass(frozen=True, slots=True)
class NpzAttention:
    """Attention from files: `<image id>.npz` with `attention` [N, N] or `features` [C, gh, gw].

    `grid` [2] names the grid of `attention`; without it, the map takes the grid that `refine` gives
    a bare tensor.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: on a temperature out of range.
        TypeError: on a temperature that is not a number.
    """

    folder: Path
    temperature: float = 0.05  # of the affinity of features
    # Name of the array, "features..." for features; None: whichever of the two exists.
    key: str | None = None

    def __post_init__(self) -> None:
        """Check the folder and the temperature."""
        object.__setattr__(self, "folder", local_path("folder", self.folder))
        if not self.folder.is_dir():
            raise FileNotFoundError(f"`folder` must be an existing folder; got `{self.folder}`.")
        check_number("temperature", self.temperature, *SCALES)

    def for_image(self, image_id: str) -> Attention | Tensor:
        """Read the attention of one image, on the CPU; a tensor if its file names no grid.

        Raises:
            FileNotFoundError: if it has no file.
            ValueError: if the file is damaged, or its array is missing or not valid attention.
        """
        return self.read(image_id)()

    def read(self, image_id: str) -> Callable[[], Attention | Tensor]:
        """Read the file of one image; return a function that makes the attention.

        Raises as `for_image` does.
        """
        path = self.folder / f"{image_id}.npz"
        if not path.is_file():
            raise FileNotFoundError(f"`{path}` must be the attention of an image; it is missing.")
        return read_attention(path, self.temperature, self.key)


class NoAttention(AttentionSource):
    """Attention of a single patch to itself, for rows that use none."""

    def attention(self, images: Tensor) -> Attention:
        """Return [B, 1, 1] attention for [B, 3, H, W] `images`."""
        return Attention(torch.ones(len(images), 1, 1, device=images.device), (1, 1))


def read_ahead(source: PerImage[Value], image_id: str) -> Callable[[], Value]:
    """Read the value for an image; return a function that completes it."""
    if hasattr(source, "read"):
        make: Callable[[], Value] = source.read(image_id)
        return make
    value = source.for_image(image_id)
    return lambda: value


def folder_by_id(source: object) -> Path | None:
    """Return the folder where a source reads `<image id>.npz` for each image; None: it reads none.

    Such a source has it as an attribute of this name, and its methods `logits` and
    `logits_and_attention` take `image_ids` too, the ids of a batch.
    """
    folder = getattr(source, "folder_by_id", None)
    return folder if isinstance(folder, Path) else None


def weights_digest(source: object) -> str | None:
    """Hash the models and tensors that a source holds; None if it holds none.

    Equal digests mean equal weights, whatever the names of the sources.
    """
    digest = hashlib.blake2b(digest_size=8)
    parts = list(weights_of(source))
    for part in parts:
        tensors = {"": part} if isinstance(part, Tensor) else part.state_dict()
        for key, value in sorted(tensors.items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest() if parts else None


def files_digest(paths: Sequence[Path]) -> str:
    """Hash sizes and times instead of gigabytes of contents; both are -1 for a missing file."""
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        size = time = -1
        with contextlib.suppress(FileNotFoundError):
            size, time = path.stat().st_size, path.stat().st_mtime_ns
        digest.update(f"{path.name} {size} {time}\n".encode())
    return digest.hexdigest()


def weights_of(source: object) -> Iterator[nn.Module | Tensor]:
    """Yield the models and tensors that a source holds, or that a function refers to."""
    return _weights(source, depth=4, seen=set())


def _weights(thing: object, depth: int, seen: set[int]) -> Iterator[nn.Module | Tensor]:
    """Yield the models and tensors among the attributes of an object, and of its attributes."""
    if depth < 0 or id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, (nn.Module, Tensor)):
        yield thing
        return
    if isinstance(thing, np.ndarray):
        if thing.dtype.kind in "biuf":
            yield torch.from_numpy(np.ascontiguousarray(thing))
        return
    for part in _parts(thing):
        if not isinstance(part, PLAIN):  # a vocabulary holds a hundred thousand of them
            yield from _weights(part, depth - 1, seen)


def _parts(thing: object) -> Iterable[object]:
    """Return the members of a collection, or the attributes of any other object."""
    if (own := functions.parts(thing)) is not None:
        return own.values()
    if isinstance(thing, Mapping):
        return thing.values()
    if isinstance(thing, (list, tuple)):
        return thing
    names = [*getattr(thing, "__dict__", {}), *getattr(type(thing), "__slots__", ())]
    return [getattr(thing, name, None) for name in names]
