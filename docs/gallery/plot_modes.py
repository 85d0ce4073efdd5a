"""Before and after, and what each mode does
=========================================

One photograph, a segmenter's logits for 21 classes on 33 x 33 patches, and the attention computed
from its features.
"""

import time
from dataclasses import replace
from importlib.resources import files

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ovss_refine import Refiner
from ovss_refine.attention import affinity

examples = files("ovss_refine") / "examples"
names = (examples / "voc_names.txt").read_text().splitlines()


def load(stem):
    """Read the image [3, H, W], the logits [21, 33, 33] and the attention of an example."""
    arrays = np.load(examples / f"{stem}.npz")
    pixels = np.array(Image.open(examples / f"{stem}.png"))
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    attention = affinity(torch.from_numpy(arrays["features"]), temperature=0.05)
    return image, torch.from_numpy(arrays["logits"]).float(), attention


def unrefined(result, logits, image):
    """Upsample the logits bilinearly and take the best class of every pixel."""
    smooth = F.interpolate(logits[None], image.shape[1:], mode="bilinear")[0]
    return replace(result, labels=smooth.argmax(0))


def overlay(result):
    """Draw the classes over the image."""
    return result.segmentation(image, names).overlay()


def show(*drawings, columns=2):
    """Show drawings of one width in rows, from left to right."""
    width = max(drawing.shape[1] for drawing in drawings)
    height = max(drawing.shape[0] for drawing in drawings)
    rows = -(-len(drawings) // columns)
    page = Image.new("RGB", (columns * (width + 8) - 8, rows * (height + 8) - 8), "white")
    for place, drawing in enumerate(drawings):
        at = (place % columns * (width + 8), place // columns * (height + 8))
        page.paste(Image.fromarray(drawing), at)
    page.show()


# %%
# Left: without refinement. Right: refined. Edges follow the image, and the motorbike has gone.

image, logits, attention = load("astronaut")
result = Refiner()(logits, attention, image)
before = unrefined(result, logits, image)
show(overlay(before), overlay(result))

# %%
# Poor logits
# -----------
#
# These logits are good. Those of an open-vocabulary model are not, so from here on they are
# degraded: pooled to 14 x 14, scaled down, and with noise added. Many classes now win somewhere.

generator = torch.Generator().manual_seed(0)
pooled = 0.35 * F.adaptive_avg_pool2d(logits, 14)
noisy = pooled + torch.randn(pooled.shape, generator=generator)
weak = F.interpolate(noisy[None], (33, 33), mode="bilinear")[0]

result = Refiner()(weak, attention, image)
before = unrefined(result, weak, image)
show(overlay(before), overlay(result))

# %%
# Nearly all absent classes have gone. Parts of the flag and the wall are labelled as person:
# refinement cannot correct logits that are wrong over many patches.
#
# Where the labels come from
# --------------------------
#
# The discrepancy of the kept classes. In bright patches, a walk along the attention from the
# class's seeds arrives early; the brightest class at each patch is its label.

show(result.segmentation(image, names).maps(), columns=1)

# %%
# Seeds are the surest of the patches that a class wins, three in four by default. Dark patches are
# not seeds of any class: the attention decides their label. Right: with a higher quantile, and only
# the surest quarter.


def seeds_of(result):
    """Darken the patches that are not seeds of any class: [H, W, 3]."""
    seeds = result.seeds.any(dim=0)[None, None].float()  # [1, 1, gh, gw]
    shade = 0.25 + 0.75 * F.interpolate(seeds, image.shape[1:])[0, 0]
    return (image.permute(1, 2, 0) * shade[:, :, None]).byte().numpy()


strict = Refiner(seed_quantile=0.75)(weak, attention, image)
show(seeds_of(result), seeds_of(strict))
for name, found in (("by default", result), ("seed_quantile=0.75", strict)):
    print(f"{name}: {found.seeds.sum()} seeds, {found.kept.sum()} classes kept")

# %%
# Without the vote
# ----------------
#
# Every class that wins somewhere has seeds, noise included. The vote drops a class if another one
# explains the region that the attention gives to it better, by its confidences. Left: without the
# vote. Right: as the paper reads it, with one threshold for all classes and no vote.

voteless = Refiner(vote=0)(weak, attention, image)
paper = Refiner.paper()(weak, attention, image)
show(overlay(voteless), overlay(paper))
for name, found in (("with the vote", result), ("without", voteless), ("the paper's", paper)):
    print(f"{name}: {found.kept.sum()} classes kept")

# %%
# All modes, with their times
# ---------------------------
#
# Row by row: the paper's ablation ``kl``, its three modes, and the two controls, which measure no
# discrepancy. Times are of the whole call, on the machine that built this page. One image says
# little about which mode is best; :doc:`/modes` has averages.

overlays = []
for mode in ("kl", "optimal_path", "maximum_velocity", "fusion", "propagation", "anchored"):
    refiner = Refiner(mode)
    start = time.perf_counter()
    found = refiner(weak, attention, image)
    seconds = time.perf_counter() - start
    changed = (found.labels != before.labels).float().mean()
    print(f"{mode:16}  {seconds:.3f} s   {changed:.1%} of the pixels changed")
    overlays.append(overlay(found))
show(*overlays)

# %%
# If objects are known to be large, ``min_area`` removes the false classes that the controls keep:
# here a class must win at a fiftieth of the patches. It would remove small objects, too.

left = Refiner("propagation")(weak, attention, image)
large = Refiner("propagation", min_area=0.02)(weak, attention, image)
show(overlay(left), overlay(large))

# %%
# The other photograph
# --------------------
#
# One large animal and good logits: only the outline changes much.

image, logits, attention = load("chelsea")
result = Refiner()(logits, attention, image)
before = unrefined(result, logits, image)
show(overlay(before), overlay(result))
