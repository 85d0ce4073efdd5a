"""Golden vectors of more methods; image tower, images and texts are those of `peer_vectors`.

The folder is `OVSS_REFINE_PEER_VECTORS2`, else ../shared/data/peer_vectors2 beside the checkout;
without it the tests that need it are skipped. Its README documents every array.
"""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

# As its README states: a float32 computation against stored values from float64.
FEATURES = 2e-5
COSINES = 5e-6


def folder():
    """The folder of the vectors, or skip."""
    named = os.environ.get("OVSS_REFINE_PEER_VECTORS2")
    path = Path(named or Path(__file__).parents[3] / "shared" / "data" / "peer_vectors2")
    if not path.is_dir():
        pytest.skip(f"no golden vectors: `{path}` is not a folder (set OVSS_REFINE_PEER_VECTORS2)")
    return path


@cache
def load(name):
    """The arrays of one file as tensors, float16 widened; fails on an array that is missing."""
    with np.load(folder() / f"{name}.npz") as arrays:
        return {
            key: torch.from_numpy(a.astype(np.float32) if a.dtype == np.float16 else a)
            for key, a in arrays.items()
        }


@cache
def metadata():
    """Settings and statistics; what belongs to the seed of the vectors is only there."""
    return json.loads((folder() / "metadata.json").read_text())


def sampled(maps):
    """[..., H, W] maps at the rows and columns that the vectors keep of pixels."""
    return maps[..., 3::16, 5::16]
