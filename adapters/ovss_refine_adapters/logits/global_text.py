"""Text moved towards the image, and logits of the whole image: shared by CASS and RF-CLIP.

Source: C. Kim et al., "Distilling Spectral Graph for Object-Context Aware Open-Vocabulary Semantic
Segmentation" (CASS), CVPR 2025, its object-guided text embedding; J. Li et al., "Target Refocusing
via Attention Redistribution" (RF-CLIP), AAAI 2026, uses it with a different linkage.

Prompts are grouped once, by the cosine distance of their vectors. In each group the prompt nearest
to the class embedding of the image moves towards the two patches most similar to it. The logits are
those of the patches, mixed with a share of the whole image's.

Axes: B images, K prompts, G groups of prompts, D channels, N = h * w patches.
"""

from abc import abstractmethod
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.checks import check_choice, check_number
from ovss_refine.labels import LabelsLike
from ovss_refine.registry import require
from ovss_refine_adapters.logits.dense import DenseClip

# Patches that a prompt moves towards.
NEAREST = 2


class GlobalTextClip(DenseClip):
    """A source on CLIP whose text depends on the image.

    A subclass defines `encode` and `class_embedding`, and says how prompts are grouped. Further
    arguments and exceptions are those of `DenseClip`.

    Args:
        global_weight: share of the whole image's logits, gamma, in [0, 1].
        patch_weight: how far a prompt moves towards its patches, alpha, in [0, 1].
        cluster_distance: height at which the tree of prompts is cut, h, >= 0.
        global_from: source of the class embedding: the whole "image", or each "window". No
            difference without windows.
    """

    linkage: ClassVar[Literal["ward", "complete"]]

    def __init__(
        self,
        classes: LabelsLike,
        *,
        # What the authors of both methods set for PASCAL Context, with and without background; near
        # the median of their eight benchmarks, on whose validation images they were chosen.
        global_weight: float = 0.25,
        patch_weight: float = 0.04,
        cluster_distance: float = 0.09,
        global_from: Literal["image", "window"] = "image",
        **options: Any,
    ) -> None:
        """Load the model, embed the classes and group the prompts."""
        check_number("global_weight", global_weight, 0, 1)
        check_number("patch_weight", patch_weight, 0, 1)
        check_number("cluster_distance", cluster_distance, 0)
        check_choice("global_from", global_from, ("image", "window"))
        super().__init__(classes, **options)
        self.global_weight = global_weight
        self.patch_weight = patch_weight
        self.global_from = global_from
        self.cluster_distance = cluster_distance
        self.groups = group(self.text, self.linkage, cluster_distance)

    def with_classes(self, classes: LabelsLike) -> Self:
        """Return a source for other classes, whose prompts are grouped anew, on the same model."""
        other = super().with_classes(classes)
        other.groups = group(other.text, self.linkage, self.cluster_distance)
        return other

    @abstractmethod
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute patch features [B, D, h, w] and the class embedding [B, D], both float32."""

    @abstractmethod
    def class_embedding(self, pixels: Tensor) -> Tensor:
        """Compute the class embedding alone: [B, 3, H, W] normalised pixels to [B, D]."""

    def features(self, pixels: Tensor) -> Tensor:
        """Compute patch features: [B, 3, H, W] normalised pixels to [B, D, h, w] float32."""
        return self.encode(pixels)[0]

    def context(self, pixels: Tensor) -> Tensor | None:
        """Return the class embedding [B, D] of whole images if windows need it, else None."""
        if self.options.window is None or self.global_from == "window":
            return None
        return self.class_embedding(pixels)

    def cosines(self, pixels: Tensor, context: Tensor | None) -> Tensor:
        """Compare patches with prompts, and the whole image too: [B, K, h, w] in [-1, 1]."""
        maps, own = self.encode(pixels)
        patches = F.normalize(maps.flatten(2), dim=1).mT  # [B, N, D]
        whole = F.normalize(own if context is None else context, dim=-1) @ self.text.T  # [B, K]
        text = adjust(self.text, self.groups, whole, patches, self.patch_weight)
        local = (text @ patches.mT).view(*whole.shape, *maps.shape[-2:])  # [B, K, h, w]
        gamma = self.global_weight
        logits: Tensor = (1 - gamma) * local + gamma * whole[:, :, None, None]
        return logits


def group(text: Tensor, linkage: Literal["ward", "complete"], distance: float) -> Tensor:
    """Group prompts by hierarchical clustering of their cosine distances.

    [K, D] unit rows to the [K] int64 index of each prompt's group, from 0, without gaps. The tree
    is cut at the height `distance`.
    """
    if len(text) == 1:
        return torch.zeros(1, dtype=torch.int64, device=text.device)
    hierarchy = require("scipy.cluster.hierarchy", "models")
    spatial = require("scipy.spatial.distance", "models")
    # Equal rows may be a rounding error below 0.
    distances = np.maximum(spatial.pdist(text.cpu().double().numpy(), "cosine"), 0)
    numbers = hierarchy.fcluster(
        hierarchy.linkage(distances, method=linkage), t=distance, criterion="distance"
    )
    return torch.as_tensor(numbers - 1, dtype=torch.int64, device=text.device)


def adjust(
    text: Tensor, groups: Tensor, whole: Tensor, patches: Tensor, patch_weight: float
) -> Tensor:
    """Move one prompt of each group towards the patches most similar to it: [B, K, D] unit rows.

    Args:
        text: [K, D] unit rows.
        groups: [K] index of each prompt's group.
        whole: [B, K] cosines of prompts with the image.
        patches: [B, N, D] unit rows.
        patch_weight: alpha, in [0, 1].
    """
    chosen = nearest_prompts(groups, whole)  # [B, G]
    rows = text[chosen]  # [B, G, D]
    index = nearest_patches(rows, patches)  # [B, G, 2]
    images = torch.arange(len(patches), device=patches.device)[:, None, None]
    towards = F.normalize(patches[images, index].mean(dim=2), dim=-1)  # [B, G, D]
    moved = F.normalize((1 - patch_weight) * rows + patch_weight * towards, dim=-1)
    where = chosen[..., None].expand_as(moved)
    return text.expand(len(patches), -1, -1).scatter(1, where, moved)


def nearest_prompts(groups: Tensor, whole: Tensor) -> Tensor:
    """Return each group's prompt most similar to the image: [K] and [B, K] to [B, G]."""
    numbers = torch.arange(int(groups.max()) + 1, device=groups.device)
    others = groups != numbers[:, None]  # [G, K]
    return whole[:, None].masked_fill(others, -torch.inf).argmax(dim=-1)


def nearest_patches(prompts: Tensor, patches: Tensor) -> Tensor:
    """Return the two patches most similar to each prompt, best first: [B, G, D] to [B, G, 2]."""
    cosines = prompts @ patches.mT  # [B, G, N]
    return cosines.topk(min(NEAREST, patches.shape[1]), dim=-1).indices
