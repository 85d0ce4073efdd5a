"""Golden vectors: outputs of the authors' released code on random weights.

The folder is `OVSS_REFINE_PEER_VECTORS`, else the `peer_vectors` beside the second set if
`OVSS_REFINE_PEER_VECTORS2` names that, else ../shared/data/peer_vectors beside the checkout;
without it the tests that need it are skipped. Its README documents every array.
"""

import json
import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch

from ovss_refine.labels import Labels

# As its README states: float32 against the stored float32, for values of order one.
TOLERANCE = 1e-5


class Vectors:
    """The files of a folder, named by an environment variable or beside the checkout.

    `other` is the variable of vectors that were computed from these: theirs lie beside them.
    """

    def __init__(self, variable, name, other=""):
        self.variable, self.name, self.other = variable, name, other

    def path(self):
        """Where the vectors are, or would be."""
        if given := os.environ.get(self.variable):
            return Path(given)
        if given := os.environ.get(self.other):
            beside = Path(given).absolute().parent / self.name
            if beside.is_dir():
                return beside
        return Path(__file__).parents[3] / "shared" / "data" / self.name

    def folder(self):
        """The folder of the vectors, or skip."""
        path = self.path()
        if not path.is_dir():
            pytest.skip(f"no golden vectors: `{path}` is not a folder (set {self.variable})")
        return path

    @cache  # noqa: B019 - there are two of these, for as long as the tests run
    def load(self, name):
        """The arrays of one file as tensors, float16 widened; fails on an array that is missing."""
        with np.load(self.folder() / f"{name}.npz") as arrays:
            return {
                key: torch.from_numpy(a.astype(np.float32) if a.dtype == np.float16 else a)
                for key, a in arrays.items()
            }

    @cache  # noqa: B019
    def metadata(self):
        """Settings, cases, statistics; what belongs to the seed of the vectors is only there."""
        return json.loads((self.folder() / "metadata.json").read_text())


VECTORS = Vectors("OVSS_REFINE_PEER_VECTORS", "peer_vectors", "OVSS_REFINE_PEER_VECTORS2")
folder, load, metadata = VECTORS.folder, VECTORS.load, VECTORS.metadata


@cache
def model():
    """A CLIP of open_clip whose image tower has the golden weights; its text tower is random."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        64,
        open_clip.CLIPVisionCfg(layers=12, width=128, head_width=64, patch_size=16, image_size=224),
        open_clip.CLIPTextCfg(width=16, heads=2, layers=1),
        quick_gelu=True,
    ).eval()
    weights = load("visual_tower_fp16")
    clip.visual.load_state_dict({k.removeprefix("visual."): v for k, v in weights.items()})
    return clip


def image(H, W, top=0, left=0):
    """[1, 3, H, W] normalised pixels: a crop of the large image, or the small image itself."""
    inputs = load("inputs")
    if (H, W) == (224, 224):
        return inputs["img_224x224"][None]
    return inputs["img_336x448"][None, :, top : top + H, left : left + W]


def text(Q):
    """The Q query vectors as [Q, 64] unit rows, the class of each, and these as `Labels`."""
    inputs = load("inputs")
    index = inputs[f"prompt_index{Q}"].tolist()
    rows = [[] for _ in range(max(index) + 1)]
    for i, c in enumerate(index):
        rows[c].append(f"prompt {i}")
    classes = Labels(tuple(f"class {c}" for c in range(len(rows))), tuple(map(tuple, rows)))
    assert list(classes.prompt_index) == index
    return SimpleNamespace(features=inputs[f"text{Q}"], prompt_index=index, classes=classes)


def assert_golden(actual, expected, tolerance=TOLERANCE):
    """Compare by the largest absolute difference."""
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0, check_dtype=False)
