"""Sources without weights that depend on the image: logits from its colours, and attention too."""

from torch.nn.functional import avg_pool2d

from ovss_refine import Logits
from ovss_refine.attention import affinity

LABELS = "red, green, blue"


class Colours:
    """Logits: how much of each primary colour a patch of 4 x 4 pixels has."""

    def logits(self, images):
        return Logits(avg_pool2d(images, 4, ceil_mode=True), scale=20.0)


class Likeness:
    """Attention between patches of like colour."""

    def attention(self, images):
        return affinity(avg_pool2d(images, 4, ceil_mode=True) - 0.5, 0.1)
