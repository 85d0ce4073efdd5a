"""Attention from dense features: softmax over patches of cosine similarity / temperature.

The method's affinity, for backbones without attention, including convolutional ones.

Axes: B images, C channels, N = gh * gw patches.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine.attention import Attention, affinity
from ovss_refine.checks import SCALES, check_number, check_shape
from ovss_refine.images.convert import ImagesLike
from ovss_refine.sources.device import DtypeLike
from ovss_refine_adapters.backbones.capture import check_images
from ovss_refine_adapters.backbones.timm import TimmBackbone


class AffinityAttention:
    """The affinity of dense features as attention.

    Args:
        features: their source: a function from [B, 3, H, W] images in [0, 1] to
            [B, C, gh, gw] features; such features themselves, for images in the same
            order; or a `TimmBackbone`.
        layer: block or stage of a backbone, negative from the end.
        temperature: in [1e-6, 1e6]; smaller is sharper.
        factors: return the features as queries and keys instead of the N x N map.

    Raises:
        TypeError, ValueError: on a value of the wrong kind, a `temperature` out of range, or a
            layer that does not exist.
    """

    def __init__(
        self,
        features: Callable[[Tensor], Tensor] | Tensor | TimmBackbone,
        *,
        layer: int = -1,
        temperature: float = 0.1,
        factors: bool = False,
    ) -> None:
        """Check and store the options."""
        check_number("temperature", temperature, *SCALES)
        if isinstance(features, TimmBackbone):
            features.check_layers([layer])
        elif isinstance(features, Tensor):
            check_shape("features", features, "B C gh gw")
        elif not callable(features):
            raise TypeError(
                "`features` must be a function of images, a tensor or a backbone; got "
                f"{type(features).__name__}."
            )
        self.source = features
        self.layer = layer
        self.temperature = temperature
        self.factors = factors

    def attention(self, images: ImagesLike) -> Attention:
        """Compute B float32 maps over the features' grid, on the device of `images`.

        Images and exceptions are those of `AttentionSource`; features that are not finite
        [B, C, gh, gw] raise too. Peak memory: three maps of B * N * N floats; with `factors`,
        3 * B * C * N floats.
        """
        images = check_images(images)
        features = self._features(images)
        check_shape("features", features, "B C gh gw", B=len(images))
        features = features.detach().to(images.device)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            if not self.factors:
                return affinity(features, self.temperature)
            unit = F.normalize(features.float().flatten(2), dim=1).mT[:, None]  # [B, 1, N, C]
        gh, gw = features.shape[2:]
        return Attention.from_factors(unit, unit, 1 / self.temperature, (gh, gw))

    def _features(self, images: Tensor) -> Tensor:
        if isinstance(self.source, Tensor):
            return self.source
        if isinstance(self.source, TimmBackbone):
            return self.source.features(images, self.layer)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.source(images)


def timm_affinity(
    model: str | Path | nn.Module,
    *,
    layer: int = -1,
    temperature: float = 0.1,
    factors: bool = False,
    weights: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    device: str | torch.device | None = None,
    dtype: DtypeLike = None,
) -> AffinityAttention:
    """Make an `AffinityAttention` of a timm backbone's features, convolutional ones included.

    Arguments and exceptions are those of `TimmBackbone` and `AffinityAttention`.
    """
    backbone = TimmBackbone(model, weights=weights, size=size, device=device, dtype=dtype)
    return AffinityAttention(backbone, layer=layer, temperature=temperature, factors=factors)
