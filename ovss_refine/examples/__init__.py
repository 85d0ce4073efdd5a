"""The built-in photographs with logits and attention, and a reader for such files.

Axes: K prompts, (h, w) grid, N = h * w patches, (H, W) pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ovss_refine.attention import Attention
from ovss_refine.checks import check_choice, check_shape
from ovss_refine.config import RefineConfig
from ovss_refine.folders.arrays import read_arrays
from ovss_refine.images.read import read_image
from ovss_refine.labels import Labels, read_labels
from ovss_refine.refiner import refine
from ovss_refine.result import RefineResult
from ovss_refine.sources.files import read_attention

EXAMPLES = Path(__file__).parent
ARRAYS = EXAMPLES / "dinov2_s14"


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
    """Return the names of the built-in photographs that have attention of a vision transformer."""
    return sorted(path.stem for path in ARRAYS.glob("*.txt"))


def read_example(name: str) -> RefineInputs:
    """Read a built-in photograph with a segmenter's logits and a ViT's attention.

    Raises:
        ValueError: if `name` is not in `list_examples()`.
    """
    labels = example_labels(name)
    arrays = read_arrays(ARRAYS / f"{name}.npz", ["logits"], ["codes"])
    logits = torch.from_numpy(arrays["logits"])  # [K, h, w]
    weights = torch.from_numpy(arrays["codes"]).float().square()  # [N, N]
    _, h, w = logits.shape
    attention = Attention(weights / weights.sum(dim=1, keepdim=True), (h, w))
    index = torch.tensor(labels.prompt_index)
    return RefineInputs(read_image(photograph(name)), logits, attention, index)


def photograph(name: str) -> Path:
    """Return the file of an example's photograph."""
    (path,) = EXAMPLES.glob(f"{name}.[jp][pn]g")
    return path


def example_labels(name: str) -> Labels:
    """Return the classes of an example's logits, and their prompts.

    Raises:
        ValueError: if `name` is not in `list_examples()`.
    """
    check_choice("name", name, list_examples())
    return read_labels(ARRAYS / f"{name}.txt")


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
