"""CLIPtrase: the last block compares q, k and v with themselves; clusters of patches decide.

Source: T. Shao et al., "Explore the Potential of CLIP for Training-Free Open Vocabulary Semantic
Segmentation", ECCV 2024. The self-correlation of the last block but one, without what all patches
share with the class token, is clustered by density. Each cluster becomes a region of the image, in
which logits are averaged or labels voted on.

Axes: B images, K prompts, A heads, T = 1 + N tokens (class token first), N = h * w patches, D
channels of the joint space, (H, W) pixels.
"""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.checks import check_choice, check_count, check_number
from ovss_refine.labels import LabelsLike
from ovss_refine_adapters.backbones.clip_tower import self_similarity, to_map
from ovss_refine_adapters.logits.pillow import PillowClip
from ovss_refine_adapters.logits.regions import (
    average_in_regions,
    cluster_regions,
    dbscan,
    first_argmax,
    vote,
)
from ovss_refine_adapters.logits.windows import upsample


class CliptraseLogits(PillowClip):
    """CLIP with q-q, k-k and v-v attention in the last block, decided region by region.

    Logits lie on the pixels of the resized image, or on CLIP's grid with `regions="none"`. Memory
    beyond the tower's: a few times B * A * T * T floats, and B * K * H * W.
    Further arguments and exceptions are those of `DenseClip`.

    Args:
        regions: what is done in a region: "mean": logits are averaged, as the released code does in
            Detectron2; "vote": its most frequent label gets logits of 1, all others 0, as its
            script does; "none": nothing.
        eps: distance between rows of the affinity up to which patches are neighbours, > 0. Made
            for square images of 336 pixels; 0.7 for 224.
        min_samples: neighbours that make a patch the core of a cluster, itself included, >= 1; 3
            for 224.
        class_factor: multiply the logits of each prompt by those of the whole image, as the
            released code does on PASCAL VOC 20.
        options: fields of `ClipOptions`. `faithful` resizes by Pillow's bicubic filter, and adds
            the position table unchanged to any grid with as many patches.

    Raises:
        ValueError: also if the tower has a single block.
    """

    defaults: ClassVar[dict[str, Any]] = {"short_side": 336, "window": None, "logit_scale": 100.0}
    square = False

    def __init__(
        self,
        classes: LabelsLike,
        *,
        regions: Literal["mean", "vote", "none"] = "mean",
        eps: float = 1.1,
        min_samples: int = 7,
        class_factor: bool = False,
        **options: Any,
    ) -> None:
        """Load the model and embed the classes."""
        check_choice("regions", regions, ("mean", "vote", "none"))
        check_number("eps", eps, 0, open_ends=True)
        check_count("min_samples", min_samples, 1)
        super().__init__(classes, **options)
        if self.tower.layers < 2:
            raise ValueError("`model` must have two blocks or more; got 1.")
        self.regions = regions
        self.eps = eps
        self.min_samples = min_samples
        self.class_factor = class_factor

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the tower on [B, 3, H, W] normalised pixels; all results are float32.

        Returns:
            [B, D, h, w] patch features, [B, D] class embedding, and the [B, T, T] self-correlation
            of the last block but one: the cosines of q, k and v, averaged over these and the heads.
        """
        tower = self.tower
        last = tower.layers - 1
        x, _ = tower.blocks(tower.stem(pixels), 0, last - 1)
        q, k, v = tower.qkv(last - 1, x)
        units = [F.normalize(u, dim=-1) for u in (q, k, v)]
        correlation = torch.stack([(u @ u.mT).mean(dim=1) for u in units]).mean(dim=0)
        x = tower.block_of(last - 1, x, q, k, v)
        q, k, v = tower.qkv(last, x)
        attention = self_similarity(q, q) + self_similarity(k, k) + self_similarity(v, v)
        tokens = tower.head(tower.after_attention(last, x, attention @ v))
        grid = tower.grid(*pixels.shape[-2:])
        return to_map(tokens[:, 1:], grid), tokens[:, 0], correlation

    def features(self, pixels: Tensor) -> Tensor:
        """Compute patch features: [B, 3, H, W] normalised pixels to [B, D, h, w] float32."""
        return self.encode(pixels)[0]

    def cosines(self, pixels: Tensor, context: Any) -> Tensor:
        """Compare patches with prompts, then decide in regions: [B, K, H, W] float32."""
        patches, whole, correlation = self.encode(pixels)
        unit = F.normalize(patches, dim=1)
        values = torch.einsum("bdhw,kd->bkhw", unit, self.text)
        if self.class_factor:
            factor = self.options.logit_scale * F.normalize(whole, dim=-1) @ self.text.T  # [B, K]
            values = values * factor[:, :, None, None]
        if self.regions == "none":
            return values
        (H, W), (h, w) = pixels.shape[-2:], values.shape[-2:]
        full = upsample(values, (H, W))
        return torch.stack(
            [
                self._decide(one, self.find_regions(rows, (h, w), (H, W)))
                for one, rows in zip(full, correlation, strict=True)
            ]
        )

    def find_regions(
        self, correlation: Tensor, grid: tuple[int, int], size: tuple[int, int]
    ) -> Tensor | None:
        """Segment one image by its [T, T] self-correlation: [H, W] int64, None without clusters."""
        rows = affinity(correlation)
        return cluster_regions(rows, dbscan(rows, self.eps, self.min_samples), grid, size)

    def _decide(self, values: Tensor, regions: Tensor | None) -> Tensor:
        """Average or vote in the [H, W] regions: [K, H, W] to [K, H, W]."""
        if self.regions == "mean":
            return values if regions is None else average_in_regions(values, regions)
        index = torch.as_tensor(self.classes.prompt_index, device=values.device)  # [K]
        labels = index[first_argmax(values)]  # [H, W]
        if regions is not None:
            labels = vote(labels, regions)
        return (index[:, None, None] == labels).to(values.dtype)


def affinity(correlation: Tensor) -> Tensor:
    """Subtract the class token's row from those of the patches, and clip at 0.

    [T, T] self-correlation, class token first, to [N, N].
    """
    return (correlation[1:, 1:] - correlation[:1, 1:]).clamp(min=0)
