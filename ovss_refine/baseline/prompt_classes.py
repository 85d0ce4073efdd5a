"""From maps of prompts to labels of classes, without probabilities.

Axes: K prompts, M classes, m of them with prompts, (H, W) pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ovss_refine.baseline.resize import resize
from ovss_refine.logits import Logits


@dataclass(frozen=True, slots=True, eq=False)
class PromptClasses:
    """The classes that have prompts [m], and which of these each prompt has [K]."""

    names: Tensor
    of_prompt: Tensor

    @classmethod
    def of(cls, prompts: Logits, device: torch.device) -> "PromptClasses":
        """Read them off logits [B, K, h, w] or [K, h, w]."""
        index = prompts.prompt_index
        every = range(prompts.values.shape[-3])
        given = torch.as_tensor(every if index is None else index, device=device)
        return cls(*torch.unique(given, return_inverse=True))

    def best(self, maps: Tensor) -> Tensor:
        """Take the largest of each class's prompts, [K, H, W] to [m, H, W]."""
        best = maps.new_full((len(self.names), *maps.shape[1:]), -torch.inf)
        return best.scatter_reduce_(0, self.of_prompt[:, None, None].expand_as(maps), maps, "amax")

    def label(self, maps: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Label the pixels of [m, H', W'] maps: [H, W], and scores [M, H, W]."""
        large = resize(maps[None], size)[0]
        M = int(self.names.max()) + 1
        scores = large.new_full((M, *size), -torch.inf, dtype=torch.float32)
        scores[self.names] = large.float()
        return self.names[large.argmax(dim=0)], scores
