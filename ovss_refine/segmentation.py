"""The segmentation of one image with the names of its classes: to view, query and save.

Axes: M classes, (gh, gw) grid of the attention, N = gh * gw patches, (H, W) pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ovss_refine.attention import Attention
from ovss_refine.checks import check_count
from ovss_refine.images import draw, rle
from ovss_refine.images.convert import ImageLike, as_rgb
from ovss_refine.images.read import RGB
from ovss_refine.logits import Logits
from ovss_refine.registry import require

if TYPE_CHECKING:
    from ovss_refine.result import RefineResult


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segmentation:
    """What a `Segmenter`, or `RefineResult.segmentation`, returns for one image.

    All tensors are on the CPU, all drawings are [H', W', 3] uint8 arrays; notebooks show `plot()`.
    A name has the same colour in all images, unless two names of an image collide in a palette of
    24. Legends are below the image.

    Attributes:
        image: [H, W, 3] uint8 RGB, the image that was segmented.
        names: M names of the classes, distinct.
        labels: [H, W] int64 class of every pixel, in [0, M).
        discrepancy: [M, gh, gw] float32 score of every class at every patch; -inf for rejected
            classes. See `RefineResult`.
        kept: [M] bool, the classes that were not rejected.
        baseline: [H, W] int64 classes without refinement; None unless requested.
        seconds: time of every stage, shared equally by the images of a batch; may be empty.
        attention: the map used for the refinement, without a batch axis; None unless requested.
        logits: what was refined, without a batch axis; None unless requested.

    Example:
        >>> import numpy as np, torch
        >>> image, labels = np.zeros((2, 2, 3), np.uint8), torch.tensor([[0, 1], [1, 1]])
        >>> found = Segmentation(image=image, names=("cat", "sky"), labels=labels,
        ...     discrepancy=torch.zeros(2, 1, 1), kept=torch.tensor([True, True]))
        >>> found.areas()
        [('sky', 3, 0.75), ('cat', 1, 0.25)]
    """

    image: RGB
    names: tuple[str, ...]
    labels: Tensor
    discrepancy: Tensor
    kept: Tensor
    baseline: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    attention: Attention | None = None
    logits: Logits | None = None

    def areas(self) -> list[tuple[str, int, float]]:
        """List the classes that occur, largest first: name, pixels, share of all pixels."""
        found = draw.areas(self.labels.numpy(), self.names)
        return [(name, round(share * self.labels.numel()), share) for _, name, share in found]

    def names_present(self) -> tuple[str, ...]:
        """Return the names of the classes that occur, largest first."""
        return tuple(name for name, _, _ in self.areas())

    def mask(self, name: str) -> Tensor:
        """Mark the pixels of a class: [H, W] bool.

        Raises:
            ValueError: if no class is called `name`.
        """
        if name not in self.names:
            raise ValueError(f"`name` must be one of {list(self.names)}; got {name!r}.")
        return self.labels == self.names.index(name)

    def rle(self) -> list[dict[str, Any]]:
        """Encode the masks as COCO results, one entry for each class that occurs, by its index.

        Returns:
            {"category": name, "category_id": index, "segmentation": {"size": [H, W], "counts":
            str}, "area": pixels, "bbox": [x, y, width, height]}. The counts are COCO's compressed
            run lengths, column by column; `pycocotools.mask.decode` reads "segmentation".
        """
        labels = self.labels.numpy()
        return [
            {"category": self.names[index], "category_id": index, **rle.entry(labels == index)}
            for index in np.unique(labels).tolist()
        ]

    def to_supervision(self) -> Any:
        """Convert the masks to `supervision.Detections`, one for each class that occurs.

        Returns:
            n detections, by class index: `mask` [n, H, W] bool, `xyxy` [n, 4] boxes of the first
            and last pixels, `class_id` [n], and the names in `data["class_name"]`.

        Raises:
            ModuleNotFoundError: if supervision is not installed; names the extra.
        """
        supervision = require("supervision", "bridges")
        labels = self.labels.numpy()
        present = np.unique(labels)  # [n]
        masks = labels == present[:, None, None]  # [n, H, W]
        return supervision.Detections(
            xyxy=supervision.mask_to_xyxy(masks),
            mask=masks,
            class_id=present,
            data={"class_name": np.array([self.names[index] for index in present])},
        )

    def overlay(self) -> RGB:
        """Draw the classes over the image, with a legend below."""
        return draw.labelled(self.image, {"": self.labels.numpy()}, self.names)

    def plot(self) -> RGB:
        """Draw image, baseline (if there is one) and classes side by side."""
        panels = {} if self.baseline is None else {"baseline": self.baseline.numpy()}
        panels["refined"] = self.labels.numpy()
        return draw.labelled(self.image, panels, self.names, original="image")

    def _repr_png_(self) -> bytes:
        """Return `plot()` as a PNG file, for notebooks."""
        file = BytesIO()
        draw.write_png(file, self.plot())
        return file.getvalue()

    def maps(self) -> RGB:
        """Draw the discrepancy of every kept class on one sheet and one scale, bright is high."""
        kept = self.kept.nonzero().flatten().tolist()
        maps = self.discrepancy[kept].numpy()
        return draw.heat_maps(maps, [self.names[c] for c in kept], self.image.shape[:2])

    def save(self, path: str | Path) -> None:
        """Write `overlay()` to the file `path`, whole or not at all, in the format of its suffix.

        Raises:
            ValueError: on a suffix other than .png, .jpg, .jpeg and .webp.
            OSError: if the file cannot be written.
        """
        draw.save(path, self.overlay())

    def attention_map(self, x: int, y: int) -> Tensor:
        """Return the attention of the patch at column `x` and row `y` of the image's pixels.

        Returns:
            [gh, gw] float32, summing to one.

        Raises:
            ValueError: if there is no such pixel, or the attention was not kept.
            TypeError: if a coordinate is not a whole number.
        """
        if self.attention is None:
            raise ValueError("`attention` must be kept for its maps: pass `keep_attention=True`.")
        H, W = self.labels.shape
        for name, place, side in (("x", x, W), ("y", y, H)):
            check_count(name, place, 0)
            if place >= side:
                raise ValueError(f"`{name}` must be below {side}; got {place}.")
        gh, gw = self.attention.grid
        patch = y * gh // H * gw + x * gw // W
        block, row = next(
            (block, patch - rows.start)
            for rows, block in self.attention.blocks()
            if patch < rows.stop
        )
        return block[0, row].reshape(gh, gw).clone()

    def attention_overlay(self, x: int, y: int) -> RGB:
        """Draw the square root of `attention_map` over the image: [H, W, 3], the pixel marked.

        Without the root, a patch's attention to itself would leave the rest dark. `x`, `y` and
        exceptions are those of `attention_map`.
        """
        return draw.heat_overlay(self.image, self.attention_map(x, y).sqrt().numpy(), x, y)


def of_result(
    result: "RefineResult", image: ImageLike, names: Sequence[str] | None
) -> Segmentation:
    """Implement `RefineResult.segmentation`."""
    if result.labels.ndim != 2:
        raise ValueError(
            "`segmentation` must be of one image; got the result of a batch of "
            f"{len(result.labels)}. Take `result[b].segmentation(...)`."
        )
    rgb = as_rgb(image, "image")
    if rgb.shape[:2] != tuple(result.labels.shape):
        raise ValueError(
            f"`image` must have H, W = {list(result.labels.shape)}; got {list(rgb.shape[:2])}."
        )
    return Segmentation(
        image=rgb,
        names=_names(names, len(result.kept)),
        labels=result.labels.cpu(),
        discrepancy=result.discrepancy.cpu(),
        kept=result.kept.cpu(),
    )


def _names(names: Sequence[str] | None, M: int) -> tuple[str, ...]:
    """Check the names of M classes, or make some."""
    named = tuple(f"class {c}" for c in range(M)) if names is None else tuple(names)
    if len(named) != M:
        raise ValueError(f"`names` must name the M={M} classes; got {len(named)}.")
    if len(set(named)) < M:
        twice = next(name for name in named if named.count(name) > 1)
        raise ValueError(f"`names` must be distinct; got {twice!r} twice.")
    return named
