"""CASS: CLIP's k-k attention combined with a low-rank graph of a self-supervised model's keys.

Source: C. Kim et al., "Distilling Spectral Graph for Object-Context Aware Open-Vocabulary Semantic
Segmentation", CVPR 2025. Each head of CLIP is paired with a head of DINO so that the spectra of
their graphs differ most; the ten strongest components of DINO's graph are kept, and the sum,
weighted by that difference, is the attention of the last block, with a Gaussian of the distance.

The released code draws its low-rank factors from the global random generator, so that a result
depends on all previous images; here every image starts from `seed`.

Axes: B images, A heads of d channels (the same A in both models), N = h * w patches of CLIP's grid,
q components.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ovss_refine.checks import check_count, check_number, check_shape
from ovss_refine.labels import LabelsLike
from ovss_refine_adapters.backbones.clip_tower import to_map
from ovss_refine_adapters.backbones.resize import resize_like_pillow
from ovss_refine_adapters.backbones.timm import TimmBackbone
from ovss_refine_adapters.logits.cass_graph import (
    assign,
    double,
    match_range,
    randomised_svd,
    scaled_products,
    spectrum,
    stretch,
)
from ovss_refine_adapters.logits.clip import gaussian
from ovss_refine_adapters.logits.global_text import GlobalTextClip
from ovss_refine_adapters.logits.proxyclip import as_backbone, denormalise, whole_patches
from ovss_refine_adapters.logits.windows import regrid

# Components kept of a graph.
RANK = 10
# Weight of DINO's graph relative to CLIP's, times the difference of the spectra.
GRAPH_WEIGHT = 10.0
# The released code undoes CLIP's normalisation with ImageNet's statistics, with 0.225 mistyped.
RELEASED_MEAN, RELEASED_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.255)


@runtime_checkable
class KeySource(Protocol):
    """Anything with keys of patches, such as a `TimmBackbone`."""

    def keys(self, images: Tensor) -> Tensor:
        """Turn [B, 3, H, W] images in [0, 1] into keys [B, A, gh * gw, d]."""
        ...

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return (gh, gw) for such images."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Pairing:
    """Which heads are paired.

    Attributes:
        cost: [B, A, A] one minus the difference of the spectra; row: DINO's head, column: CLIP's.
        heads: [B, A] int64 index of DINO's head for each of CLIP's.
        weight: [B, A] difference of the spectra of each of CLIP's heads and its partner.
    """

    cost: Tensor
    heads: Tensor
    weight: Tensor


class CassLogits(GlobalTextClip):
    """CLIP with attention from DINO's graph, and text moved towards the image.

    Memory beyond both models: 5 * B * A * N * N floats.
    Further arguments and exceptions are those of `DenseClip`.

    Args:
        proxy: source of the keys: "dino-b8" (published), any other name, folder or ready model that
            `TimmBackbone` takes, or an object with `keys` and `grid`. It must have as many heads as
            CLIP.
        spectrum_stretch: stretch the kept singular values. The released code does, except on
            PASCAL VOC 20 and Cityscapes.
        gaussian_std: standard deviation of the Gaussian in patches, > 0.
        seed: of the factorisation's random matrices, >= 0; used only with `faithful`.
        assignment: DINO's head for each of CLIP's, instead of the computed one.
        options: `global_weight`, `patch_weight`, `cluster_distance` and `global_from` of
            `GlobalTextClip`, and fields of `ClipOptions`. `faithful` follows the released code:
            DINO gets an 8-bit square image in false colours; the factorisation is a random
            approximation; and rows and columns of the cost are swapped when heads are paired.
            Otherwise DINO gets the image, the factorisation is exact, and a pair's weight is its
            own.

    Raises:
        TypeError: also on a proxy of another kind.
    """

    linkage = "ward"

    def __init__(
        self,
        classes: LabelsLike,
        *,
        proxy: str | Path | nn.Module | KeySource = "dino-b8",
        spectrum_stretch: bool = True,
        gaussian_std: float = 5.0,
        seed: int = 42,
        assignment: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        """Load both models, embed the classes and group the prompts."""
        check_number("gaussian_std", gaussian_std, 0, open_ends=True)
        check_count("seed", seed, 0)
        super().__init__(classes, **options)
        if isinstance(proxy, (str, Path, nn.Module)):
            proxy = as_backbone(proxy, self.tower.device, self.options.dtype)
        if isinstance(proxy, TimmBackbone):
            _check_heads(proxy, self.tower.heads)
        if not isinstance(proxy, KeySource):
            raise TypeError(
                "`proxy` must be a name, a model, or have `keys` and `grid`; got "
                f"{type(proxy).__name__}."
            )
        if assignment is not None and sorted(assignment) != list(range(self.tower.heads)):
            raise ValueError(
                f"`assignment` must name each of the {self.tower.heads} heads once; got "
                f"{list(assignment)}."
            )
        self.proxy = proxy
        self.spectrum_stretch = spectrum_stretch
        self.gaussian_std = gaussian_std
        self.seed = seed
        self.assignment = None if assignment is None else tuple(assignment)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute patch features [B, D, h, w] and the class embedding [B, D], both float32."""
        tower = self.tower
        grid = tower.grid(*pixels.shape[-2:])
        last = tower.layers - 1
        x, _ = tower.blocks(tower.stem(pixels), 0, last)
        all_k, all_v = tower.qkv(last, x, "kv")
        k, v = all_k[:, :, 1:], all_v[:, :, 1:]  # [B, A, N, d]
        keys = match_range(self.proxy_keys(pixels, grid), k)
        pairing = self.pair(keys, k)
        clip = scaled_products(k)  # [B, A, N, N]
        keys = keys.gather(1, pairing.heads[..., None, None].expand_as(keys))
        graph = match_range(self.low_rank(keys), clip, per_head=True)
        weight = GRAPH_WEIGHT * pairing.weight[..., None, None]
        joined = (weight * graph + clip) / (weight + 1)
        bias = gaussian(grid, self.gaussian_std, x.device)[1:, 1:]
        y = tower.project(last, (joined + bias).softmax(dim=-1) @ v)
        whole = tower.head(tower.class_token(last, x, all_k, all_v))[:, 0]
        return to_map(tower.head(y), grid), whole

    def class_embedding(self, pixels: Tensor) -> Tensor:
        """Compute the class embedding alone: [B, 3, H, W] normalised pixels to [B, D]."""
        tower = self.tower
        last = tower.layers - 1
        x, _ = tower.blocks(tower.stem(pixels), 0, last)
        return tower.head(tower.class_token(last, x, *tower.qkv(last, x, "kv")))[:, 0]

    def proxy_keys(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Compute DINO's keys on CLIP's grid: normalised pixels to [B, A, N, d'] float32."""
        if self.options.faithful:
            patch = getattr(self.proxy, "patch_size", (1, 1))
            images = whole_patches(released_view(pixels), patch)
        else:
            images = denormalise(pixels, self._mean, self._std)
            images = whole_patches(images, self.tower.patch)
        gh, gw = self.proxy.grid(images)
        keys = self.proxy.keys(images).to(pixels.device).float()
        B, A = len(pixels), self.tower.heads
        check_shape("keys of the proxy", keys, "B A N d", B=B, A=A, N=gh * gw)
        return regrid(keys, (gh, gw), grid)

    def pair(self, proxy: Tensor, clip: Tensor) -> Pairing:
        """Give each of CLIP's heads one of DINO's, by keys [B, A, N, d'] and [B, A, N, d].

        The pairs minimise the total cost, so that their spectra differ most.
        """
        # [B, A of DINO, A of CLIP]
        apart = (spectrum(proxy)[:, :, None] - spectrum(clip)[:, None]).abs().sum(dim=-1)
        # The released code reads the rows, DINO's heads, as CLIP's.
        rows = apart if self.options.faithful else apart.mT
        if self.assignment is None:
            heads = assign(rows).to(rows.device)
        else:
            heads = torch.tensor([self.assignment] * len(rows), device=rows.device)
        weight = rows.gather(2, heads[..., None])[..., 0]
        found = (1 - apart.float(), heads, weight.float())
        return Pairing(*(x.to(clip.device) for x in found))

    def low_rank(self, keys: Tensor) -> Tensor:
        """Keep the strongest components of the graphs of keys: [B, A, N, d] to [B, A, N, N].

        The diagonal is 0.
        """
        device, keys = keys.device, double(keys) * keys.shape[-1] ** -0.25
        N = keys.shape[2]
        if self.options.faithful:
            u, s, v = randomised_svd(keys, min(RANK, N), self.seed)
        else:
            u, s, _ = torch.linalg.svd(keys, full_matrices=False)
            u, s = u[..., :RANK], s[..., :RANK] ** 2
            v = u
        if self.spectrum_stretch:
            s = stretch(s)
        graph = ((u * s[..., None, :]) @ v.mT).float().to(device)
        graph.diagonal(dim1=-2, dim2=-1).zero_()
        return graph


def _check_heads(proxy: TimmBackbone, heads: int) -> None:
    proxy.check_attention(proxy.check_layers([-1]))
    found = proxy.model.blocks[-1].attn.num_heads
    if found != heads:
        raise ValueError(
            f"`proxy` must have as many heads in its last block as CLIP, {heads}; got {found}."
        )


def released_view(pixels: Tensor) -> Tensor:
    """Make the images that the released code gives to DINO, multiples of 1/255 in [0, 1].

    [B, 3, H, W] pixels normalised for CLIP to [B, 3, m, m], m = min(H, W): ImageNet's normalisation
    undone instead of CLIP's, truncated to 8 bits and resized to a square.
    """
    mean, std = (pixels.new_tensor(x).view(3, 1, 1) for x in (RELEASED_MEAN, RELEASED_STD))
    levels = ((pixels * std + mean).clamp(0, 1) * 255).floor()
    side = min(pixels.shape[-2:])
    return resize_like_pillow(levels, (side, side)) / 255
