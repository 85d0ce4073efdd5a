"""Quick start
===========

A photograph, its classes and a segmentation: on the command line
``ovss-refine segment photo.jpg --labels "cup/bowl, table"``, here step by step.

As a notebook in Colab, this downloads pretrained models, 0.9 GB. Elsewhere built-in logits and
attention take their place, and nothing is downloaded.
"""

import sys

from PIL import Image

from ovss_refine import Refiner, Segmenter
from ovss_refine.examples import example_labels, photograph, read_example

PRETRAINED = "google.colab" in sys.modules

# %%
# The classes are those of a built-in photograph. For your own image, take its path, and a text such
# as ``"cat, dog/puppy, background: wall/floor"``: classes between commas, prompts of one class
# between slashes.

path, labels = photograph("coffee"), example_labels("coffee")
for name, prompts in zip(labels.names, labels.synonyms, strict=True):
    print(f"{name}: {', '.join(prompts)}")

# %%
# With pretrained models, ``Segmenter`` does everything. Without them, ``Refiner`` takes the logits
# and the attention of a file; its result becomes the same ``Segmentation``.

if PRETRAINED:
    found = Segmenter()(path, labels)
else:
    example = read_example("coffee")
    result = Refiner()(
        example.logits, example.attention, example.image, prompt_index=example.prompt_index
    )
    found = result.segmentation(example.image, labels.names)
Image.fromarray(found.plot()).show()

# %%
# What is where
# -------------

for name, pixels, share in found.areas():
    print(f"{name:12}  {pixels:7,} pixels  {share:6.1%}")
print(found.labels.shape, found.labels.dtype)
print([entry["category"] for entry in found.rle()])  # masks in COCO's format

# %%
# Why: the discrepancy of every class at every patch. The brightest class at a patch is its label.

Image.fromarray(found.maps()).show()

# %%
# ``found.save("out.png")`` writes the overlay. Next: :doc:`plot_b_your_model`, or what the options
# do (:doc:`plot_options`).
