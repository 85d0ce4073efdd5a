"""What a refinement returns.

Axes: B images, M classes, (gh, gw) grid of the attention, (H, W) pixels.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ovss_refine.images.convert import ImageLike
    from ovss_refine.segmentation import Segmentation


@dataclass(frozen=True, slots=True, eq=False)
class RefineResult:
    """A refined segmentation. Without the leading B where the input had none.

    `result[b]` is the result of one image of a batch, and iterating gives one after the other. To
    draw, measure or save one: `result.segmentation(image, names).overlay()`, see `segmentation`.

    Attributes:
        labels: [B, H, W] int64 class of every pixel, in [0, M).
        discrepancy: [B, M, gh, gw] float32 score of every class at every patch; -inf for
            rejected classes. Comparable within an image; its unit is the mode's.
        kept: [B, M] bool, the classes that were not rejected.
        seeds: [B, M, gh, gw] bool, the patches that a kept class started from. In modes
            "propagation" and "anchored" all the patches that it won.
        scores: [B, M, H, W] float32, `discrepancy` upsampled, -inf for rejected classes; None
            unless `keep_scores` was set.
        steps: steps that each solver took, by name, such as {"maximum_velocity": 53}; the
            most of any image of a batch. On a GPU up to three more than were needed.
        converged: whether every solver met its stopping test: the marginals of the optimal path
            hold, the walks of maximum velocity have reached every patch.

    Example:
        >>> import torch
        >>> from ovss_refine import Refiner
        >>> attn = torch.full((2, 16, 16), 1 / 16)
        >>> result = Refiner()(9 * torch.rand(2, 3, 4, 4), attn, torch.rand(2, 3, 8, 8))
        >>> result.labels.shape, result[0].kept.shape
        (torch.Size([2, 8, 8]), torch.Size([3]))
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
        return self._each(lambda x: x[b])

    def to(self, device: torch.device | str) -> "RefineResult":
        """Return the same result on `device`."""
        return self._each(lambda x: x.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "RefineResult":
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: change(x) for name, x in parts.items() if isinstance(x, Tensor)}
        return RefineResult(**(parts | changed))

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

    def segmentation(
        self, image: "ImageLike", names: Sequence[str] | None = None
    ) -> "Segmentation":
        """Combine the result of one image with the image and the names of its classes.

        Args:
            image: the image that was segmented: a path, a PIL image, an array [H, W, 3] or a tensor
                [3, H, W]; arrays and tensors are uint8, or float in [0, 1].
            names: M class names, distinct; None: "class 0", "class 1" and so on.

        Returns:
            The segmentation, on the CPU. `overlay()`, `plot()` and `maps()` draw it, `save(path)`
            writes the overlay; `areas()`, `mask(name)` and `rle()` say what is where.

        Raises:
            FileNotFoundError: if there is no such file.
            TypeError: if `image` is in none of these forms.
            ValueError: on an image of another size, names that are not one for each class or not
                distinct, or a result with a batch axis.
        """
        from ovss_refine.segmentation import of_result

        return of_result(self, image, names)


def gather(results: Iterable[RefineResult], B: int) -> RefineResult:
    """Put the results of B >= 1 batches of one image into one; holds one of them beside it."""
    results = iter(results)
    one = next(results)
    whole = one._each(lambda x: x.new_empty(B, *x.shape[1:]))
    steps, converged = dict(one.steps), one.converged
    for b in range(B):
        for part in fields(one):
            if isinstance(x := getattr(one, part.name), Tensor):
                getattr(whole, part.name)[b] = x[0]
        steps = {name: max(n, steps[name]) for name, n in one.steps.items()}
        converged = converged and one.converged
        one = next(results, one)
    return replace(whole, steps=steps, converged=converged)
