"""The command `demo`: what it draws and prints, and what it replaces."""

import re

import numpy as np
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from ovss_refine import RefineConfig, examples
from ovss_refine.cli import main
from ovss_refine.cli.demo import COLOURS
from ovss_refine.images import draw
from ovss_refine.images.read import read_image

STEMS = ["astronaut", "coffee", "hopper", "raccoon"]


def tree(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def says(labels, names):
    counts = np.bincount(labels.ravel(), minlength=len(names))
    assert (counts > 0).sum() > 1  # so that a mistake would be noticed
    order = np.argsort(-counts, kind="stable")
    return ", ".join(f"{names[i]} {counts[i] / labels.size:.1%}" for i in order if counts[i])


def check_page(path, stem, after, said):
    image, names = read_image(examples.photograph(stem)), examples.example_labels(stem).names
    logits = examples.read_example(stem).logits.float()[None]
    smooth = torch.nn.functional.interpolate(logits, after.shape, mode="bilinear")
    prompts = examples.example_labels(stem).prompt_index
    before = np.array(prompts)[smooth[0].argmax(0).numpy()]
    changed = np.mean(before != after)
    assert changed > 0.01
    text = f"  before  {says(before, names)}\n  after   {says(after, names)}\n  {changed:.1%} of"
    assert re.search(re.escape(text) + r" the pixels changed, in \d+\.\d\d s\n", said)
    H, W = after.shape
    page = read_image(path)
    start = next(y for y in range(len(page)) if (page[y : y + H, :W] == image).all())
    rows, step = page[start : start + H], W + draw.MARGIN_PX
    for place, labels in ((1, before), (2, after)):
        panel = rows[:, place * step : place * step + W]
        assert_array_equal(panel, draw.overlay(image, labels, COLOURS))
    below = page[start + H :].reshape(-1, 3).tolist()
    for colour in COLOURS[: len(names)].tolist():  # the legend
        assert colour in below


def test_demo_shows_before_and_after_and_overwrites_only_with_the_flag(
    tmp_path, capsys, monkeypatch
):
    calls, refine = [], examples.refine
    spy = lambda *args, **more: calls.append((*args, refine(*args, **more))) or calls[-1][-1]  # noqa: E731
    monkeypatch.setattr(examples, "refine", spy)
    out = tmp_path / "new" / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for stem, (*_, config, result) in zip(STEMS, calls, strict=True):
        assert config == RefineConfig()
        check_page(out / f"{stem}_before_after.png", stem, result.labels.numpy(), said)
    with Image.open(out / "before_after.png") as sheet:
        assert sheet.width == 808
        assert sheet.height > 4 * 200
    files = tree(out)
    (out / "coffee_before_after.png").write_bytes(b"mine")
    assert main(["demo", "--out", str(out)]) == 2
    assert re.search(r"astronaut_.*` exists \(5 of 5 .*--overwrite", capsys.readouterr().err)
    assert tree(out) == files | {"coffee_before_after.png": b"mine"}
    assert len(calls) == 4  # refused before any work
    assert len(files) == 5
    monkeypatch.setattr(examples, "refine", lambda *_, **__: calls.pop(0)[-1])
    assert main(["demo", "--out", str(out), "--overwrite"]) == 0
    assert tree(out) == files
