"""Golden vectors of more methods; image tower, images and texts are those of `peer_vectors`.

The folder is `OVSS_REFINE_PEER_VECTORS2`, else ../shared/data/peer_vectors2 beside the checkout;
without it the tests that need it are skipped. Its README documents every array.
"""

from adapters.peer_vectors import Vectors

# As its README states: a float32 computation against stored values from float64.
FEATURES = 2e-5
COSINES = 5e-6


VECTORS = Vectors("OVSS_REFINE_PEER_VECTORS2", "peer_vectors2")
load, metadata = VECTORS.load, VECTORS.metadata


def sampled(maps):
    """[..., H, W] maps at the rows and columns that the vectors keep of pixels."""
    return maps[..., 3::16, 5::16]
