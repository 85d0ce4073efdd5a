"""`logit_scale="auto"` with real logits, and with a head of 130 prompts, most of one class."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ovss_refine import Refiner
from ovss_refine.attention import affinity
from ovss_refine_adapters.backbones.timm import TimmBackbone

DATA = Path(__file__).parents[3] / "shared" / "data"
MODEL, VOC = DATA / "dinov2_s14", DATA / "voc_real"
FACTORS = (0.3, 0.6, 3.0)
AUTO = Refiner(logit_scale="auto")


def photograph(stem):
    with Image.open(VOC / f"VOC2012/JPEGImages/{stem}.jpg") as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def photographs(count):
    stems = (VOC / "VOC2012/ImageSets/Segmentation/val.txt").read_text().split()
    return [(stem, photograph(stem)) for stem in stems[:: len(stems) // count][:count]]


def assert_no_factor_matters(logits, *rest, **more):
    wanted = AUTO(logits, *rest, **more)
    for factor in FACTORS:
        found = AUTO(factor * logits, *rest, **more)
        assert (found.labels != wanted.labels).float().mean() < 0.005
    return wanted


@pytest.mark.skipif(not VOC.is_dir(), reason=f"the photographs in {VOC} are missing")
@pytest.mark.parametrize("kind", ["logits", "logits_weak"])
def test_a_segmenters_logits(kind):
    for stem, image in photographs(6):
        with np.load(VOC / f"arrays/{stem}.npz") as arrays:
            logits, features = (torch.from_numpy(arrays[k]).float() for k in (kind, "features"))
        result = assert_no_factor_matters(logits, affinity(features, 0.05), image)
        assert len(result.labels.unique()) > 1


@pytest.fixture(scope="module")
def head():
    """Whoever has the head's photographs: cosines [130, 37, 37] and attention of an image."""
    for path in (MODEL, VOC):
        if not path.is_dir():
            pytest.skip(f"{path} is missing")
    with np.load(MODEL / "text_map.npz") as file:
        given = {k: torch.from_numpy(x) for k, x in file.items() if x.dtype.kind != "U"}
    text = F.normalize(given["coco_text"].float() - given["text_mean"], dim=-1)
    backbone = TimmBackbone(MODEL, size=(518, 518))

    def make(image):
        with torch.no_grad():
            features = backbone.features(image[None].float() / 255)[0]
        x = F.normalize((features.flatten(1).T - given["mean"]) / given["std"], dim=-1)
        cosines = (F.normalize(x @ given["W"], dim=-1) @ text.T).T
        return cosines.view(-1, *features.shape[1:]), affinity(features, 0.1)

    make.index = given["voc_index"]
    return make


def test_a_head_of_many_prompts(head):
    index = head.index
    assert len(index) == 130
    assert (index == 0).sum() > 100
    foreground = {"auto": 0.0, "usual": 0.0, "low": 0.0}
    for _, image in photographs(5):
        cosines, attention = head(image)
        given = attention, image
        auto = assert_no_factor_matters(cosines, *given, prompt_index=index)
        usual = Refiner(logit_scale=30.0)(cosines, *given, prompt_index=index)
        low = Refiner(logit_scale=2.0)(cosines, *given, prompt_index=index)
        for name, result in (("auto", auto), ("usual", usual), ("low", low)):
            foreground[name] += float((result.labels > 0).float().mean()) / 5
    # At a low scale the background's many prompts win everywhere together.
    assert foreground["auto"] > 0.8 * foreground["usual"] > 0.1
    assert foreground["low"] < 0.2 * foreground["usual"]
