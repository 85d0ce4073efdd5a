"""Attention, tau, sigma_range, and your own logits
================================================

What the parts of the method do, on one photograph.
"""

from importlib.resources import files

import numpy as np
import torch
from PIL import Image, ImageDraw

from ovss_refine import Attention, Refiner
from ovss_refine.attention import affinity

examples = files("ovss_refine") / "examples"
names = (examples / "voc_names.txt").read_text().splitlines()
arrays = np.load(examples / "astronaut.npz")
photograph = Image.open(examples / "astronaut.png")
image = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)  # [3, H, W] uint8
logits = torch.from_numpy(arrays["logits"])  # [21, 33, 33]
attention = affinity(torch.from_numpy(arrays["features"]), temperature=0.05)


def overlay(result, names):
    """Draw the classes over the image, without the legend below it."""
    drawing = Image.fromarray(result.segmentation(image, names).overlay())
    return drawing.crop((0, 0, *photograph.size))


def show(*drawings):
    """Show drawings of one size side by side."""
    width, height = drawings[0].size
    page = Image.new("RGB", (len(drawings) * (width + 8) - 8, height), "white")
    for place, drawing in enumerate(drawings):
        page.paste(drawing, (place * (width + 8), 0))
    page.show()


# %%
# What a patch attends to
# -----------------------
#
# A row of the attention is a map over the patches. Below are the rows of three patches, each marked
# with a ring. The twenty patches with the most attention are at full brightness: according to the
# network that computed the features, they belong together.


def row(attention, x, y):
    """Highlight what the patch under a pixel attends to."""
    (gh, gw), (W, H) = attention.grid, photograph.size
    map = attention.weights[(y * gh // H) * gw + x * gw // W].reshape(gh, gw)
    share = (map / map.flatten().topk(20).values[-1]).clamp_max(1)
    light = Image.fromarray((40 + 215 * share).byte().numpy())
    light = light.resize(photograph.size, Image.Resampling.BILINEAR)
    lit = Image.composite(photograph, Image.new("RGB", photograph.size), light)
    ImageDraw.Draw(lit).ellipse((x - 9, y - 9, x + 9, y + 9), outline="white", width=3)
    return lit


show(*(row(attention, x, y) for x, y in [(230, 110), (250, 400), (60, 60)]))

# %%
# The temperature sets how sharp the rows are; a backbone's own attention has none.

features = torch.from_numpy(arrays["features"])
for temperature in (0.02, 0.05, 0.2):
    largest = affinity(features, temperature).weights.amax(dim=1).mean()
    print(f"temperature {temperature}: a patch gives {largest:.0%} of its attention to one patch")

# %%
# tau: when is a patch reached?
# -----------------------------
#
# ``maximum_velocity`` scores a patch by the time at which the walk from a class's seeds exceeds a
# fraction tau of the largest mass. Below, the discrepancy of "person" for three values: bright
# patches are reached at once, black ones late or never. With a small tau everything is reached
# early, with a large one only what is firmly tied to the seeds. Labels compare classes at the same
# tau, and change little.

person = names.index("person")
sheets = []
for tau in (0.1, 0.3, 0.6):
    result = Refiner(tau=tau, seed_quantile=0.9)(logits, attention, image)
    D = result.discrepancy[person]
    map = Image.fromarray((255 * D / D.max()).byte().numpy())
    sheets.append(map.resize(photograph.size, Image.Resampling.NEAREST).convert("RGB"))
    share = (result.labels == person).float().mean()
    print(f"tau {tau}: mean discrepancy {D.mean():.2f}, 'person' has {share:.1%} of the image")
show(*sheets)

# %%
# sigma_range: what is an edge?
# -----------------------------
#
# The larger ``sigma_range``, the more two colours in one label may differ. Too small, and the
# upsampling follows every texture; too large, and it is a blur that ignores edges. The default,
# 0.1, is in the middle.

overlays = []
for sigma_range in (0.02, 0.1, 1.0):
    result = Refiner(sigma_range=sigma_range)(logits, attention, image)
    overlays.append(overlay(result, names).crop((130, 0, 386, 256)))
show(*overlays)

# %%
# Your own logits
# ---------------
#
# Anything that indicates where a class might be works, however coarse. Here, boxes drawn by hand on
# an 8 x 8 grid: white means "astronaut", black "behind", grey nothing. The attention may have a
# different grid, here 33 x 33 patches.

scribbles = torch.zeros(2, 8, 8)
scribbles[0, 1:7, 3:5] = 3
scribbles[1, 0:4, 0:2] = scribbles[1, 0:3, 6:8] = 3
sure = Refiner.paper(nms_threshold=0.9)  # only what was drawn is a seed
attention = affinity(features, temperature=0.1)
result = sure(scribbles, attention, image)

boxes = Image.fromarray((127 + 42 * (scribbles[0] - scribbles[1])).byte().numpy())
boxes = boxes.resize(photograph.size, Image.Resampling.NEAREST).convert("RGB")
refined = overlay(result, ["astronaut", "behind"])
show(Image.blend(photograph, boxes, 0.5), refined)

# %%
# And your own attention: a matrix over patches whose rows sum to one, with their grid. Left: one
# that depends only on distance. Right: the one above.

gh, gw = attention.grid
places = torch.cartesian_prod(torch.arange(gh), torch.arange(gw)).float()
near = torch.softmax(-torch.cdist(places, places).square() / 4, dim=-1)
by_distance = sure(scribbles, Attention(near, grid=(gh, gw)), image)
show(overlay(by_distance, ["astronaut", "behind"]), refined)
