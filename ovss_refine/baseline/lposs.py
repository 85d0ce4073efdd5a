"""LPOSS and LPOSS+: refinement by label propagation over patches, then over pixels.

Source: V. Stojnić et al., "LPOSS: Label Propagation Over Patches and Pixels for Open-vocabulary
Semantic Segmentation", CVPR 2025; written from its formulas, in the order of its released code.
Our own are the options' names, attention in the place of features, and batches.

Axes: B images, K prompts, M classes, (h, w) grid of the logits, C channels, (gh, gw) grid of the
features, N = gh * gw patches, n windows, (H, W) pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ovss_refine.attention import Attention
from ovss_refine.baseline.label_propagation import patch_graph, propagate
from ovss_refine.baseline.lposs_inputs import (
    FeaturesLike,
    LogitsLike,
    PromptIndex,
    Size,
    as_features,
    as_logits,
    check_pair,
    check_windows,
    coverage,
    grid_of,
    places,
    rows_of,
)
from ovss_refine.baseline.pixel_graph import PixelGraph
from ovss_refine.baseline.prompt_classes import PromptClasses
from ovss_refine.baseline.resize import resize, resized_size
from ovss_refine.checks import SCALES, check_count, check_flag, check_number
from ovss_refine.images.convert import ImagesLike, as_image_batch
from ovss_refine.logits import Logits

# Devices that have float64.
DOUBLE = ("cpu", "cuda")
# Each number and its range; the two sizes that may be None are apart.
NUMBERS = {
    "sigma": (0, 1e6),
    "gamma": (1e-6, 1e3),
    "power": (1e-6, 1e3),
    "alpha": (0, 0.999),
    "tau": SCALES,
}
COUNTS = {"neighbours": 1, "pixel_window": 1, "steps": 0}


@dataclass(frozen=True, slots=True, eq=False)
class Propagation:
    """A segmentation by label propagation. Without the leading B where the input had none.

    Attributes:
        labels: [B, H, W] int64 class of every pixel, in [0, M).
        scores: [B, M, H, W] float32 propagated logits, the largest of the class's prompts; on the
            scale of the logits, up to 20 times as large. -inf for classes without prompts.
    """

    labels: Tensor
    scores: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Lposs:
    """Refines any segmenter's logits by label propagation; holds its options and nothing else.

    The defaults are the published values, the same for all data sets.

    Args:
        pixels: whether labels are propagated over the pixels too: LPOSS+. Slow: seconds per image.
        neighbours: similar patches that each patch is joined with, itself among them, >= 1.
        sigma: how fast that similarity falls with the distance in pixels, in [0, 1e6].
        gamma: exponent of the cosine of features, in [1e-6, 1e3].
        power: exponent of the distance, in [1e-6, 1e3].
        alpha: how much a patch, or a pixel, takes from its neighbours, in [0, 0.999].
        tau: spread of the colours of LPOSS+, in [1e-6, 1e6].
        pixel_window: side of the window of LPOSS+ in pixels, >= 1.
        steps: of conjugate gradients, >= 0. The published ten do not converge, and are part of the
            method: more give other scores.
        short_side: to which images are resized, bilinearly; distances and LPOSS+ are in pixels of
            the resized image. None: not resized.
        patch_size: pixels of the resized image per patch, in [1e-6, 1e6]; None: its size divided
            by the grid's.

    Raises:
        TypeError: on a value of the wrong kind.
        ValueError: on a value out of range.

    Example:
        >>> import torch
        >>> logits, features = torch.rand(3, 4, 6), torch.rand(16, 4, 6)
        >>> Lposs(short_side=None)(logits, features, torch.rand(3, 32, 48)).labels.shape
        torch.Size([32, 48])
    """

    pixels: bool = False
    neighbours: int = 400
    sigma: float = 0.01
    gamma: float = 3.0
    power: float = 1.0
    alpha: float = 0.95
    tau: float = 0.01
    pixel_window: int = 13
    steps: int = 10
    short_side: int | None = 448
    patch_size: float | None = None

    def __post_init__(self) -> None:
        """Check the options, and make plain numbers of them."""
        checked: dict[str, Any] = {"pixels": check_flag("pixels", self.pixels)}
        for name, (low, high) in NUMBERS.items():
            checked[name] = check_number(name, getattr(self, name), low, high)
        for name, least in COUNTS.items():
            checked[name] = check_count(name, getattr(self, name), least)
        if self.short_side is not None:
            checked["short_side"] = check_count("short_side", self.short_side, 1)
        if self.patch_size is not None:
            checked["patch_size"] = check_number("patch_size", self.patch_size, *SCALES)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __call__(
        self,
        logits: LogitsLike,
        features: FeaturesLike,
        image: ImagesLike,
        *,
        prompt_index: PromptIndex = None,
        size: Size | None = None,
    ) -> Propagation:
        """Segment images from coarse logits and features.

        Either all inputs have the leading batch axis or none has. The work is done in float64, on
        the features' device if it has that and else on the CPU; the result is on the logits'
        device.
        Memory: about 200 * N * `neighbours` bytes, with attention 16 * N * N more; with `pixels`
        700 * H * W of the resized image more, and 8 * K * H * W for each of several copies of the
        maps.

        Args:
            logits: [B, K, h, w] or [K, h, w] of any segmenter, a tensor or an array of any float
                type, resized bilinearly to the grid of the features; or `Logits`. Their scale does
                not matter.
            features: [B, C, gh, gw] or [C, gh, gw] of any backbone, a tensor or an array, not
                necessarily normalised. The published ones are the values of the last layer of DINO
                ViT-B/16. Or `Attention`, whose rows are then the features: patches are similar
                that attend to the same patches.
            image: [B, 3, H, W] or [3, H, W] tensor, or another form of images, as for `Refiner`.
            prompt_index: [K] class of each prompt, as for `Refiner`; a class has the largest score
                of its prompts. The published lists have several for the background only.
            size: (H, W) of the result; None: the image's.

        Raises:
            TypeError: if an argument is not of the types above.
            ValueError: on shapes that do not fit together, or values that are not finite or out of
                range.
        """
        guide, several = as_image_batch(image, "image")
        known = {"B": len(guide)} if several else {}
        prompts = as_logits(logits, prompt_index, known)
        held = as_features(features, known)
        out = check_pair("size", guide.shape[2:] if size is None else size, 1)
        with torch.no_grad(), torch.autocast(held.device.type, enabled=False):
            values, work = self._prepare(prompts, held, guide)
            at = places(grid_of(held), self._cell(work, grid_of(held)))
            classes, found = PromptClasses.of(prompts, values.device), []
            for b in range(len(guide)):
                (maps,) = self._over_patches(values[b : b + 1], rows_of(held, b), at)
                # In the released order; the maxima of LPOSS+ and of windows are those of pixels.
                maps = maps if self.pixels else classes.best(maps)
                maps = self._over_pixels(resize(maps[None], work.shape[2:])[0], work[b])
                maps = classes.best(maps) if self.pixels else maps
                found.append(classes.label(maps, out))
        return _together(found, prompts.values.device, several=several)

    def windows(
        self,
        logits: LogitsLike,
        features: FeaturesLike,
        image: ImagesLike,
        origins: Sequence[Sequence[int]],
        *,
        window: Size = (224, 224),
        prompt_index: PromptIndex = None,
        size: Size | None = None,
    ) -> Propagation:
        """Segment one image from the logits and features of overlapping windows of it.

        One graph joins the patches of all windows, so that labels pass between them; their scores
        are upsampled and averaged where they overlap. This is the published setting, with windows
        of 224 x 224 pixels every 112 pixels of images with a short side of 448.

        Args:
            logits: [n, K, h, w] of the windows; otherwise as for a call.
            features: [n, C, gh, gw] of the windows; otherwise as for a call.
            image: [3, H, W] the whole image, or another form of one image.
            origins: [n] row and column of each window's first pixel in the resized image.
            window: height and width of the windows in its pixels. Inside the image, they cover it.
            prompt_index: [K] class of each prompt, as for a call.
            size: (H, W) of the result; None: the image's.

        Returns:
            Labels and scores without a batch axis.

        Raises:
            TypeError: if an argument is not of the types above.
            ValueError: on shapes that do not fit together, values that are not finite or out of
                range, and windows that leave the image or do not cover it.
        """
        guide, several = as_image_batch(image, "image")
        if several:
            raise ValueError(f"`image` must be one image; got {len(guide)}.")
        if isinstance(features, Attention):
            raise TypeError("`features` must be features; attention ends at its window's border.")
        window, known = check_pair("window", window, 1), {"n": len(origins)}
        prompts = as_logits(logits, prompt_index, known)
        held = as_features(features, known)
        out = check_pair("size", guide.shape[2:] if size is None else size, 1)
        with torch.no_grad(), torch.autocast(held.device.type, enabled=False):
            values, work = self._prepare(prompts, held, guide)
            slices = check_windows(origins, window, work.shape[2:])
            cell = self._cell(work[..., : window[0], : window[1]], grid_of(held))
            inside = places(grid_of(held), cell)
            starts = [inside.new_tensor([y.start, x.start]) for y, x in slices]
            at = torch.cat([inside + start for start in starts])
            tokens = torch.cat([rows_of(held, one) for one in range(len(origins))])
            maps = resize(self._over_patches(values, tokens, at), window)
            total = maps.new_zeros(maps.shape[1], *work.shape[2:])
            for one, (rows, columns) in zip(maps, slices, strict=True):
                total[:, rows, columns] += one
            mean = self._over_pixels(total / coverage(slices, total[0]), work[0])
            classes = PromptClasses.of(prompts, values.device)
            found = classes.label(classes.best(mean), out)
        return _together([found], prompts.values.device, several=False)

    def _prepare(
        self, prompts: Logits, held: Tensor | Attention, guide: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return logits [B, K, gh, gw] and images [B, 3, H', W'] to work on, in float64."""
        device = held.device if held.device.type in DOUBLE else torch.device("cpu")
        values = prompts.values if prompts.values.ndim == 4 else prompts.values[None]
        H, W = guide.shape[2:]
        work = (H, W) if self.short_side is None else resized_size(H, W, self.short_side)
        return (
            resize(values.to(device, torch.float64), grid_of(held)),
            resize(guide.to(device, torch.float64), work),
        )

    def _cell(self, image: Tensor, grid: Size) -> Size | tuple[float, float]:
        """Return the height and width of a patch in pixels of `image` [..., H, W]."""
        if self.patch_size is not None:
            return self.patch_size, self.patch_size
        H, W = image.shape[-2:]
        return H / grid[0], W / grid[1]

    def _over_patches(self, values: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        """Propagate [n, K, gh, gw] logits along the features [n * N, C] of n windows."""
        weights = patch_graph(
            tokens.to(values),
            at.to(values),
            neighbours=self.neighbours,
            sigma=self.sigma,
            gamma=self.gamma,
            power=self.power,
        )
        nodes = values.movedim(1, 0)  # [K, n, gh, gw]
        found = propagate(nodes.flatten(1), lambda x: (weights @ x.mT).mT, self.alpha, self.steps)
        return found.view_as(nodes).movedim(0, 1)

    def _over_pixels(self, maps: Tensor, image: Tensor) -> Tensor:
        """Propagate [K, H', W'] maps along the colours of [3, H', W']; LPOSS leaves them alone."""
        if not self.pixels:
            return maps
        graph = PixelGraph(image, self.pixel_window, self.tau)
        return propagate(maps, graph.times, self.alpha, self.steps)


def _together(
    found: Sequence[tuple[Tensor, Tensor]], device: torch.device, *, several: bool
) -> Propagation:
    labels, scores = (torch.stack(parts).to(device) for parts in zip(*found, strict=True))
    return Propagation(labels, scores) if several else Propagation(labels[0], scores[0])
