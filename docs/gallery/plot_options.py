"""Attention, tau, sigma_range, and scores of your own
===================================================

What the parts of the method see and do, on one photograph.
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
# A row of the attention is a map over the patches. Below, the rows of three patches, each marked
# with a ring. Full light is for the twenty patches that are attended to most: they belong together,
# says the network that the features come from.


def row(attention, x, y):
    """Light up what the patch under a pixel attends to."""
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
# How sharp the rows are is the temperature's doing; a backbone's own attention has no such number.

features = torch.from_numpy(arrays["features"])
for temperature in (0.02, 0.05, 0.2):
    largest = affinity(features, temperature).weights.amax(dim=1).mean()
    print(f"temperature {temperature}: a patch gives {largest:.0%} of its attention to one patch")

# %%
# tau: when is a patch reached?
# -----------------------------
#
# ``maximum_velocity`` scores a patch by the time at which the walk from a class's seeds passes the
# share tau of the largest mass. Below, the discrepancy of "person" for three values: bright is at
# once, black is late or never. With a small tau everything is reached early, with a large one only
# what the seeds hold firmly. The labels compare classes at the same tau, and change little.

person = names.index("person")
sheets = []
for tau in (0.1, 0.3, 0.6):
    result = Refiner(tau=tau, nms_threshold=0.98)(logits, attention, image)
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
# The upsampling lets two colours share a label the more, the larger ``sigma_range`` is. Too
# small, and it follows every texture; too large, and it is a plain blur that knows no edges. The
# default, 0.1, is in the middle.

overlays = []
for sigma_range in (0.02, 0.1, 1.0):
    result = Refiner(sigma_range=sigma_range)(logits, attention, image)
    overlays.append(overlay(result, names).crop((130, 0, 386, 256)))
show(*overlays)

# %%
# Scores of your own
# ------------------
#
# Anything that says where a class might be will do, however coarse. Here, boxes drawn by hand on an
# 8 x 8 grid: white ones say "astronaut", black ones "behind", grey nothing. The attention has 33 x
# 33 patches, which does not matter.

scribbles = torch.zeros(2, 8, 8)
scribbles[0, 1:7, 3:5] = 3
scribbles[1, 0:4, 0:2] = scribbles[1, 0:3, 6:8] = 3
sure = Refiner(nms_threshold=0.9)  # only what was drawn is a seed
attention = affinity(features, temperature=0.1)
result = sure(scribbles, attention, image)

boxes = Image.fromarray((127 + 42 * (scribbles[0] - scribbles[1])).byte().numpy())
boxes = boxes.resize(photograph.size, Image.Resampling.NEAREST).convert("RGB")
refined = overlay(result, ["astronaut", "behind"])
show(Image.blend(photograph, boxes, 0.5), refined)

# %%
# And an attention of your own: a matrix over patches whose rows sum to one, with the grid that they
# lie on. Left is one that knows nothing but distance, right the one from above.

gh, gw = attention.grid
places = torch.cartesian_prod(torch.arange(gh), torch.arange(gw)).float()
near = torch.softmax(-torch.cdist(places, places).square() / 4, dim=-1)
by_distance = sure(scribbles, Attention(near, grid=(gh, gw)), image)
show(overlay(by_distance, ["astronaut", "behind"]), refined)
