"""Where logits and attention come from: a registered source, or one file for each image.

Axes: K prompts, (h, w) grid, N = gh * gw patches.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from ovss_refine.attention import Attention, AttentionSource, affinity
from ovss_refine.checks import check_number
from ovss_refine.folders.files import read_arrays
from ovss_refine.logits import Logits, LogitsSource

PLAIN = (str, bytes, int, float, type(None))
Value = TypeVar("Value", covariant=True)


@runtime_checkable
class PerImage(Protocol[Value]):
    """A source that knows images by their id; asked ahead, in another thread.

    It may have a method `read(image_id)` too, which reads and leaves the rest to what it returns:
    a function that makes the value. That is called in the thread of the models. torch starts a
    team of threads in every thread that computes, and one team waits for the cores of another.
    """

    def for_image(self, image_id: str) -> Value:
        """Return what belongs to one image, without a batch axis."""
        ...


LogitsFrom = LogitsSource | PerImage[Logits]
AttentionFrom = AttentionSource | PerImage[Attention]


@dataclass(frozen=True, slots=True)
class NpzAttention:
    """Attention from files: `<image id>.npz` with `attention` [N, N] or `features` [C, gh, gw].

    Attributes:
        folder: where the files are.
        temperature: of the affinity that is made of features, > 0.
        key: name of the array, "features..." for features; None: whichever of the two is there.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: on a temperature that is not > 0.
        TypeError: on a temperature that is no number.
    """

    folder: Path
    temperature: float = 0.05
    key: str | None = None

    def __post_init__(self) -> None:
        """Check the folder and the temperature."""
        object.__setattr__(self, "folder", Path(self.folder))
        if not self.folder.is_dir():
            raise FileNotFoundError(f"`folder` must be an existing folder; got `{self.folder}`.")
        check_number("temperature", self.temperature, 0, open_ends=True)

    def for_image(self, image_id: str) -> Attention:
        """Read the attention of one image, on the CPU.

        Raises:
            FileNotFoundError: if it has no file.
            ValueError: if the file is damaged, lacks the array, or the array is no attention.
        """
        return self.read(image_id)()

    def read(self, image_id: str) -> Callable[[], Attention]:
        """Read the file of one image; return what makes attention of it. Raises as `for_image`."""
        wanted = ["attention", "features"] if self.key is None else [self.key]
        path = self.folder / f"{image_id}.npz"
        if not path.is_file():
            raise FileNotFoundError(f"`{path}` must be the attention of an image; it is missing.")
        ((key, array),) = read_arrays(path, wanted).items()
        values = torch.from_numpy(array)
        if key.startswith("features"):
            return partial(affinity, values, self.temperature)
        N = values.shape[-1] if values.ndim else 0
        side = round(N**0.5)
        if side * side != N:
            raise ValueError(f"`{path}` must hold attention of a square grid; got N={N} patches.")
        return partial(Attention, values, (side, side))


def read_ahead(source: PerImage[Value], image_id: str) -> Callable[[], Value]:
    """Read what belongs to an image; return what makes the value, once it is wanted."""
    if hasattr(source, "read"):
        make: Callable[[], Value] = source.read(image_id)
        return make
    value = source.for_image(image_id)
    return lambda: value


def weights_digest(source: object) -> str | None:
    """Hash the models and tensors that a source holds; None where it holds none.

    Two runs are of the same weights exactly if this is the same, whatever they are called.
    """
    digest, any_found = hashlib.blake2b(digest_size=8), False
    for part in _weights(source, depth=4, seen=set()):
        any_found = True
        tensors = {"": part} if isinstance(part, Tensor) else part.state_dict()
        for key, value in sorted(tensors.items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest() if any_found else None


def files_digest(paths: Sequence[Path]) -> str:
    """Hash the sizes and times of files, instead of gigabytes of arrays; -1 for missing ones."""
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        size = time = -1
        with contextlib.suppress(FileNotFoundError):
            size, time = path.stat().st_size, path.stat().st_mtime_ns
        digest.update(f"{path.name} {size} {time}\n".encode())
    return digest.hexdigest()


def _weights(thing: object, depth: int, seen: set[int]) -> Iterator[nn.Module | Tensor]:
    """Find models and tensors among the attributes of an object, and of its attributes."""
    if depth < 0 or id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, (nn.Module, Tensor)):
        yield thing
        return
    for part in _parts(thing):
        if not isinstance(part, PLAIN):  # a vocabulary has a hundred thousand of them
            yield from _weights(part, depth - 1, seen)


def _parts(thing: object) -> Iterable[object]:
    """Return what a collection holds, or the attributes of anything else."""
    if isinstance(thing, Mapping):
        return thing.values()
    if isinstance(thing, (list, tuple)):
        return thing
    names = [*getattr(thing, "__dict__", {}), *getattr(type(thing), "__slots__", ())]
    return [getattr(thing, name, None) for name in names]
