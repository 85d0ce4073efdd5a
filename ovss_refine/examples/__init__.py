"""The built-in photographs with logits and attention, and a reader for such files.

Axes: K prompts, (h, w) grid, N = h * w patches, (H, W) pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ovss_refine.attention import Attention
from ovss_refine.checks import check_shape
from ovss_refine.config import RefineConfig
from ovss_refine.folders.arrays import read_arrays
from ovss_refine.images.read import read_image
from ovss_refine.labels import read_labels
from ovss_refine.refiner import refine
from ovss_refine.result import RefineResult
from ovss_refine.sources.files import read_attention

EXAMPLES = Path(__file__).parent


@dataclass(frozen=True, slots=True, eq=False)
class RefineInputs:
    """An image and the inputs of its refinement.

    Attributes:
        image: [H, W, 3] uint8.
        logits: [K, h, w] float.
        attention: one map, without a batch axis; a tensor if its file names no grid.
        prompt_index: [K] class of each prompt; None: one class for each.
    """

    image: NDArray[np.uint8]
    logits: torch.Tensor
    attention: Attention | torch.Tensor
    prompt_index: torch.Tensor | None

    @property
    def M(self) -> int:
        """Number of classes."""
        return len(self.logits) if self.prompt_index is None else int(self.prompt_index.max()) + 1

    def refine(self, config: RefineConfig) -> RefineResult:
        """Refine this image."""
        image = torch.from_numpy(self.image.transpose(2, 0, 1).copy())
        return refine(self.logits, self.attention, image, config, prompt_index=self.prompt_index)


def list_examples() -> list[str]:
    """Return the names of the built-in photographs."""
    return sorted(path.stem for path in EXAMPLES.glob("*.png"))


def read_example(name: str) -> RefineInputs:
    """Read a built-in photograph with its logits and attention."""
    arrays = EXAMPLES / f"{name}.npz"
    return read_inputs(EXAMPLES / f"{name}.png", arrays, arrays, temperature=0.05)


def example_names() -> list[str]:
    """Return the names of the M classes of the examples' logits."""
    return list(read_labels(EXAMPLES / "voc_names.txt").names)


def read_inputs(image: Path, logits: Path, attention: Path, temperature: float) -> RefineInputs:
    """Read the files of one image.

    Raises:
        ValueError: on a damaged file, or one without a required array.
    """
    arrays = read_arrays(logits, ["logits"], optional=["prompt_index"])
    index = arrays.get("prompt_index")
    made = read_attention(attention, temperature)()
    own = torch.from_numpy(arrays["logits"])
    check_shape("logits", own, "K h w")
    prompts = None
    if index is not None:
        prompts = torch.from_numpy(index.astype(np.int64) if index.dtype.kind == "u" else index)
        check_shape("prompt_index", prompts, "K", K=len(own))
    return RefineInputs(read_image(image), own, made, prompts)
