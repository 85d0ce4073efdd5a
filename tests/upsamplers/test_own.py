"""The upsampler of docs/writing_an_adapter.md, with a model of AnyUp's signature in its place."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from doc_pages import blocks
from doc_world import scene
from ovss_refine import Refiner
from ovss_refine.testing import check_upsampler

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class TinyAnyUp(nn.Module):
    """Pixels attend to patches of a like colour; the values are the features, as in AnyUp."""

    def __init__(self):
        super().__init__()
        self.keys = nn.Conv2d(3, 3, 1)
        self.seen = []

    def forward(self, image, features, output_size=None, vis_attn=False, q_chunk_size=None):
        assert not self.training
        self.seen.append(image)
        size = image.shape[-2:] if output_size is None else output_size
        q = F.adaptive_avg_pool2d(image, size).flatten(2)
        k = self.keys(F.adaptive_avg_pool2d(image, features.shape[-2:])).flatten(2)
        weights = (q.mT @ k).softmax(dim=-1)  # [B, H * W, N]
        return (features.flatten(2) @ weights.mT).unflatten(2, size)


@pytest.fixture
def hub(monkeypatch):
    """What the page's code defines, what it loads, and what it asks torch.hub for."""
    torch.manual_seed(0)
    model, asked = TinyAnyUp(), []

    def load(repo, name, **options):
        asked.append((repo, name, options))
        return model

    monkeypatch.setattr(torch.hub, "load", load)
    (block,) = [b for b in blocks("docs/writing_an_adapter.md", "python") if "hub.load" in b.text]
    names = {}
    exec(block.text, names)
    return names, model, asked


def test_a_refinement_ends_in_the_model(hub):
    names, model, asked = hub
    assert asked == []  # nothing is loaded before it is used
    logits, attention, image = scene()
    result = names["refiner"](logits, attention, image)
    assert asked == [("wimmerth/anyup", "anyup", {"trust_repo": True})]
    (seen,) = model.seen
    assert_close(seen[0], (image - MEAN[:, None, None]) / STD[:, None, None])
    kept = result.kept.nonzero()[:, 0]
    with torch.no_grad():
        large = model(seen, result.discrepancy[None, kept])
    assert torch.equal(result.labels, kept[large[0].argmax(dim=0)])
    assert not torch.equal(result.labels, Refiner()(logits, attention, image).labels)
    names["refiner"](logits, attention, image)
    assert len(asked) == 1  # and once


def test_it_keeps_what_an_upsampler_promises(hub):
    check_upsampler(lambda: hub[0]["upsample"], constants=True)
