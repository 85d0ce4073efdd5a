"""Serve the page with tiny models in place of downloads.

`python tiny_page.py` prints the address, then serves until its standard input is closed. All names
of sources stand for the same model, except "clip", whose weights are unavailable.
"""

import sys
from importlib.metadata import EntryPoint

import torch
import torch.nn.functional as F

from ovss_refine import Attention, Logits, registry
from ovss_refine.app.request import AppRequest
from ovss_refine.app.server import running
from ovss_refine.sources import listing
from ovss_refine_adapters.about import ABOUT

GRID = (12, 16)
LIMITS = {"max_bytes": 400_000, "max_pixels": 300_000}


class ColourLogits:
    """Logits by colour: the first class is red, the second green, the third blue."""

    def __init__(self, classes):
        self.classes = classes

    def with_classes(self, classes):
        return ColourLogits(classes)

    def logits(self, images):
        small = F.adaptive_avg_pool2d(images, GRID)
        names = [text.partition("/")[0] for text in self.classes]
        values = torch.stack([small[:, i % 3] for i in range(len(names))], dim=1)
        return Logits(values, scale=8.0, names=names)


class ColourAttention:
    """Patches attend to patches of the same colour."""

    def attention(self, images):
        small = F.adaptive_avg_pool2d(images, GRID).flatten(2)
        distance = torch.cdist(small.mT, small.mT)
        return Attention((-8 * distance).softmax(-1), GRID)


def missing(classes):
    raise FileNotFoundError("the weights `tiny/clip` must be available; pass `--models-dir`.")


def about(package):
    """Facts about the sources whose names the tiny ones have."""
    return ABOUT


def sources(kind, registered=registry._registered):
    if kind == "decision":
        return registered(kind)
    makes = "ColourLogits" if kind == "logits" else "ColourAttention"
    names = ("kk-mean", "sclip", "clip") if kind == "logits" else ("dinov2-b14-reg", "dino-b8")
    makes = {name: "missing" if name == "clip" else makes for name in names}
    group, module = f"ovss_refine.{kind}", "tiny_page" if __name__ == "__main__" else __name__
    return {name: EntryPoint(name, f"{module}:{what}", group) for name, what in makes.items()}


if __name__ == "__main__":
    registry._registered, listing._about = sources, about
    torch.set_num_threads(1)
    with running(AppRequest(port=0, device="cpu", **LIMITS)) as address:
        sys.stdout.write(address + "\n")
        sys.stdout.flush()
        sys.stdin.read()
