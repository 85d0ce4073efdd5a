"""What Talk2DINO computes of patches and text: cosines, and maps cleaned by the class token.

Source: L. Barsellotti et al., "Talking to DINO: Bridging Self-Supervised Vision Backbones with
Language for Open-Vocabulary Segmentation", ICCV 2025, its background cleaning.

Axes: B images, K prompts, A heads of d channels, C channels, (h, w) grid, N = h * w patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine_adapters.backbones.timm_attention import Projections


def similarity(features: Tensor, text: Tensor) -> Tensor:
    """Compare patches with prompts: [B, C, h, w] and [K, C] unit rows to [B, K, h, w] cosines."""
    return torch.einsum("bchw,kc->bkhw", F.normalize(features, dim=1), text)


def class_attention(found: Projections, prefix: int) -> Tensor:
    """Compare the class token's queries with the patches' keys, without softmax: [B, A, N]."""
    products = found.q[:, :, :1].float() @ found.k[:, :, prefix:].float().mT  # [B, A, 1, N]
    return products[:, :, 0] * found.scale


def clean(
    maps: Tensor,
    attention: Tensor,
    features: Tensor,
    text: Tensor,
    weight: float,
    *,
    faithful: bool,
) -> Tensor:
    """Pull the maps of the classes towards the patches that the class token attends to.

    The heads whose patches are similar to a prompt decide what it is pulled towards. All prompts
    share one minimum and one maximum, so that the map of one depends on which others there are.

    Args:
        maps: [B, K, h, w].
        attention: [B, A, N] products of the class token's query with the patches' keys.
        features: [B, C, h, w] of the patches, not of unit length.
        text: [K, C] unit rows.
        weight: lambda, >= 0.
        faithful: divide by the maximum before the minimum is subtracted, as the released code
            does; False: by the range.

    Returns:
        [B, K, h, w], a weighted mean of the maps and what they are pulled towards.
    """
    patches = features.float().flatten(2).mT  # [B, N, C]
    heads = F.normalize(attention @ patches / patches.shape[1], dim=-1)  # [B, A, C]
    chosen = (text @ heads.mT).softmax(dim=-1)  # [B, K, A]
    pull = (chosen @ attention).softmax(dim=-1)  # [B, K, N]
    low, high = _range(pull)
    pull = (pull - low) / (high if faithful else high - low).clamp(min=torch.finfo(pull.dtype).tiny)
    low, high = _range(maps)
    pull = pull.view(maps.shape) * (high - low).view(-1, 1, 1, 1) + low.view(-1, 1, 1, 1)
    return (maps + weight * pull) / (1 + weight)


def _range(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum of each image's maps, [B, 1, 1] each."""
    flat = maps.flatten(1)
    return flat.amin(dim=1)[:, None, None], flat.amax(dim=1)[:, None, None]
