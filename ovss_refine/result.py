"""What a refinement returns, and pictures of it.

Axes: B images, M classes, (gh, gw) grid of the attention, (H, W) pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

RGB = NDArray[np.uint8]
AnyImage = Union[Tensor, NDArray[Any], "Image.Image"]


@dataclass(frozen=True, slots=True, eq=False)
class RefineResult:
    """A refined segmentation. Without the leading B where the input had none.

    `result[b]` is that of one image of a batch, and `for one in result` goes through them. The
    pictures below are of one image. They take it as [3, H, W] tensor or [H, W, 3] array, uint8 or
    float in [0, 1], as PIL image or as path; and M class names, else the classes are numbered. A
    name has one colour, unless another name of the picture wants the same of 24. Legends stand
    below the image.

    Attributes:
        labels: [B, H, W] int64 class of every pixel, in [0, M).
        discrepancy: [B, M, gh, gw] float32 score of every class at every patch; -inf for
            rejected classes. Comparable within an image; its unit is the mode's.
        kept: [B, M] bool, the classes that were not rejected.
        seeds: [B, M, gh, gw] bool, the patches that a kept class started from. In modes
            "propagation" and "anchored" all the patches that it won.
        scores: [B, M, H, W] float32, `discrepancy` upsampled, -inf for rejected classes; None
            unless `keep_scores` was set.
        steps: steps that each solver took, by name, such as {"maximum_velocity": 53}; the same for
            all images of a batch. On a GPU up to three more than were needed.
        converged: whether every solver met its stopping test: the marginals of the optimal path
            hold, the walks of maximum velocity have reached every patch.
    """

    labels: Tensor
    discrepancy: Tensor
    kept: Tensor
    seeds: Tensor
    scores: Tensor | None
    steps: Mapping[str, int] = field(default_factory=dict)
    converged: bool = True

    def __getitem__(self, b: int) -> "RefineResult":
        """Return the result of image `b` of a batch, counted from the end if negative.

        Raises:
            TypeError: if `b` is not a whole number, or the result has no batch axis.
            IndexError: if there is no such image.
        """
        if self.labels.ndim != 3:
            raise TypeError("`result[b]` must be of a batch; this is the result of one image.")
        if isinstance(b, bool) or not isinstance(b, int):
            raise TypeError(f"`b` must be a whole number; got {b!r}.")
        B = len(self.labels)
        if not -B <= b < B:
            raise IndexError(f"`b` must be in [-{B}, {B - 1}]; got {b}.")
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        one = {name: part[b] for name, part in parts.items() if isinstance(part, Tensor)}
        return RefineResult(**(parts | one))

    def __repr__(self) -> str:
        """Show shapes, class counts and what the solvers did, on one line."""
        counts = self.kept.sum(dim=-1).flatten().tolist()
        kept = counts[0] if self.labels.ndim == 2 else counts
        return (
            f"RefineResult(labels={list(self.labels.shape)}, "
            f"discrepancy={list(self.discrepancy.shape)}, kept={kept} of {self.kept.shape[-1]}, "
            f"scores={self.scores is not None}, steps={dict(self.steps)}, "
            f"converged={self.converged})"
        )

    def overlay(self, image: AnyImage, names: Sequence[str] | None = None) -> RGB:
        """Draw the classes over the image, with a legend below: [H + legend, W, 3] uint8.

        Raises:
            TypeError: on an image of no such kind.
            ValueError: on an image of another size, names that are not one for each class, or a
                result with a batch axis.
        """
        from ovss_refine.images import draw

        rgb, named = self._drawn(image, names)
        return draw.labelled(rgb, {"": self.labels.cpu().numpy()}, named)

    def plot(self, image: AnyImage, names: Sequence[str] | None = None) -> "Image.Image":
        """Draw the image and its classes side by side; notebooks show it. Raises as `overlay`."""
        from PIL import Image

        from ovss_refine.images import draw

        rgb, named = self._drawn(image, names)
        panels = {"refined": self.labels.cpu().numpy()}
        return Image.fromarray(draw.labelled(rgb, panels, named, original="image"))

    def maps(self, image: AnyImage, names: Sequence[str] | None = None) -> RGB:
        """Draw the discrepancy of every kept class on one sheet and one scale, highest bright.

        Of the image only the shape is used. Raises as `overlay`.
        """
        from ovss_refine.images import draw

        rgb, named = self._drawn(image, names)
        kept = self.kept.nonzero().flatten().tolist()
        maps = self.discrepancy[kept].cpu().numpy()
        return draw.heat_maps(maps, [named[c] for c in kept], rgb.shape[:2])

    def save(self, path: str | Path, image: AnyImage, names: Sequence[str] | None = None) -> None:
        """Write `overlay` to a file, whole or not at all.

        Raises:
            ValueError: on a suffix other than .png, .jpg, .jpeg or .webp, and as `overlay`.
            TypeError: as `overlay`.
            OSError: if the file cannot be written.
        """
        from ovss_refine.images import draw

        draw.save(path, self.overlay(image, names))

    def _drawn(self, image: AnyImage, names: Sequence[str] | None) -> tuple[RGB, list[str]]:
        """Return the image as [H, W, 3] and M names, or raise where they do not fit."""
        from ovss_refine.images.convert import as_rgb

        if self.labels.ndim != 2:
            raise ValueError(
                f"pictures must be of one image; got a batch of {len(self.labels)}. Take "
                "`result[b]`."
            )
        rgb = as_rgb(image, "image")
        if rgb.shape[:2] != tuple(self.labels.shape):
            raise ValueError(
                f"`image` must have H, W = {list(self.labels.shape)}; got {list(rgb.shape[:2])}."
            )
        M = len(self.kept)
        named = [f"class {c}" for c in range(M)] if names is None else list(names)
        if len(named) != M:
            raise ValueError(f"`names` must name the M={M} classes; got {len(named)}.")
        return rgb, named
