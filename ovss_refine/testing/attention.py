"""The conformance suite for sources of attention."""

from collections.abc import Callable

import torch
from torch import Tensor

from ovss_refine.attention import Attention, AttentionSource
from ovss_refine.testing.models import (
    HALF_TOLERANCE,
    ORDER_TOLERANCE,
    SIZES,
    check_interruptions,
    check_refusals,
    demand,
    left_as_found,
    modules_of,
    of_uint8,
    settings_left_alone,
    smooth_images,
)

Make = Callable[[], AttentionSource]


def check_attention_source(make: Make) -> None:
    """Check that a source keeps the promises of `AttentionSource`.

    It is given images of several sizes, types and batches. The maps must lie on the
    grid, row by row, on the images' device, without gradient; be repeatable; not depend on the
    company of other images; and differ between images. The modules that the source holds must be
    left as they were found (hooks, mode, processors, `forward`, parameters), also when one of
    their parts raises. Random numbers and global settings must not be touched.

    Args:
        make: returns a new source; called once. A tiny model with random weights will do.

    Raises:
        AssertionError: if a promise is broken; says which.
    """
    source = make()
    demand(
        isinstance(source, AttentionSource),
        f"a source must have a method `attention`; {type(source).__name__} has none.",
    )
    modules = modules_of(source)
    with left_as_found(modules, "after its use"):
        with settings_left_alone():
            _check_orientation([_check_map(source, size) for size in SIZES])
        _check_manners(source)
        _check_batch(source)
        _check_types(source)
        check_refusals(source.attention)
        if found := of_uint8(source.attention):
            _demand_equal(*found, "be that of the images / 255 where uint8 images are accepted")
    check_interruptions(source, lambda: source.attention(smooth_images(1, 48, 80)))


def _check_orientation(grids: list[tuple[int, int]]) -> None:
    """Check grids that follow the shape of the images; a source may have one grid for all."""
    if len(set(grids)) == 1:
        return
    for (H, W), (gh, gw) in zip(SIZES, grids, strict=True):
        demand(
            (gh - gw) * (H - W) >= 0,
            f"the grid must lie as the image does, (rows, columns); got {(gh, gw)} for {H} x {W}.",
        )


def _check_map(source: AttentionSource, size: tuple[int, int]) -> tuple[int, int]:
    """Check size, rows, device and gradient of the maps of images of one size; return the grid."""
    images = smooth_images(2, *size).requires_grad_()
    before = images.detach().clone()
    attention = source.attention(images)
    demand(
        isinstance(attention, Attention),
        f"`attention` must return `Attention`; got {type(attention).__name__}.",
    )
    gh, gw = attention.grid
    demand(
        tuple(attention.shape) == (2, gh * gw, gh * gw),
        f"`attention` must return one map for each image, [B=2, N={gh * gw}, N]; got "
        f"{list(attention.shape)}.",
    )
    demand(
        attention.device == images.device,
        f"the map must lie on the images' device {images.device}; got {attention.device}.",
    )
    held = attention.factors if attention.weights is None else (attention.weights,)
    demand(
        held is not None and not any(x.requires_grad for x in held),
        "the map must carry no gradient; it requires one.",
    )
    demand(torch.equal(images, before), "`images` must not be changed; they were.")
    rows = _dense(attention)
    sums = rows.sum(dim=-1)
    demand(
        bool((rows >= 0).all()) and bool(((sums - 1).abs() <= 1e-2).all()),
        "every row of the map must be >= 0 and sum to one; got "
        f"{float(rows.min()):.3g} at least, sums from {float(sums.min()):.4g} to "
        f"{float(sums.max()):.4g}.",
    )
    return gh, gw


def _check_manners(source: AttentionSource) -> None:
    """Check that nothing but the images changes the map."""
    images = smooth_images(2, 48, 80)
    first = source.attention(images)
    _demand_equal(first, source.attention(images), "be the same when asked twice")
    with torch.autocast(images.device.type, dtype=torch.bfloat16):
        under_autocast = source.attention(images)
    _demand_equal(first, under_autocast, "not depend on autocast")
    with torch.random.fork_rng(devices=[]):
        torch.rand(7)
        _demand_equal(first, source.attention(images), "not depend on random numbers")
    one, two = _dense(first)
    demand(
        float((one - two).abs().max()) > 0,
        "the maps of different images must differ; they are equal.",
    )


def _check_batch(source: AttentionSource) -> None:
    images = smooth_images(3, 48, 80)
    together = source.attention(images)
    for index in range(3):
        alone = source.attention(images[index : index + 1])
        _demand_equal(together, alone, "not depend on the rest of the batch", index=index)


def _check_types(source: AttentionSource) -> None:
    images = smooth_images(1, 48, 80)
    wanted = source.attention(images)
    for dtype, tolerance in ((torch.float64, ORDER_TOLERANCE), (torch.float16, HALF_TOLERANCE)):
        got = source.attention(images.to(dtype))
        _demand_equal(wanted, got, f"not depend on the images' type, {dtype}", tolerance)


def _dense(attention: Attention) -> Tensor:
    return torch.cat([rows for _, rows in attention.blocks()], dim=1)


def _demand_equal(
    attention: Attention,
    other: Attention,
    promise: str,
    tolerance: float = ORDER_TOLERANCE,
    index: int | None = None,
) -> None:
    """Demand equal maps; with `index`, that `other` is the map of that image of the batch."""
    one, two = _dense(attention), _dense(other)
    one = one if index is None else one[index : index + 1]
    demand(one.shape == two.shape, f"the map must {promise}; got another shape, {list(two.shape)}.")
    if attention.weights is not None:  # rounding of a map that is held in half precision
        tolerance = max(tolerance, 2 * torch.finfo(attention.weights.dtype).eps)
    gap = float((one - two).abs().max() / one.abs().max())
    demand(
        gap <= tolerance, f"the map must {promise}; it differs by {gap:.1e} of its largest entry."
    )
