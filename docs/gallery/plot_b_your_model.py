"""Bring your own model
====================

Any model that gives one coarse map for each class can be refined: a function from images to logits,
and attention from the same or from another backbone.

As a notebook in Colab, the model is a pretrained SegFormer, and the attention DINOv2's. Elsewhere
the model measures colours, and patches attend to patches of like colour: no weights are needed.
"""

import sys

import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from ovss_refine import Refiner, load_attention
from ovss_refine.attention import affinity
from ovss_refine.examples import read_example

PRETRAINED = "google.colab" in sys.modules
photograph = read_example("coffee").image  # [H, W, 3] uint8
images = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None] / 255  # [1, 3, H, W] in [0, 1]

# %%
# The model, as a function of images [B, 3, H, W] in [0, 1] that returns logits [B, K, h, w], and
# the attention, a map over N patches whose rows sum to one.

if PRETRAINED:
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    name = "nvidia/segformer-b0-finetuned-ade-512-512"
    processor = AutoImageProcessor.from_pretrained(name, do_rescale=False)
    model = AutoModelForSemanticSegmentation.from_pretrained(name).eval()
    names = list(model.config.id2label.values())
    attend = load_attention("dinov2-b14-reg").attention

    def segment(images):
        """Run the model on its own size."""
        with torch.no_grad():
            return model(**processor(images=list(images), return_tensors="pt")).logits

else:
    names = ["white", "red", "wood", "dark"]
    colours = torch.tensor([[0.9, 0.8, 0.7], [0.6, 0.2, 0.1], [0.7, 0.4, 0.2], [0.2, 0.1, 0.1]])

    def patches(images):
        """Return the mean colours of patches of 14 x 14 pixels: [B, 3, h, w]."""
        return avg_pool2d(images, 14, ceil_mode=True)

    def segment(images):
        """Score a patch by how close it is to the colour of each class."""
        distance = patches(images)[:, None] - colours[:, :, None, None]  # [B, K, 3, h, w]
        return -50 * distance.square().sum(dim=2)

    def attend(images):
        """Attend to patches of like colour."""
        return affinity(patches(images) - 0.5, temperature=0.05)


logits, attention = segment(images), attend(images)
print(f"logits {tuple(logits.shape)}, attention {tuple(attention.shape)}, grid {attention.grid}")

# %%
# Before, the best class of every pixel by the upsampled logits, and after.

upsampled = torch.nn.functional.interpolate(logits, images.shape[2:], mode="bilinear")
result = Refiner()(logits, attention, images)[0]
after = result.segmentation(photograph, names)
share = (upsampled.argmax(dim=1)[0] != after.labels).float().mean()
print(f"{share:.1%} of the pixels changed; {int(result.kept.sum())} of {len(names)} classes kept")
Image.fromarray(after.plot()).show()

# %%
# If the logits are cosines, or their scale is not that of a softmax, let it be calibrated:

calibrated = Refiner(logit_scale="auto")(logits, attention, images)[0]
Image.fromarray(calibrated.segmentation(photograph, names).plot()).show()

# %%
# A class that can be loaded by name, with options and tests, is an adapter:
# :doc:`/writing_an_adapter`. Other libraries' models: :doc:`/recipes`. Whether it helps, on your
# data: :doc:`plot_c_your_data`.
