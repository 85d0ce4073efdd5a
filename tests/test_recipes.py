"""The recipes of docs/recipes.md: the very code of that page, on tiny models of the libraries."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ovss_refine import Attention, RefineConfig, Refiner, refine
from ovss_refine.attention import affinity

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
EXTRA = "needs the extra `models`"
TESTED = {
    "A Hugging Face `*ForSemanticSegmentation`",
    "An mmsegmentation-style model",
    "torchvision",
    "A plain function",
    "As one graph: `torch.export` and ONNX",
}


def sections():
    """The Python blocks under each heading of the page."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    found = {
        title: re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    assert "```python" not in parts[0]
    return {title: blocks for title, blocks in found.items() if blocks}


def run(title, **names):
    """Run the blocks under a heading, one after the other, with `names` given."""
    for block in sections()[title]:
        exec(compile(block, f"{PAGE.name}: {title}", "exec"), names)
    return names


def photographs(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def tensor(photograph):
    return torch.from_numpy(photograph.copy()).permute(2, 0, 1)


def test_every_section_with_code_is_run_here():
    assert set(sections()) == TESTED


def test_hugging_face(tmp_path):
    pytest.importorskip("torchvision", reason=EXTRA)
    transformers = pytest.importorskip("transformers", reason=EXTRA)
    from PIL import Image

    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        hidden_sizes=[8, 8, 16, 16],
        decoder_hidden_size=16,
        num_labels=5,
    )
    model = transformers.SegformerForSemanticSegmentation(config)
    model.decode_head.classifier.weight.data *= 1000  # or no patch is sure of anything
    model.save_pretrained(tmp_path)
    size = {"height": 128, "width": 160}
    transformers.SegformerImageProcessor(size=size).save_pretrained(tmp_path)
    images = [Image.fromarray(x) for x in photographs((60, 80), (90, 50))]
    names = run("A Hugging Face `*ForSemanticSegmentation`", name=str(tmp_path), images=images)
    outputs, maps = names["outputs"], names["maps"]
    assert outputs.logits.shape[2:] == (32, 40)
    assert [x.shape for x in maps] == [(60, 80), (90, 50)]
    assert names["labels"] is maps[0]
    features = outputs.hidden_states[-1]
    assert features.shape[2:] == (4, 5)
    for b, image in enumerate(images):
        attention = affinity(features[b], 0.1)
        expected = Refiner()(outputs.logits[b], attention, tensor(np.asarray(image)))
        assert_close(maps[b], expected.labels)


class Segmentor(nn.Module):
    """An mmsegmentation model as far as its users see it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv2d(3, 4, 5, stride=4, padding=2)
        self.head.weight.data *= 20

    def encode_decode(self, inputs, batch_img_metas):
        size = batch_img_metas[0]["img_shape"]
        return nn.functional.interpolate(self.head(inputs), size, mode="bilinear")

    def predict(self, inputs, data_samples=None):
        metas = [{"img_shape": inputs.shape[2:]}] * len(inputs)
        return [
            SimpleNamespace(seg_logits=SimpleNamespace(data=logits))
            for logits in self.encode_decode(inputs, metas)
        ]


def tiny_backbone():
    timm = pytest.importorskip("timm", reason=EXTRA)
    torch.manual_seed(1)
    return timm.create_model("resnet18", pretrained=False, num_classes=0).eval()


def test_mmsegmentation():
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    names = {"model": Segmentor(), "backbone": tiny_backbone(), "inputs": 2 * images - 1}
    names["batch_img_metas"] = [{"img_shape": (64, 96)}] * 2
    names = run("An mmsegmentation-style model", images=images, **names)
    attention = names["attention"].attention(images)
    assert attention.grid == (2, 3)
    expected = refine(names["seg_logits"], attention, images, RefineConfig()).labels
    assert_close(names["labels"], expected)
    # The first block's list was the same; the second has replaced it.
    first = sections()["An mmsegmentation-style model"][0]
    exec(first, names)
    assert_close(torch.stack(names["labels"]), expected)


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "fcn_resnet50"])
def test_torchvision(name):
    segmentation = pytest.importorskip("torchvision.models.segmentation", reason=EXTRA)
    torch.manual_seed(0)
    model = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=4).eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():  # or no patch is sure of anything
        model.classifier[-1].bias.zero_()
        model.classifier[-1].weight *= 3 / model(images)["out"].std()
    names = run("torchvision", model=model, images=images)
    with torch.no_grad():
        whole = model(names["inputs"])["out"]
    logits = names["logits"]
    assert_close(nn.functional.interpolate(logits, (64, 96), mode="bilinear"), whole)
    attention = affinity(names["features"], 0.1)
    assert_close(names["labels"], refine(logits, attention, images, RefineConfig()).labels)


def test_a_plain_function():
    segmentor = Segmentor()
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    names = run("A plain function", score=segmentor.head, backbone=tiny_backbone(), images=images)
    attention = names["attention"].attention(images)
    result = Refiner()(segmentor.head(images), attention, images, prompt_index=[0, 0, 1, 2])
    assert_close(names["result"].labels, result.labels)


@pytest.mark.slow("an ONNX export takes ten seconds")
def test_onnx(tmp_path, monkeypatch, uncached):
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason="needs the extra `export`")
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 5, 8, 9, generator=generator)
    attention = affinity(torch.randn(2, 6, 5, 7, generator=generator), 0.3).weights
    image = torch.rand(2, 3, 40, 52, generator=generator)
    names = run(
        "As one graph: `torch.export` and ONNX",
        logits=logits.numpy(),
        attention=attention.numpy(),
        grid=(5, 7),
        image=image.numpy(),
    )
    expected = refine(logits, Attention(attention, (5, 7)), image, RefineConfig())
    assert np.mean(names["labels"] == expected.labels.numpy()) > 0.999
    np.testing.assert_allclose(names["discrepancy"], expected.discrepancy, atol=1e-4)
