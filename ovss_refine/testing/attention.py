"""The conformance suite for sources of attention."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ovss_refine.attention import Attention, AttentionSource
from ovss_refine.testing.models import SIZES, demand
from ovss_refine.testing.suite import Suite, check_grid


def check_attention_source(make: Callable[[], AttentionSource]) -> None:
    """Check that a source keeps the promises of `AttentionSource`.

    It is given images of several sizes, types and batches. The maps must be on the grid, row by
    row, on the images' device, without gradient; be float32 or better, or of the source's attribute
    `dtype` if it has one; be repeatable; not depend on autocast or on the other images of the
    batch; and differ between images. The modules that the source holds must be left as they
    were found (hooks, mode, processors, `forward`, parameters), even if one of their parts raises.
    Random numbers and global settings must not be touched.

    Args:
        make: returns a new source; called once. A tiny model with random weights will do.

    Raises:
        AssertionError: if a promise is broken; the message says which.
    """
    source = make()
    promised = getattr(source, "dtype", torch.float32)
    suite = Suite("the maps", "attention", Attention, _held, _values)
    suite.check(source, partial(_check_maps, promised))


def _held(attention: Attention) -> tuple[Tensor, ...]:
    return attention.factors or (attention.weights,)  # type: ignore[return-value]  # one is there


def _values(attention: Attention) -> Tensor:
    rows = torch.cat([block for _, block in attention.blocks()], dim=1)  # [B, N, N]
    return rows.to(_held(attention)[0].dtype)


def _check_maps(promised: torch.dtype, results: list[Attention]) -> None:
    """Check shape, dtype, grid and rows of the maps of two images of each size."""
    for attention, size in zip(results, SIZES, strict=True):
        gh, gw = attention.grid
        demand(
            tuple(attention.shape) == (2, gh * gw, gh * gw),
            f"`attention` must return one map for each image, [B=2, N={gh * gw}, N]; got "
            f"{list(attention.shape)}.",
        )
        dtype = _held(attention)[0].dtype
        demand(
            dtype == torch.promote_types(dtype, promised),
            f"the maps must be {promised} or better, unless the source has an attribute `dtype` "
            f"that says otherwise; got {dtype}.",
        )
        if len({one.grid for one in results}) > 1:  # a source may have one grid for all images
            check_grid(attention.grid, size)
        rows = _values(attention).float()
        sums = rows.sum(dim=-1)
        demand(
            bool((rows >= 0).all()) and bool(((sums - 1).abs() <= 1e-2).all()),
            "every row of the map must be >= 0 and sum to one; got "
            f"{float(rows.min()):.3g} at least, sums from {float(sums.min()):.4g} to "
            f"{float(sums.max()):.4g}.",
        )
