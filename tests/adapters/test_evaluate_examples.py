"""The examples of docs/evaluation.md: the very code of that page, on tiny models and data."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn

from adapters.tiny_models import images, tiny_vit
from doc_world import install_tiny_models
from evaluation.trees import LAYOUTS, read_labels, write_tree
from ovss_refine import Refiner, load_attention
from ovss_refine.attention import affinity
from ovss_refine.evaluation.dataset import load_dataset

TEXT = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
SIZE = (48, 64)


def run(part, **names):
    """Run the block that has `part`, and return its names."""
    (block,) = [block for block in BLOCKS if part in block]
    exec(compile(block, "docs/evaluation.md", "exec"), names)
    return names


def counts_of(root, name, ids, M, segment, attend):
    """Count with a refinement, image by image, and a histogram."""
    total = np.zeros((M, M), int)
    for id in ids:
        with Image.open(root / LAYOUTS[name][0].format(id)) as opened:
            pixels = torch.from_numpy(np.array(opened)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            labels = Refiner()(segment(pixels), attend(pixels), pixels).labels[0].numpy()
        truth = read_labels(root, name, id)
        np.add.at(total, (truth[truth != 255], labels[truth != 255]), 1)
    return total


def assert_close(counts, expected):
    assert expected.sum() == counts.sum()
    assert np.abs(expected - counts).sum() <= 0.005 * expected.sum()


def pairs_of(root, name, ids):
    image, mask = LAYOUTS[name][:2]
    return [(Image.open(root / image.format(i)), Image.open(root / mask.format(i))) for i in ids]


def project(M):
    generator = torch.Generator().manual_seed(0)
    weights = 30 * torch.randn(M, 3, generator=generator)
    return lambda x: torch.einsum("kc,bchw->bkhw", weights, nn.functional.avg_pool2d(x, 8) - 0.5)


def attend(x):
    return affinity(nn.functional.avg_pool2d(x, 8) - 0.5, 0.1)


def test_every_example_is_run_here():
    assert len(BLOCKS) == 5


def test_the_first_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ids = write_tree(tmp_path, "folder", 2, size=SIZE)
    pairs = [(x, np.asarray(mask).copy() % 3) for x, mask in pairs_of(tmp_path, "folder", ids)]
    names = run("print(result)", segment=project(3), attend=attend, pairs=pairs)
    assert "| refined " in capsys.readouterr().out
    assert names["result"].out == Path("results/mine")
    assert (tmp_path / "results/mine/results.json").is_file()


def test_hugging_face(tmp_path):
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        hidden_sizes=[8, 8, 16, 16],
        decoder_hidden_size=16,
        id2label={i: name for i, name in enumerate(["sky", "road", "tree", "car", "sign"])},
    )
    model = transformers.SegformerForSemanticSegmentation(config)
    model.decode_head.classifier.weight.data *= 1000  # or no patch is sure of anything
    model.save_pretrained(tmp_path / "model")
    size = {"height": 96, "width": 128}
    processor = transformers.SegformerImageProcessor(size=size)
    processor.save_pretrained(tmp_path / "model")
    ids = write_tree(tmp_path, "folder", 2, size=SIZE)
    data = [
        {"image": image, "annotation": mask} for image, mask in pairs_of(tmp_path, "folder", ids)
    ]
    result = run("transformers", name=str(tmp_path / "model"), dataset=data)["result"]
    model.eval()

    def outputs(pixels):
        pil = Image.fromarray((255 * pixels[0]).round().byte().permute(1, 2, 0).numpy())
        given = processor(images=[pil], return_tensors="pt")
        return model(**given, output_hidden_states=True)

    expected = counts_of(
        tmp_path,
        "folder",
        ids,
        5,
        lambda x: outputs(x).logits,
        lambda x: affinity(outputs(x).hidden_states[-1], 0.1),
    )
    assert_close(result.counts["refined"], expected)
    assert result.names == ("sky", "road", "tree", "car", "sign")


def test_mmsegmentation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = write_tree(tmp_path / "VOCdevkit", "voc21", 2, size=SIZE)
    segment = project(21)

    class Segmentor:
        """An mmsegmentation model as far as its users see it."""

        def predict(self, inputs):
            logits = segment(inputs / 2 + 0.5)
            return [SimpleNamespace(seg_logits=SimpleNamespace(data=one)) for one in logits]

    backbone = pytest.importorskip("timm").create_model("resnet18", num_classes=0).eval()
    names = {"model": Segmentor(), "preprocess": lambda x: 2 * x - 1, "backbone": backbone}
    result = run("seg_logits", **names)["result"]
    source = load_attention("affinity", model=backbone, temperature=0.1)
    expected = counts_of(tmp_path / "VOCdevkit", "voc21", ids, 21, segment, source.attention)
    assert_close(result.counts["refined"], expected)


def test_torchvision(tmp_path, monkeypatch):
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    from torchvision.transforms.functional import normalize

    monkeypatch.chdir(tmp_path)
    ids = write_tree(tmp_path / "VOCdevkit", "voc21", 2, size=SIZE)
    torch.manual_seed(0)
    model = segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)
    with pytest.raises(ValueError, match=r"in training mode\. Call its method `eval\(\)`"):
        run("VOCSegmentation", model=model)
    model.eval()
    with torch.no_grad():  # or no patch is sure of anything
        model.classifier[-1].bias.zero_()
        model.classifier[-1].weight *= 3 / model(images(1, *SIZE))["out"].std()
    result = run("VOCSegmentation", model=model)["result"]

    def features(x):
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        return model.backbone(normalize(x, mean, std))["out"]

    expected = counts_of(
        tmp_path / "VOCdevkit",
        "voc21",
        ids,
        21,
        lambda x: model.classifier(features(x)),
        lambda x: affinity(features(x), 0.1),
    )
    assert_close(result.counts["refined"], expected)
    assert result.names == load_dataset("voc21").names


def test_numpy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    install_tiny_models(monkeypatch)
    ids = write_tree(tmp_path / "my_data", "folder", 2, size=SIZE)

    def score(image):
        h, w = SIZE[0] // 8, SIZE[1] // 8
        patches = image.reshape(h, 8, w, 8, 3).mean((1, 3))  # [h, w, 3]
        return np.stack([40 * (patches[..., c % 3] - 0.1 * c) for c in range(5)])

    result = run("np.stack", score=score)["result"]
    source = load_attention("dinov2-b14-reg")

    def segment(x):
        return torch.from_numpy(score(x[0].permute(1, 2, 0).numpy()))[None]

    expected = counts_of(tmp_path / "my_data", "folder", ids, 5, segment, source.attention)
    assert_close(result.counts["refined"], expected)
    assert tiny_vit("registers").num_prefix_tokens == 5  # what the name stands for here
