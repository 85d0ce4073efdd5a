"""The gallery's tutorials run without weights, and as in Colab, with tiny models for the others."""

import re

import pytest
import torch
from PIL import Image

from conftest import MISSING
from doc_pages import ROOT
from doc_world import install_tiny_models

FOLDER = ROOT / "docs" / "gallery"
TUTORIALS = ["plot_a_quick_start", "plot_b_your_model", "plot_c_your_data"]
COLAB = '"google.colab" in sys.modules'
SEGFORMER = "nvidia/segformer-b0-finetuned-ade-512-512"


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """The images that a script shows; it runs in a folder of its own."""
    images = []
    monkeypatch.setattr(Image.Image, "show", lambda image: images.append(image.size))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return images


def run(name, changes=None):
    """Run a script, parts of it replaced, and return its names."""
    text = (FOLDER / f"{name}.py").read_text()
    for before, after in (changes or {}).items():
        assert before in text
        text = text.replace(before, after)
    names = {"__name__": "__main__"}
    exec(compile(text, f"{name}.py", "exec"), names)
    return names


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_needs_no_weights(name, shown):
    names = run(name)
    assert names["PRETRAINED"] is False
    assert shown
    text = (FOLDER / f"{name}.py").read_text()
    assert "\n# %%\n" in text  # or it would be one cell of a notebook


def test_the_first_tutorial_segments_the_photograph(shown, capsys):
    found = run(TUTORIALS[0])["found"]
    assert found.names == ("cup", "table")
    printed = capsys.readouterr().out
    assert all(f"{name:12}  {pixels:7,} pixels" in printed for name, pixels, _ in found.areas())


def test_the_refinement_helps_where_the_last_tutorial_evaluates(shown):
    names = run(TUTORIALS[2])
    result = names["result"]
    assert result.counts["refined"].sum() == 5 * 96 * 128
    assert result.miou["refined"] > result.miou["baseline"] > 80


@pytest.mark.parametrize("name", TUTORIALS)
def test_the_notebook_for_colab_is_that_of_the_script(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    pytest.importorskip("sphinx_gallery", reason="sphinx-gallery is not installed ([docs])")
    import notebooks

    assert list(notebooks.TUTORIALS) == TUTORIALS
    path = notebooks.FOLDER / f"{name}.ipynb"
    assert path.read_text(encoding="utf-8") == notebooks.notebook(name), (
        "run `python docs/_ext/notebooks.py`"
    )
    address = re.fullmatch(
        r"https://colab\.research\.google\.com/github/[\w-]+/[\w-]+/blob/main/(docs/.+\.ipynb)",
        notebooks.address(name),
    )
    assert ROOT / address[1] == path


@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} ([models])")
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_in_colab(name, shown, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    install_tiny_models(monkeypatch)
    changes = {COLAB: "True"}
    if name == TUTORIALS[1]:
        changes |= {SEGFORMER: write_segformer(tmp_path / "segformer")}
    names = run(name, changes)
    assert names["PRETRAINED"] is True
    assert shown
    if name == TUTORIALS[1]:
        assert names["logits"].shape == (1, 5, 24, 32)
        assert names["names"] == ["sky", "road", "tree", "car", "sign"]


def write_segformer(folder):
    """Write a tiny SegFormer and its processor, as the hub has them; return the folder."""
    import transformers

    torch.manual_seed(0)
    names = ["sky", "road", "tree", "car", "sign"]
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        hidden_sizes=[8, 8, 16, 16],
        decoder_hidden_size=16,
        id2label=dict(enumerate(names)),
    )
    model = transformers.SegformerForSemanticSegmentation(config)
    model.decode_head.classifier.weight.data *= 1000  # or no patch is sure of anything
    model.save_pretrained(folder)
    size = {"height": 96, "width": 128}
    transformers.SegformerImageProcessor(size=size).save_pretrained(folder)
    return str(folder)
