"""Your own logits: a function, or files with one array per image.

Axes: B images, K prompts, (h, w) grid.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovss_refine.folders.arrays import read_arrays
from ovss_refine.folders.paths import local_path
from ovss_refine.images.convert import ImagesLike, as_tensor
from ovss_refine.labels import Labels, LabelsLike
from ovss_refine.logits import Logits
from ovss_refine.postprocess import semantic_logits
from ovss_refine_adapters.backbones.capture import check_images
from ovss_refine_adapters.text import as_classes


class CallableLogits:
    """A function as a source of logits.

    Args:
        fn: [B, 3, H, W] float32 images in [0, 1] to [B, K, h, w] logits, K prompts in the order of
            `classes`: a tensor, an array, or what a Hugging Face segmenter returns. Or, without
            `classes` and `scale`, to `Logits`. Called without gradient or autocast.
        classes: names with synonyms, a file, or `Labels`; None: K classes without names.
        scale: factor on the logits before a softmax over prompts, > 0: 1 for a segmenter's logits,
            40 to 100 for CLIP's cosines.

    Raises:
        ValueError: on invalid classes.

    Example:
        >>> source = CallableLogits(lambda images: images[:, :2], ["red", "green"])
        >>> source.logits(torch.rand(1, 3, 4, 6)).values.shape
        torch.Size([1, 2, 4, 6])
    """

    def __init__(
        self, fn: Callable[[Tensor], Any], classes: LabelsLike | None = None, scale: float = 1.0
    ) -> None:
        """Store the function and read the classes."""
        self.fn = fn
        self.classes = None if classes is None else as_classes(classes)
        self.scale = scale

    def logits(self, images: ImagesLike) -> Logits:
        """Call the function: [B, K, h, w] logits on the device of `images`.

        Images and exceptions are those of `LogitsSource`. Raises TypeError or ValueError also on a
        result that is not one finite floating-point map for each image and prompt.
        """
        images = check_images(images)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            made = self.fn(images)
        if isinstance(made, Logits) and self.classes is None and self.scale == 1:
            _check_values(made.values, len(images))
            return replace(made, values=made.values.to(images.device))
        values = _check_values(made, len(images))
        return _logits(values.to(images.device), self.scale, self.classes, "fn")


class NpzLogits:
    """Logits from files: `<image id>.npz`, one per image.

    A file has `logits` [K, h, w], and `prompt_index` [K] if there are synonyms. Pixels do not
    identify a file, so the images' ids must be given.

    Args:
        folder: where the files are.
        classes: as in `CallableLogits`.
        scale: as in `CallableLogits`.
        key: name of the array in the files.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: on invalid classes.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> np.savez(f"{folder}/one.npz", logits=np.zeros((2, 4, 6), np.float32))
        >>> NpzLogits(folder, ["cat", "dog"]).for_image("one").values.shape
        torch.Size([2, 4, 6])
    """

    def __init__(
        self,
        folder: str | Path,
        classes: LabelsLike | None = None,
        scale: float = 1.0,
        key: str = "logits",
    ) -> None:
        """Check the folder and read the classes."""
        self.folder = local_path("folder", folder).expanduser()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"`folder` must be an existing folder; got `{self.folder}`.")
        self.classes = None if classes is None else as_classes(classes)
        self.scale = scale
        self.key = key

    def for_image(self, image_id: str) -> Logits:
        """Read the logits of one image, the file `image_id`.npz: [K, h, w] on the CPU.

        Raises:
            FileNotFoundError: if it has no file.
            ValueError: if the file is damaged, lacks the array, or does not fit the classes.
        """
        return self.read(image_id)()

    def read(self, image_id: str) -> Callable[[], Logits]:
        """Read one image's file; return a function that makes its logits. Raises as `for_image`."""
        path = self.folder / f"{image_id}.npz"
        if not path.is_file():
            raise FileNotFoundError(f"`image_id` must have a file; `{path}` does not exist.")
        arrays = read_arrays(path, [self.key], optional=["prompt_index"])
        values = torch.from_numpy(arrays[self.key])
        index = arrays.get("prompt_index")
        if self.classes is None:
            own = None if index is None else torch.from_numpy(index)
            return partial(Logits, values, self.scale, own)
        if index is not None and not np.array_equal(index, self.classes.prompt_index):
            raise ValueError(
                f"`prompt_index` of `{path}` must be that of `classes`, "
                f"{list(self.classes.prompt_index)}; got {index.ravel()[:20].tolist()}."
            )
        return partial(_logits, values, self.scale, self.classes, str(path))

    def logits(self, images: Tensor, image_ids: Sequence[str] = ()) -> Logits:
        """Read the logits of a batch.

        Args:
            images: [B, 3, H, W] images; only their number and device are used.
            image_ids: B ids, in the order of `images`. All have the same grid.

        Returns:
            [B, K, h, w] logits on the device of `images`.

        Raises:
            FileNotFoundError: if an image has no file.
            ValueError: if there are not B ids, or the files' shapes or prompts differ.
        """
        if len(image_ids) != len(images):
            raise ValueError(
                f"`image_ids` must name the B={len(images)} images, whose files are read; got "
                f"{list(image_ids)}."
            )
        read = [self.for_image(image_id) for image_id in image_ids]
        shapes = {(tuple(one.values.shape), str(one.prompt_index)) for one in read}
        if len(shapes) > 1:
            raise ValueError(
                f"`image_ids` must have logits of one shape and the same prompts; got "
                f"{sorted(shapes)}."
            )
        values = torch.stack([one.values for one in read]).to(images.device)
        return Logits(values, self.scale, read[0].prompt_index, read[0].names)


def _check_values(made: object, B: int) -> Tensor:
    """Return the logits of B images among what a function returned."""
    values = as_tensor(made, "fn") if isinstance(made, np.ndarray) else made
    if hasattr(values, "logits") or hasattr(values, "masks_queries_logits"):
        values = semantic_logits(values)
    if isinstance(values, Tensor) and values.ndim == 4 and len(values) == B:
        return values
    got, hint = type(values).__name__, ""
    if isinstance(values, Tensor):
        got = str(tuple(values.shape))
        if values.ndim == 3 and B == 1:
            hint = " Add the batch axis: `logits[None]`."
    elif isinstance(values, Logits):
        hint = " They have their own classes and scale: leave `classes` and `scale` out."
    elif isinstance(values, Mapping):
        got, hint = (
            f"{got} of {[*values]}",
            f" Return one entry, such as `[{next(iter(values))!r}]`.",
        )
    elif isinstance(values, Sequence) and values and hasattr(values[0], "seg_logits"):
        hint = " Return `torch.stack([sample.seg_logits.data for sample in samples])`."
    raise ValueError(f"`fn` must return [B={B}, K, h, w] logits; got {got}.{hint}")


def _logits(values: Tensor, scale: float, classes: Labels | None, origin: str) -> Logits:
    if classes is None:
        return Logits(values, scale)
    K = len(classes.all_prompts)
    if values.ndim > 2 and values.shape[-3] != K:
        raise ValueError(
            f"`{origin}` must have K={K} maps, one for each prompt of `classes`; got "
            f"{values.shape[-3]}."
        )
    return Logits(values, scale, classes.prompt_index, classes.names)
