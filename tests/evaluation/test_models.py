"""Evaluations with tiny random models of the real libraries, on real photographs if present."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.trees import write_tree
from ovss_refine import RefineConfig
from ovss_refine.evaluation import ROWS
from ovss_refine.evaluation.check import check
from ovss_refine.evaluation.dataset import load_dataset
from ovss_refine.evaluation.request import Chosen, EvaluateRequest
from ovss_refine.evaluation.run import run_evaluate

DATA = Path(__file__).parents[3] / "shared" / "data"
COCO = DATA / "coco_real" / "coco_object"


def request(dataset, root, out, **more):
    """Request SCLIP's logits and a vision transformer's attention, both tiny."""
    pytest.importorskip("open_clip", reason="the models need open_clip")
    pytest.importorskip("timm", reason="the models need timm")
    from adapters.tiny_clip import tiny_clip
    from adapters.tiny_models import tiny_vit

    options = {"model": tiny_clip(), "templates": "single", "cache_dir": None}
    return EvaluateRequest(
        dataset=load_dataset(dataset),
        root=root,
        logits=Chosen("sclip", options | {"short_side": 64, "window": 48, "stride": 24}),
        attention=Chosen("timm", {"model": tiny_vit("dino")}),
        config=RefineConfig(logit_scale=1.0),
        out=out,
        device="cpu",
        **more,
    )


def test_coco_object_with_models(tmp_path):
    root = COCO if COCO.is_dir() else tmp_path
    if root is tmp_path:  # the photographs are missing; noise in the same layout is enough
        write_tree(root, "coco-object", count=2, size=(64, 80))
    found = run_evaluate(request("coco-object", root, tmp_path / "out", limit=2))
    assert (found.to_dict()["images"], tuple(found.rows)) == (2, ROWS)
    with np.load(tmp_path / "out/confusion.npz") as counts:
        totals = {int(counts[name].sum()) for name in counts}
    items = load_dataset("coco-object").items(root)[:2]
    pixels = 0
    for item in items:
        with Image.open(item.mask) as mask:
            pixels += int((np.asarray(mask) != 255).sum())
    assert totals == {pixels}
    settings = json.loads((tmp_path / "out/manifest.json").read_text())["settings"]
    # The published scale and threshold of SCLIP on this data set, and the user's options.
    assert settings["logits option logit_scale"] == 50
    assert settings["baseline probability_threshold"] == 0.1
    assert settings["logits option short_side"] == settings["baseline short_side"] == 64
    assert sum(len(c.split("/")) for c in settings["classes"]) == 113
    assert len(settings["logits weights"]) == len(settings["attention weights"]) == 16
    assert settings["logits weights"] != settings["attention weights"]


def test_other_weights_are_other_settings(tmp_path):
    write_tree(tmp_path, "voc20", count=2, size=(64, 80))
    asked = request("voc20", tmp_path, tmp_path / "out", rows=("baseline", "refined"))
    first = run_evaluate(asked)
    again = run_evaluate(request("voc20", tmp_path, tmp_path / "out", rows=asked.rows))
    assert first.rows == again.rows  # the same weights, made again
    model = asked.attention.options["model"]
    next(model.parameters()).data.mul_(1.5)
    with pytest.raises(ValueError, match=r"attention weights was '\w{16}', is '\w{16}'"):
        run_evaluate(asked)


def test_coco_real_is_sound():
    if not COCO.is_dir():
        pytest.skip(f"the photographs in {COCO} are missing")
    found = check(load_dataset("coco-object"), COCO, quiet=True)
    assert (found.images, found.good, found.problems) == (60, 60, [])
