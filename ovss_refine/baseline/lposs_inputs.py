"""What LPOSS is given: checked, with a first axis, and where its patches lie.

Axes: B images or windows, K prompts, (h, w) grid of the logits, C channels, (gh, gw) grid of the
features, N = gh * gw patches, (H, W) pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ovss_refine.attention import Attention
from ovss_refine.checks import check_count, check_shape, check_sizes, check_values
from ovss_refine.images.convert import as_tensor
from ovss_refine.logits import Logits, check_prompt_index

Size = tuple[int, int]
LogitsLike = Tensor | NDArray[Any] | Logits
FeaturesLike = Tensor | NDArray[Any] | Attention
PromptIndex = Tensor | NDArray[Any] | Sequence[int] | None


def as_logits(logits: LogitsLike, prompt_index: PromptIndex, known: dict[str, int]) -> Logits:
    """Check the logits, their first axis if there is one in `known`, and their classes."""
    if isinstance(logits, Logits):
        if prompt_index is not None:
            raise ValueError("`prompt_index` must be None with `Logits`, which hold their own.")
        check_sizes("logits", logits.values.shape, " ".join([*known, "K h w"]), **known)
        return logits
    values = as_tensor(logits, "logits")
    check_shape("logits", values, " ".join([*known, "K h w"]), **known)
    check_values("logits", values)
    index = None
    if prompt_index is not None:
        index = check_prompt_index(prompt_index, "logits", values.shape)
    return Logits(values, prompt_index=index)


def as_features(features: FeaturesLike, known: dict[str, int]) -> Tensor | Attention:
    """Check the features, and give them a first axis if they have none."""
    if isinstance(features, Attention):
        check_sizes("features", features.shape, " ".join([*known, "N N"]), **known)
        return features.batched()
    values = as_tensor(features, "features")
    check_shape("features", values, " ".join([*known, "C gh gw"]), **known)
    check_values("features", values)
    return values if known else values[None]


def grid_of(held: Tensor | Attention) -> Size:
    """Return (gh, gw)."""
    if isinstance(held, Attention):
        return held.grid
    gh, gw = held.shape[2:]
    return gh, gw


def rows_of(held: Tensor | Attention, b: int) -> Tensor:
    """Return the features of every patch of image `b`, [N, C]."""
    if isinstance(held, Attention):
        return torch.cat([block[0] for _, block in held[b].blocks()])
    return held[b].flatten(1).mT


def places(grid: Size, cell: tuple[float, float]) -> Tensor:
    """Return the row and column of each patch in pixels, [N, 2]; only distances matter."""
    gh, gw = grid
    rows, columns = (torch.arange(g, dtype=torch.float64, device="cpu") for g in grid)
    at = torch.stack([rows[:, None].expand(gh, gw), columns.expand(gh, gw)], dim=2)
    return at.view(-1, 2) * torch.tensor(cell, dtype=torch.float64, device="cpu")


def check_pair(name: str, pair: Sequence[int], low: int) -> Size:
    """Return two whole numbers of at least `low`, or raise."""
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValueError(f"`{name}` must be two whole numbers; got {pair!r}.")
    return check_count(f"{name}[0]", pair[0], low), check_count(f"{name}[1]", pair[1], low)


def check_windows(
    origins: Sequence[Sequence[int]], window: Size, size: Sequence[int]
) -> list[tuple[slice, slice]]:
    """Return the rows and columns of each window in an image of this size."""
    found = []
    for n, origin in enumerate(origins):
        top, left = check_pair(f"origins[{n}]", origin, 0)
        bottom, right = top + window[0], left + window[1]
        if bottom > size[0] or right > size[1]:
            raise ValueError(
                f"`origins` must be of windows {list(window)} inside the image {list(size)}; got "
                f"{[top, left]}."
            )
        found.append((slice(top, bottom), slice(left, right)))
    return found


def coverage(slices: Sequence[tuple[slice, slice]], like: Tensor) -> Tensor:
    """Count the windows over each pixel [H, W]; raises ValueError if there are none."""
    count = torch.zeros_like(like)
    for rows, columns in slices:
        count[rows, columns] += 1
    if not bool(count.all()):
        bare = int((count == 0).sum())
        raise ValueError(f"`origins` must cover the image; got {bare} pixels in no window.")
    return count
