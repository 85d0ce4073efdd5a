"""The rows of a comparison: functions from one forward pass to a label map.

Axes: B images, K prompts, M classes, (h, w) grid, (H, W) pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ovss_refine.attention import Attention
from ovss_refine.baseline.crf import DenseCrf
from ovss_refine.baseline.decision import decide
from ovss_refine.baseline.lposs import Lposs
from ovss_refine.baseline.pamr import pamr
from ovss_refine.baseline.rankseg import rankseg
from ovss_refine.baseline.resize import resize, resized_size
from ovss_refine.config import PAPER, RefineConfig
from ovss_refine.images.convert import as_guide
from ovss_refine.logits import Logits
from ovss_refine.method.distribution import confidence
from ovss_refine.method.modes import CONTROLS
from ovss_refine.refiner import refine
from ovss_refine.registry import require
from ovss_refine.upsamplers.bands import bands

# What rows need that is not installed by default.
NEEDS = {"rankseg": "rankseg", "crf": "pydensecrf"}
Size = tuple[int, int]
Row = Callable[[Logits, Attention, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The decision of a published method without refinement."""

    # Pixels whose best class has a lower confidence become class 0, in [0, 1].
    probability_threshold: float = 0.0
    # Classes up to this share of the foreground are dropped; None: none.
    area_threshold: float | None = None
    short_side: int | None = None  # to which the method resizes images; None: not resized
    # The logits are upsampled to the resized image first, then to the image.
    enlarged_twice: bool = False
    pamr_iterations: int = 0  # rounds of pixel-adaptive refinement of the upsampled logits, >= 0
    logit_scale: float = 1.0  # factor on the logits in addition to their own, as in `RefineConfig`

    def label(self, logits: Logits, attention: Attention, images: Tensor) -> Tensor:
        """Label [B, 3, H, W] images by the logits alone: [B, H, W]."""
        H, W = images.shape[2:]
        resized = (H, W) if self.short_side is None else resized_size(H, W, self.short_side)
        through = resized if self.enlarged_twice else None
        scaled = replace(logits, scale=logits.scale * self.logit_scale)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            if self.pamr_iterations:
                scaled, through = self._refined(scaled, images, through, resized), None
            return decide(
                scaled,
                (H, W),
                through=through,
                probability_threshold=self.probability_threshold,
                area_threshold=self.area_threshold,
            ).labels

    def _refined(
        self, logits: Logits, images: Tensor, through: Size | None, resized: Size
    ) -> Logits:
        """Upsample the logits and refine them by PAMR, guided by the resized image."""
        values = logits.values.float()
        for size in (through, images.shape[2:]):
            if size is not None:
                values = resize(values, size)
        guide = resize(images, resized).to(values.device)
        return replace(logits, values=pamr(values, guide, iterations=self.pamr_iterations))


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A row besides the usual ones: a refinement with its own options."""

    config: RefineConfig

    def label(self, logits: Logits, attention: Attention, images: Tensor) -> Tensor:
        """Label [B, 3, H, W] images: [B, H, W]."""
        return refine(logits, attention, images, self.config).labels


def make_rows(config: RefineConfig, baseline: Baseline) -> dict[str, Row]:
    """Make the rows of one mode.

    * baseline: the published decision, without refinement;
    * upsampling: the classes' confidence, upsampled as by `config` and nothing else;
    * refined: `config`;
    * paper: `config` with the paper's own reading of seeds, see `Refiner.paper`;
    * the controls, with the other options of `config`;
    * lposs, lposs+: label propagation along the same attention, as published otherwise;
    * rankseg, crf: other decisions on the logits alone, at the scale of the baseline.
    """
    scale = 1.0 if config.logit_scale == "auto" else config.logit_scale
    return {
        "baseline": replace(baseline, logit_scale=scale).label,
        "upsampling": partial(_upsampled, config),
        "refined": Variant(config=config).label,
        "paper": Variant(config=replace(config, **PAPER)).label,
        **{name: Variant(config=replace(config, mode=name)).label for name in CONTROLS},
        "lposs": partial(_propagated, Lposs()),
        "lposs+": partial(_propagated, Lposs(pixels=True)),
        "rankseg": partial(_ranked, scale),
        "crf": partial(_smoothed, DenseCrf(), scale),
    }


def _propagated(lposs: Lposs, logits: Logits, attention: Attention, images: Tensor) -> Tensor:
    return lposs(logits, attention, images).labels


def _ranked(scale: float, logits: Logits, attention: Attention, images: Tensor) -> Tensor:
    return rankseg(replace(logits, scale=scale * logits.scale), images)


def _smoothed(
    crf: DenseCrf, scale: float, logits: Logits, attention: Attention, images: Tensor
) -> Tensor:
    return crf(replace(logits, scale=scale * logits.scale), images).labels


def _upsampled(
    config: RefineConfig, logits: Logits, attention: Attention, images: Tensor
) -> Tensor:
    values, index = logits.values.float(), logits.prompt_index
    if index is not None:
        index = torch.as_tensor(index, device=values.device)
    scale = logits.scaled(config.logit_scale)
    with torch.no_grad(), torch.autocast(values.device.type, enabled=False):
        P, _ = confidence(values.flatten(2), index, scale, config.background)
        low = P.view(*P.shape[:2], *values.shape[2:])
        guide = as_guide(images, B=len(low)).to(low.device)
        return torch.cat([band.labels() for band in bands(low, guide, config)], dim=1)


def choose(table: Mapping[str, Row], names: tuple[str, ...]) -> dict[str, Row]:
    """Pick rows by name, in the order of the table.

    Raises:
        ValueError: on an unknown name, or if there are no names.
        ModuleNotFoundError: if a row needs a package that is not installed; names the extra.
    """
    unknown = [name for name in names if name not in table]
    if unknown or not names:
        raise ValueError(f"`rows` must be some of {list(table)}; got {[*names]}.")
    for module in (NEEDS[name] for name in names if name in NEEDS):
        require(module, "rivals")
    return {name: row for name, row in table.items() if name in names}


def without_background(logits: Logits) -> Logits:
    """Drop class 0 and its prompts, for a data set without background.

    Raises:
        ValueError: if there is no other class.
    """
    K = logits.values.shape[-3]
    index = torch.arange(K) if logits.prompt_index is None else torch.as_tensor(logits.prompt_index)
    rest = index > 0
    if not bool(rest.any()):
        raise ValueError("`logits` must have a class besides class 0, which is dropped; got M=1.")
    kept: dict[str, Any] = {"names": tuple(logits.names)[1:]}
    if logits.prompt_index is not None:
        kept["prompt_index"] = index[rest] - 1
    values = logits.values[..., rest.to(logits.values.device), :, :]
    return Logits(values, logits.scale, **kept)
