"""PAMR against loops over pixels, and its laws."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ovss_refine.baseline.pamr import pamr


def written_out(values, image, iterations, dilations):
    """One image in float64: [K, H, W] maps, [3, H, W] guide of the same size."""
    _, H, W = values.shape
    ring = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    offsets = [(d * y, d * x) for d in dilations for y, x in ring]
    at = lambda y, x: (min(max(y, 0), H - 1), min(max(x, 0), W - 1))  # noqa: E731
    weights = np.zeros((H, W, len(offsets)))
    for y in range(H):
        for x in range(W):
            centre = image[:, y, x]
            around = np.array([image[:, *at(y + j, x + i)] for j, i in offsets])
            samples = np.concatenate([around, [centre] * len(dilations)])
            spread = samples.std(axis=0, ddof=1)
            score = -(np.abs(around - centre) / (1e-8 + 0.1 * spread)).mean(axis=1)
            e = np.exp(score - score.max())
            weights[y, x] = e / e.sum()
    for _ in range(iterations):
        moved = np.zeros_like(values)
        for y in range(H):
            for x in range(W):
                for n, (j, i) in enumerate(offsets):
                    moved[:, y, x] += weights[y, x, n] * values[:, *at(y + j, x + i)]
        values = moved
    return values


@pytest.mark.parametrize(("iterations", "dilations"), [(1, (1,)), (3, (1, 2)), (2, (8, 16))])
def test_equals_loops(rng, iterations, dilations):
    values, image = rng.normal(size=(2, 2, 7, 9)), rng.random((2, 3, 7, 9))
    got = pamr(
        torch.from_numpy(values),
        torch.from_numpy(image),
        iterations=iterations,
        dilations=dilations,
    )
    for b in range(2):
        wanted = written_out(values[b], image[b], iterations, dilations)
        assert_close(got[b].double(), torch.from_numpy(wanted), atol=1e-5, rtol=0)


def test_constants_and_the_range_are_preserved():
    image = torch.rand(1, 3, 20, 30)
    assert_close(pamr(torch.full((1, 2, 20, 30), 0.3), image), torch.full((1, 2, 20, 30), 0.3))
    values = torch.rand(1, 4, 20, 30)
    out = pamr(values, image)
    assert float(out.min()) >= float(values.min())
    assert float(out.max()) <= float(values.max())


def test_zero_iterations_change_nothing():
    values = torch.rand(1, 2, 5, 6)
    assert_close(pamr(values, torch.rand(1, 3, 5, 6), iterations=0), values)


def test_flat_image_averages_the_ring():
    values = torch.rand(1, 1, 9, 9)
    out = pamr(values, torch.full((1, 3, 9, 9), 0.5), iterations=1, dilations=(1,))
    patch = values[0, 0, 3:6, 3:6]
    assert_close(out[0, 0, 4, 4], (patch.sum() - patch[1, 1]) / 8)


def test_scores_do_not_cross_an_edge():
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 1.0
    values = torch.zeros(1, 1, 16, 16)
    values[..., 8:] = 1.0
    values += 0.1 * torch.rand(1, 1, 16, 16)
    out = pamr(values, image, dilations=(1, 2))
    assert float(out[..., :8].max()) < 0.2 < 0.9 < float(out[..., 8:].min())


def test_guide_is_resized_and_its_scale_does_not_matter():
    values, image = torch.rand(1, 2, 12, 14), torch.rand(1, 3, 24, 28)
    small = torch.nn.functional.interpolate(image, (12, 14), mode="bilinear")
    wanted = pamr(values, small)
    assert_close(pamr(values, image), wanted)
    factor = torch.tensor([2.0, 5.0, 9.0]).view(1, 3, 1, 1)
    assert_close(pamr(values, image * factor - 1), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": -1}, r"`iterations` must be at least 0; got -1"),
        ({"dilations": ()}, r"`dilations` must have at least one distance; got none"),
        ({"dilations": (8, 0)}, r"`dilations` must be at least 1; got 0"),
        ({"image": torch.zeros(2, 3, 4, 4)}, r"`image` must have shape \[B=1, C=3, h, w\]"),
        ({"values": torch.zeros(2, 4, 4)}, r"`values` must have shape \[B, K, H, W\]"),
    ],
)
def test_bad_input(options, message):
    given = {"values": torch.zeros(1, 2, 4, 4), "image": torch.zeros(1, 3, 4, 4)} | options
    with pytest.raises(ValueError, match=message):
        pamr(**given)
