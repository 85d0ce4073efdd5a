"""The network of Talk2DINO that maps CLIP's text into the space of DINOv2's patches.

Source: L. Barsellotti et al., "Talking to DINO: Bridging Self-Supervised Vision Backbones with
Language for Open-Vocabulary Segmentation", ICCV 2025. Two layers, a few megabytes of weights.

Axes: n texts, D channels of CLIP's text, C channels of DINOv2.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ovss_refine_adapters.backbones.weights import check_finite_weights, load_head

FILE = "vitb_mlp_infonce.pth"
# Of the second layer, in older files.
OLD_NAMES = {"linear_layer2.": "hidden_layers.0."}


class TextProjection(nn.Module):
    """The trained network: W2 tanh(W1 e + b1) + b2, [n, D] to [n, C].

    Args:
        text: D, channels of CLIP's text.
        patches: C, channels of DINOv2.
    """

    def __init__(self, text: int, patches: int) -> None:
        """Make the layers, named as in the released files."""
        super().__init__()
        self.linear_layer = nn.Linear(text, patches)
        self.hidden_layers = nn.ModuleList([nn.Linear(patches, patches)])

    def forward(self, text: Tensor) -> Tensor:
        """Map [n, D] vectors, not of unit length, to [n, C]."""
        mapped: Tensor = self.hidden_layers[0](self.linear_layer(text).tanh())
        return mapped


def as_projection(projection: str | Path | nn.Module | None) -> nn.Module:
    """Load the network from text to patches, or take a ready one."""
    if projection is None:
        raise ValueError(
            f"`projection` must be a weight file or a module; got None. Pass the path of {FILE}, "
            "4 MB, from the folder `weights` of "
            "https://github.com/lorebianchi98/Talk2DINO, which states no licence."
        )
    if isinstance(projection, nn.Module):
        return check_finite_weights(projection, type(projection).__name__)
    return load_head(projection, "projection", FILE, projection_of, OLD_NAMES)


def projection_of(state: Mapping[str, Tensor]) -> TextProjection:
    """Make the network, without its values, that has these tensors."""
    patches, text = state["linear_layer.weight"].shape
    return TextProjection(text, patches)
