"""A dense CRF, a refiner without attention: pixels of like colour get like labels.

Source: P. Krähenbühl and V. Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011. Computed by their code (BSD) as the package `pydensecrf2` wraps it (MIT),
with the options of DeepLab (L.-C. Chen et al., TPAMI 2018) for VOC, which most later work copies.

Axes: B images, M classes, (H, W) pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ovss_refine.baseline.decision import Decision
from ovss_refine.baseline.probabilities import class_probabilities
from ovss_refine.checks import SCALES, check_count, check_number
from ovss_refine.images.convert import as_guide
from ovss_refine.logits import Logits
from ovss_refine.registry import require

# Of probabilities, before their logarithm.
FLOOR = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseCrf:
    """Mean-field inference in a CRF over all pairs of pixels of an image, on the CPU.

    Attributes:
        iterations: of mean field, >= 0.
        smooth_weight: of the kernel in position alone, >= 0.
        smooth_sigma: its spread in pixels, in [1e-6, 1e6].
        colour_weight: of the kernel in position and colour, >= 0.
        colour_sigma: its spread in colour, RGB in [0, 255], in [1e-6, 1e6].
        reach_sigma: its spread in pixels, in [1e-6, 1e6].

    Raises:
        TypeError: on an option of the wrong kind.
        ValueError: on an option out of range.
    """

    iterations: int = 10
    smooth_weight: float = 3.0
    smooth_sigma: float = 1.0
    colour_weight: float = 4.0
    colour_sigma: float = 3.0
    reach_sigma: float = 67.0

    def __post_init__(self) -> None:
        """Check the options."""
        check_count("iterations", self.iterations, 0)
        for name in ("smooth_weight", "colour_weight"):
            check_number(name, getattr(self, name), 0)
        for name in ("smooth_sigma", "colour_sigma", "reach_sigma"):
            check_number(name, getattr(self, name), *SCALES)

    def __call__(self, logits: Logits, images: Tensor) -> Decision:
        """Refine the class probabilities of bilinearly upsampled logits.

        Args:
            logits: of B images, with their scale.
            images: [B, 3, H, W]; float in [0, 1] or uint8.

        Returns:
            Labels [B, H, W] and scores [B, M, H, W], the marginals, on the device of the logits.

        Raises:
            ModuleNotFoundError: if `pydensecrf` is not installed; names the extra.
            ValueError: if the shapes do not fit, or on images out of range.
        """
        require("pydensecrf", "rivals")
        guide = as_guide(images, B=len(logits.values))
        with torch.no_grad(), torch.autocast(logits.values.device.type, enabled=False):
            P = class_probabilities(logits, images.shape[2:])
        pixels = (255 * guide).round().byte().permute(0, 2, 3, 1).cpu().contiguous()
        scores = torch.stack(
            [self._refined(p, rgb) for p, rgb in zip(P.cpu(), pixels, strict=True)]
        )
        scores = scores.to(P.device)
        return Decision(scores.max(dim=1).indices, scores)

    def _refined(self, P: Tensor, rgb: Tensor) -> Tensor:
        """Refine [M, H, W] by an image [H, W, 3] uint8."""
        M, H, W = P.shape
        crf = require("pydensecrf.densecrf", "rivals").DenseCRF2D(W, H, M)
        energy = -P.clamp_min(FLOOR).log().flatten(1)  # [M, H * W]
        crf.setUnaryEnergy(np.ascontiguousarray(energy.numpy()))
        crf.addPairwiseGaussian(sxy=self.smooth_sigma, compat=self.smooth_weight)
        crf.addPairwiseBilateral(
            sxy=self.reach_sigma,
            srgb=self.colour_sigma,
            rgbim=rgb.numpy(),
            compat=self.colour_weight,
        )
        found = np.array(crf.inference(self.iterations), dtype=np.float32)
        return torch.from_numpy(found).view(M, H, W)
