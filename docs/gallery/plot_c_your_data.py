"""Evaluate on your data
=====================

Does the refinement help your model on your images? ``evaluate`` compares the logits alone with the
logits refined, in mIoU.

As a notebook in Colab, logits and attention are those of pretrained models, by name. Elsewhere
both come from colours: no weights are needed.
"""

import sys
import tempfile

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from ovss_refine import Logits
from ovss_refine.attention import affinity
from ovss_refine.evaluation import evaluate

PRETRAINED = "google.colab" in sys.modules

# %%
# The data: pairs of an image and its mask, whole numbers [H, W], 255 where nothing is labelled.
# These are drawn: a red disc and a blue square on a green ground, with noise. Yours can be a list,
# a data set of torchvision or Hugging Face, or a folder with ``images/``, ``masks/`` and
# ``names.txt``, passed as its path.

names = ["green ground", "red disc", "blue square"]
COLOURS = np.array([[70, 130, 70], [180, 70, 60], [60, 80, 170]])


def draw(seed, H=96, W=128):
    """Draw an image [H, W, 3] and its mask [H, W]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W]
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[(y - rng.integers(30, 66)) ** 2 + (x - rng.integers(30, 50)) ** 2 < 400] = 1
    top, left = rng.integers(10, 50), rng.integers(75, 95)
    mask[top : top + 30, left : left + 30] = 2
    noisy = COLOURS[mask] + rng.normal(0, 40, (H, W, 3))
    return noisy.clip(0, 255).astype(np.uint8), mask


pairs = [draw(seed) for seed in range(5)]
Image.fromarray(np.concatenate([image for image, _ in pairs[:3]], axis=1)).show()

# %%
# The model: a function as in :doc:`plot_b_your_model`, or a source by name.

if PRETRAINED:
    logits, attention = "kk-mean", "dinov2-b14-reg"
else:

    def logits(images):
        """Score patches of 16 x 16 pixels by how much of each class's colour they have."""
        red, green, blue = avg_pool2d(images, 16).unbind(dim=1)  # [B, h, w] each
        return Logits(torch.stack([green, red, blue], dim=1), scale=20.0)

    def attention(images):
        """Attend to patches of 4 x 4 pixels of like colour."""
        return affinity(avg_pool2d(images, 4) - 0.4, temperature=0.1)


# %%
# The results folder keeps the counts of every image: the same call resumes an interrupted run, and
# one with another model or other data is refused. Without ``out`` nothing is kept.

out = tempfile.mkdtemp()
result = evaluate(logits, attention, dataset=pairs, names=names, out=out)
print(result)

# %%
# By class, and as the counts behind the scores:

for row in result.per_class():
    print(f"{row['class']:13} {row['baseline']:6.2f} {row['refined']:6.2f}")
print(result.counts["refined"])  # pixels by true (rows) and predicted class

# %%
# ``rows`` are explained in :doc:`/evaluation`. A whole benchmark on the command line, in several
# processes or on many machines: :doc:`/scaling`.
