"""The published size of a resized image."""

import pytest

from ovss_refine.baseline.resize import resized_size


@pytest.mark.parametrize(
    ("size", "short", "wanted"),
    [
        ((500, 375), 336, (448, 336)),
        ((375, 500), 336, (336, 448)),
        ((1024, 2048), 560, (560, 1120)),
        ((1024, 2048), 448, (448, 896)),
        ((100, 1000), 336, (205, 2048)),  # the long side sets the bound
        ((3, 2), 5, (8, 5)),  # 7.5, rounded half up
        ((2, 3), 5, (5, 8)),
    ],
)
def test_resized_size(size, short, wanted):
    assert resized_size(*size, short) == wanted
