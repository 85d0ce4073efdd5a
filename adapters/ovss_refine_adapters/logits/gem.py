"""GEM: a second stream beside CLIP's last blocks, of self-self attention of v, k and q.

Source: W. Bousselham et al., "Grounding Everything: Emerging Localization Properties in
Vision-Language Transformers", CVPR 2024. In each of the last blocks values, keys and queries each
attend to themselves, on unit vectors, after rounds that draw similar tokens together; the second
stream adds the mean of the three outputs.

Axes: B images, K prompts, A heads of d channels, T = 1 + N tokens (class token first), C channels.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.checks import check_count, check_number, check_shape
from ovss_refine.labels import LabelsLike
from ovss_refine_adapters.backbones.clip_tower import to_map
from ovss_refine_adapters.backbones.positions import resize_positions_to
from ovss_refine_adapters.logits.two_streams import TwoStreamClip, stretch
from ovss_refine_adapters.logits.windows import upsample


class GemLogits(TwoStreamClip):
    """CLIP's patches grouped by self-self attention in its last blocks.

    Memory beyond the tower's: a few times B * A * T * T floats.
    Further arguments and exceptions are those of `DenseClip`.

    Args:
        blocks: number of last blocks with self-self attention; the released code counts one more
            (`depth=7`). 0: plain CLIP.
        iterations: rounds before the attention, >= 0.
        temperature: factor on the cosines of tokens, > 0; None: by the image, see `adaptive`.
        options: fields of `ClipOptions`. `faithful` resizes images to a square of `short_side`, by
            Pillow's bicubic filter; otherwise they keep their shape.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "templates": "single",
        "short_side": 448,
        "window": None,
        "logit_scale": 100.0,
    }

    def __init__(
        self,
        classes: LabelsLike,
        *,
        blocks: int = 6,
        iterations: int = 1,
        temperature: float | None = None,
        **options: Any,
    ) -> None:
        """Load the model and embed the classes."""
        check_count("iterations", iterations, 0)
        if temperature is not None:
            check_number("temperature", temperature, 0, open_ends=True)
        super().__init__(classes, blocks=blocks, **options)
        self.iterations = iterations
        self.temperature = temperature

    def features(self, pixels: Tensor) -> Tensor:
        """Compute patch features: [B, 3, H, W] normalised pixels to [B, D, h, w] float32."""
        _, y = self.streams(pixels)
        return to_map(self.tower.head(y)[:, 1:], self.tower.grid(*pixels.shape[-2:]))

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Resize the tower's position embeddings to the grid: [T, C]."""
        table = self.tower.visual.positional_embedding
        return resize_positions_to(table, grid, antialias=True)

    def attend(self, i: int, tokens: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Average the values by self-self attention: [B, T, C] to [B, A, T, d] float32."""
        factor: Tensor | float | None = self.temperature
        if factor is None:
            factor = adaptive(self.tower.attended(i, tokens).float(), v.shape[-1])
        outputs = [self_self(u, factor, self.iterations) @ v for u in (v, k, q)]
        return torch.stack(outputs).mean(dim=0)


def adaptive(tokens: Tensor, d: int) -> Tensor:
    """Compute GEM's inverse temperature of each image: the mean norm of its tokens / sqrt(d).

    [B, T, C] what the attention reads, with heads of d channels, to [B, 1, 1, 1].
    """
    norms: Tensor = torch.linalg.vector_norm(tokens, dim=-1)  # [B, T]
    return norms.mean(dim=-1).mul(d**-0.5)[:, None, None, None]


def self_self(tokens: Tensor, factor: Tensor | float, iterations: int) -> Tensor:
    """Attend from tokens to the same tokens, by their cosines.

    Args:
        tokens: [B, A, T, d] float32.
        factor: on the cosines before the softmax, > 0; [B, 1, 1, 1] or the same for all images.
        iterations: rounds before, each of which replaces tokens by the mean of those that they
            attend to, >= 0.

    Returns:
        [B, A, T, T] with rows that sum to one.
    """
    unit = F.normalize(tokens, dim=-1)
    for _ in range(iterations):
        unit = F.normalize((factor * (unit @ unit.mT)).softmax(dim=-1) @ unit, dim=-1)
    return (factor * (unit @ unit.mT)).softmax(dim=-1)


def heat_maps(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample logits, then map the range of each prompt's map onto [0, 1], as GEM shows them.

    For drawing: a map always reaches 1, whether the class is there or not.

    Args:
        values: [B, K, h, w] cosines, from `GemLogits` on whole images.
        size: (H, W) of the image.

    Returns:
        [B, K, H, W] in [0, 1].

    Raises:
        ValueError: if `values` do not have four axes.
    """
    check_shape("values", values, "B K h w")
    return stretch(upsample(values, size))
