"""ProxyCLIP: CLIP's values, aggregated by the similarity of another model's features.

Source: M. Lan et al., "ProxyCLIP: Proxy Attention Improves CLIP for Open-Vocabulary Segmentation",
ECCV 2024. The last block keeps its values v and its output projection O, without residual and
feed-forward part; its attention is softmax(gamma (S - beta mean(S))), masked where negative, with
S the cosine similarity of a self-supervised model's patches.

Two departures from the released code: the grid is (rows, columns) of the image, where the code uses
the height for both, which is right only on squares; and the mean of S is taken per image, not per
batch.

Axes: B images, A heads of d channels, C proxy channels, (h, w) CLIP's grid, (gh, gw) the proxy's,
n = gh * gw.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine.attention import Attention, AttentionSource
from ovss_refine.checks import check_finite, check_float, check_number, check_shape
from ovss_refine.labels import LabelsLike
from ovss_refine.sources.device import DtypeLike
from ovss_refine_adapters.backbones.clip_tower import to_map
from ovss_refine_adapters.backbones.timm import Positions, TimmBackbone
from ovss_refine_adapters.logits.attending import AttendingLogits, Compared
from ovss_refine_adapters.logits.dense import DenseClip
from ovss_refine_adapters.logits.windows import regrid

# timm names, and how the position table is resized: DINO's released code has its own rule.
BACKBONES: dict[str, tuple[str, Positions]] = {
    "dino-b8": ("vit_base_patch8_224.dino", "reference"),
    "dino-b16": ("vit_base_patch16_224.dino", "reference"),
    "dinov2-b14-reg": ("vit_base_patch14_reg4_dinov2.lvd142m", "timm"),
}
# The released code pads windows to this: a multiple of the patches of DINO (8) and DINOv2 (14).
PUBLISHED_MULTIPLE = 56


@runtime_checkable
class DenseFeatures(Protocol):
    """Anything with dense features, such as a `TimmBackbone`."""

    def features(self, images: Tensor) -> Tensor:
        """Turn [B, 3, H, W] images in [0, 1] into [B, C, gh, gw] features."""
        ...


Proxy = str | Path | nn.Module | DenseFeatures | AttentionSource | Callable[[Tensor], Tensor]


class ProxyClipLogits(AttendingLogits, DenseClip):
    """CLIP's values, aggregated over the patches that another model finds similar.

    The logits are on the proxy's grid. A transformer as proxy also makes it a source of attention,
    of the last block of the proxy. Memory beyond both models, with features: 4 * B * n * n
    floats. Further arguments and exceptions are those of `DenseClip`.

    Args:
        proxy: source of the similarity: "dino-b8" (published), "dino-b16", "dinov2-b14-reg", any
            other name, folder or ready model that `TimmBackbone` takes; an object with
            `features(images)`, or a function, from [B, 3, H, W] in [0, 1] to [B, C, gh, gw]; or
            an attention source, whose map then replaces the masked softmax, so that `beta` and
            `gamma` are not used.
        beta: share of the mean similarity below which patches are masked, >= 0.
        gamma: factor before the softmax, > 0.
        options: fields of `ClipOptions`; `window` is 336 by default. `faithful` pads windows to
            multiples of 56 pixels, and gives a backbone the image cropped to whole patches of its
            own; otherwise they are padded to whole patches of both models, and the proxy gets the
            pixels that CLIP's patches cover.

    Raises:
        TypeError: also on a proxy of another kind.
    """

    defaults: ClassVar[dict[str, Any]] = {"window": 336}

    def __init__(
        self,
        classes: LabelsLike,
        *,
        proxy: Proxy = "dino-b8",
        beta: float = 1.2,
        gamma: float = 3.0,
        **options: Any,
    ) -> None:
        """Load both models and embed the classes."""
        check_number("beta", beta, 0)
        check_number("gamma", gamma, 0, open_ends=True)
        super().__init__(classes, **options)
        if isinstance(proxy, (str, Path, nn.Module)):
            proxy = as_backbone(proxy, self.tower.device, self.options.dtype)
        self.backbone = proxy if isinstance(proxy, TimmBackbone) else None
        self.patch = None if self.backbone is None else self.backbone.patch_size
        self.proxy = as_proxy(proxy)
        self.beta = beta
        self.gamma = gamma
        self.window_multiple = PUBLISHED_MULTIPLE
        if not self.options.faithful:
            self.window_multiple = math.lcm(*self.tower.patch, *(self.patch or ()))

    def features(self, pixels: Tensor) -> Tensor:
        """Compute patch features: [B, 3, H, W] normalised pixels to [B, D, gh, gw] float32.

        Raises TypeError or ValueError if the proxy's output does not fit the images.
        """
        proxy, images = self.proxy, self.proxy_images(pixels)
        found = proxy.attention(images) if isinstance(proxy, AttentionSource) else proxy(images)
        return self._aggregate(pixels, images, found)

    def compared(self, pixels: Tensor) -> Compared:
        """Run the proxy up to its last queries and keys, if it is a vision transformer."""
        backbone, images = self._transformer(), self.proxy_images(pixels)
        (found,) = backbone.projections(images, [-1])
        return Compared(found.q, found.k, found.scale, backbone.prefix, backbone.grid(images))

    def values_and_compared(self, pixels: Tensor, context: Any) -> tuple[Tensor, Compared]:
        """Return what `cosines` and `compared` return, from one pass of the proxy."""
        backbone, images = self._transformer(), self.proxy_images(pixels)
        features, found = backbone.features_and_projections(images)
        values = self.compare(self._aggregate(pixels, images, features))
        grid = backbone.grid(images)
        return values, Compared(found.q, found.k, found.scale, backbone.prefix, grid)

    def proxy_images(self, pixels: Tensor) -> Tensor:
        """Make the images in [0, 1] that the proxy is given of normalised pixels."""
        # The released code crops to whole patches of the proxy, not of CLIP.
        patch = (self.options.faithful and self.patch) or self.tower.patch
        return whole_patches(denormalise(pixels, self._mean, self._std), patch)

    def _aggregate(self, pixels: Tensor, images: Tensor, found: Tensor | Attention) -> Tensor:
        """Aggregate CLIP's values by what the proxy found in the images: [B, D, gh, gw]."""
        tower = self.tower
        last = tower.layers - 1
        x, _ = tower.blocks(tower.stem(pixels), 0, last)
        (v,) = tower.qkv(last, x[:, 1:], "v")  # [B, A, N, d]
        own = tower.grid(*pixels.shape[-2:])
        if isinstance(found, Attention):
            _check_map(found, images)
            grid = found.grid
            v = regrid(v, own, grid)
            rows = [block[:, None].to(v.device) @ v for _, block in found.blocks()]
            y = torch.cat(rows, dim=2)  # [B, A, n, d]
        else:
            grid = _check_features(found, images)
            v = regrid(v, own, grid)
            y = proxy_attention(found.to(v.device).float(), self.beta, self.gamma)[:, None] @ v
        return to_map(tower.head(tower.project(last, y)), grid)

    def _transformer(self) -> TimmBackbone:
        """Return the proxy, or raise ValueError if it is no model whose attention is known."""
        if self.backbone is None:
            raise ValueError(
                "`proxy` must be a name or a model to give attention too; got an object of your "
                "own. Pass a source of attention."
            )
        self.backbone.check_attention(self.backbone.check_layers([-1]))
        return self.backbone


def as_backbone(
    proxy: str | Path | nn.Module, device: torch.device, dtype: DtypeLike = None
) -> TimmBackbone:
    """Load a backbone by one of our names or as `TimmBackbone` does, or take a ready model."""
    if isinstance(proxy, nn.Module):
        return TimmBackbone(proxy)
    if str(proxy) in BACKBONES:
        name, positions = BACKBONES[str(proxy)]
        return TimmBackbone(name, positions=positions, device=device, dtype=dtype)
    try:
        return TimmBackbone(proxy, device=device, dtype=dtype)
    except ValueError as error:
        raise ValueError(
            f"`proxy` must be one of {sorted(BACKBONES)} or a model that timm knows; got "
            f"{proxy!r}: {error}"
        ) from error


def as_proxy(
    proxy: DenseFeatures | AttentionSource | Callable[[Tensor], Tensor],
) -> AttentionSource | Callable[[Tensor], Tensor]:
    """Return an attention source, or a function from images to features, or raise TypeError."""
    dense, attends = isinstance(proxy, DenseFeatures), isinstance(proxy, AttentionSource)
    if dense and attends:
        raise TypeError(
            "`proxy` must have `features` or `attention`, as only one can be used; got "
            f"{type(proxy).__name__}, which has both. Pass its method `features` to use these."
        )
    if isinstance(proxy, DenseFeatures):
        return proxy.features
    if not (attends or callable(proxy)):
        raise TypeError(
            "`proxy` must be a name, a model, a function, or have `features` or `attention`; got "
            f"{type(proxy).__name__}."
        )
    return proxy


def denormalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn normalised pixels back into images in [0, 1], with statistics in [0, 255]."""
    return ((pixels * std + mean) / 255).clamp(0, 1)


def whole_patches(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Crop [B, 3, H, W] images to whole patches from the top left, at least one pixel."""
    H, W = (side // p * p or side for side, p in zip(images.shape[-2:], patch, strict=True))
    return images[..., :H, :W]


def proxy_attention(features: Tensor, beta: float, gamma: float) -> Tensor:
    """Attend by the cosines of features with `masked_softmax`: [B, C, gh, gw] to [B, n, n]."""
    unit = F.normalize(features.flatten(2), dim=1)  # [B, C, n]
    return masked_softmax(unit.mT @ unit, beta, gamma)


def masked_softmax(similarity: Tensor, beta: float, gamma: float) -> Tensor:
    """Attend where similarity exceeds `beta` times its mean: softmax(gamma (S - beta mean(S))).

    A patch always attends to itself. That matters only if all of its row is masked, as on an image
    of a single colour, where the softmax would be 0 / 0. The mean is per image: [B, n, n] cosines
    to [B, n, n] with rows that sum to one.
    """
    mean = similarity.mean(dim=(1, 2), keepdim=True)
    scaled = (similarity - beta * mean) * gamma
    own = torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)
    return scaled.masked_fill((scaled < 0) & ~own, -torch.inf).softmax(dim=-1)


def _check_features(features: Tensor, images: Tensor) -> tuple[int, int]:
    """Return the grid of the proxy's features, or raise."""
    name = "features of the proxy"
    sizes = check_shape(name, features, "B C gh gw", B=len(images))
    check_float(name, features)
    check_finite(name, features)
    grid = sizes["gh"], sizes["gw"]
    _check_orientation(grid, images)
    return grid


def _check_map(attention: Attention, images: Tensor) -> None:
    B = attention.shape[0] if len(attention.shape) == 3 else 1
    if len(images) != B:
        raise ValueError(f"`proxy` must give B={len(images)} attention maps; got {B}.")
    _check_orientation(attention.grid, images)


def _check_orientation(grid: tuple[int, int], images: Tensor) -> None:
    """Raise if the grid is transposed; a proxy may have one grid for all images."""
    (gh, gw), (H, W) = grid, images.shape[-2:]
    if (gh - gw) * (H - W) < 0:
        raise ValueError(
            "`proxy` must have a grid oriented like the image, (rows, columns); got "
            f"{gh} x {gw} for {H} x {W} pixels."
        )
