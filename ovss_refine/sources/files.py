"""Attention of one image from a file.

Axes: N patches of the grid (gh, gw).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ovss_refine.attention import Attention, affinity
from ovss_refine.folders.arrays import read_arrays


def read_attention(
    path: Path, temperature: float, key: str | None = None
) -> Callable[[], Attention | Tensor]:
    """Read an `.npz` file; return a function that checks and completes the attention.

    Args:
        path: has `attention` [N, N], with its grid in `grid` [2] or without, or `features`
            [C, gh, gw].
        temperature: of the affinity of features, > 0.
        key: name of the array, "features..." for features; None: whichever of the two exists.

    Returns:
        A function that returns the attention; a map whose file names no grid remains a tensor,
        for `find_grid` to lay out. It raises TypeError or ValueError on invalid attention.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or its arrays are missing or of the wrong form.
    """
    wanted = ["attention", "features"] if key is None else [key]
    found = read_arrays(path, wanted, optional=["grid"])
    kind = next(iter(found))
    values = torch.from_numpy(found[kind])
    if kind.startswith("features"):
        return partial(affinity, values, temperature)
    grid = found.get("grid")
    if grid is None:
        return partial(_without_grid, values)
    if grid.shape != (2,) or grid.dtype.kind not in "iu":
        raise ValueError(
            f"`grid` in `{path}` must be two whole numbers [gh, gw]; got {grid.tolist()}."
        )
    return partial(Attention, values, tuple(grid.tolist()))


def _without_grid(values: Tensor) -> Tensor:
    """Check a map in one row of patches, until its grid is known."""
    weights = Attention(values, (1, *values.shape[-1:])).weights
    assert weights is not None  # noqa: S101 - given as a map
    return weights
