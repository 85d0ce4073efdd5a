"""A second stream beside CLIP's last blocks, fed by self-self attention: shared by two methods.

Sources: W. Bousselham et al., "Grounding Everything: Emerging Localization Properties in
Vision-Language Transformers" (GEM), CVPR 2024; Y. Li et al., "A Closer Look at the Explainability
of Contrastive Language-Image Pre-training" (CLIP Surgery), Pattern Recognition 162, 2025.

The tower runs unchanged. From one of its last blocks on, a second stream starts with the same
tokens. In each block it adds the output projection of attention that reads the normal stream, and
no feed-forward part. Its patches are projected into the joint space with text.

Axes: B images, A heads of d channels, T = 1 + N tokens (class token first), C channels.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ovss_refine.checks import check_count
from ovss_refine.labels import LabelsLike
from ovss_refine_adapters.logits.pillow import PillowClip


class TwoStreamClip(PillowClip):
    """CLIP with a second stream beside its last blocks.

    A subclass defines `positions` and `attend`. Further arguments and exceptions are those of
    `DenseClip`.

    Args:
        blocks: number of last blocks with a second stream, at most those of the tower; 0: plain
            CLIP.

    Raises:
        ValueError: also if the tower has fewer blocks.
    """

    def __init__(self, classes: LabelsLike, *, blocks: int = 6, **options: Any) -> None:
        """Load the model and embed the classes."""
        check_count("blocks", blocks, 0)
        super().__init__(classes, **options)
        if blocks > self.tower.layers:
            raise ValueError(
                f"`blocks` must be at most the tower's number of blocks, {self.tower.layers}; got "
                f"{blocks}."
            )
        self.blocks = blocks

    @abstractmethod
    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Resize the tower's position embeddings to the grid: [T, C]."""

    @abstractmethod
    def attend(self, i: int, tokens: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute what block `i` adds, before its output projection, from the normal stream.

        [B, T, C] tokens and their q, k, v in the block, [B, A, T, d] each, to [B, A, T, d] float32.
        """

    def streams(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Run the tower: both streams after the last block.

        The class token of the normal stream, [B, 1, C], whose patches are not used, and the tokens
        of the second, [B, T, C].
        """
        tower = self.tower
        first = tower.layers - self.blocks
        grid = tower.grid(*pixels.shape[-2:])
        x, _ = tower.blocks(tower.stem(pixels, self.positions(grid)), 0, first)
        y = x
        for i in range(first, tower.layers):
            q, k, v = tower.qkv(i, x)
            y = y + tower.project(i, self.attend(i, x, q, k, v))
            if i == tower.layers - 1:
                x, q = x[:, :1], q[:, :, :1]
            x = tower.block_of(i, x, q, k, v)
        return x[:, :1], y


def stretch(maps: Tensor) -> Tensor:
    """Map the range of each of [..., H, W] maps onto [0, 1]; a constant one becomes 0."""
    low, high = (f(dim=(-2, -1), keepdim=True) for f in (maps.amin, maps.amax))
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
