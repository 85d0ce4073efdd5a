"""Problems for the tests: random ones, and ones with known answers."""

from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st

import reference
from ovss_refine import Attention


def random_attention(rng, N, sharpness=1.5, heads=None):
    """A positive [N, N] or [heads, N, N] map whose rows sum to one, float64."""
    shape = (N, N) if heads is None else (heads, N, N)
    scores = np.exp(rng.normal(size=shape) * sharpness)
    return scores / scores.sum(-1, keepdims=True)


def random_sources(rng, B, M, N):
    """[B, M, N] float32 distributions, zero on about half of the patches."""
    q = rng.random((B, M, N)) * (rng.random((B, M, N)) < 0.5)
    q[..., 0] += 0.1
    return torch.from_numpy(q / q.sum(-1, keepdims=True)).float()


def block_attention(sizes, inside=1.0):
    """Attention between blocks of patches that do not see each other.

    Within a block everybody attends to everybody alike: the walk is at rest after one step.
    """
    N = sum(sizes)
    weights = torch.zeros(N, N)
    start = 0
    for size in sizes:
        weights[start : start + size, start : start + size] = inside / size
        start += size
    return weights


@dataclass
class Case:
    """One random image with everything a refinement takes; arrays float64, unbatched."""

    logits: np.ndarray
    attention: np.ndarray
    image: np.ndarray
    grid: tuple[int, int]
    prompt_index: list[int] | None = None
    options: dict = field(default_factory=dict)

    @property
    def N(self):
        return self.grid[0] * self.grid[1]

    def expected(self):
        """What the reference gives."""
        return reference.refine(
            self.logits,
            self.attention,
            self.image,
            self.grid,
            prompt_index=self.prompt_index,
            **self.options,
        )

    def tensors(self, dtype=torch.float32):
        """Logits, `Attention` and image as tensors."""
        attention = torch.from_numpy(self.attention).to(dtype)
        if attention.ndim == 3:  # heads; the batch axis tells them from images
            attention = Attention(attention[None], self.grid).weights[0]
        return (
            torch.from_numpy(self.logits).to(dtype),
            Attention(attention, self.grid),
            torch.from_numpy(self.image).to(dtype),
        )


@st.composite
def cases(draw, **fixed):
    """Random images of random sizes, options included; `fixed` options are not drawn."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    gh, gw = draw(st.integers(1, 6)), draw(st.integers(2, 6))
    K = draw(st.integers(1, 6))
    h, w = (gh, gw) if draw(st.booleans()) else (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    prompt_index = draw(st.sampled_from([None, [min(k, max(0, K - 2)) for k in range(K)]]))
    M = K if prompt_index is None else max(prompt_index) + 1
    backgrounds = [None, (0, 0.5), (M - 1, 0.9)]
    options = {
        "logit_scale": draw(st.sampled_from([1.0, 3.0])),
        "nms": draw(st.sampled_from(["classwise", "relative", "absolute"])),
        "nms_threshold": draw(st.sampled_from([0.5, 0.8, 0.95])),
        "seed_quantile": draw(st.sampled_from([0.0, 0.25, 0.6, 1.0])),
        "vote": draw(st.sampled_from([0.0, 0.006, 0.1])),
        "confidence_power": draw(st.sampled_from([0.0, 0.25])),
        "pre_propagation": draw(st.sampled_from([0, 1])),
        "min_area": draw(st.sampled_from([0.0, 0.2, 0.9])),
        "background": draw(st.sampled_from(backgrounds)),
    }
    return Case(
        # The 10 changes no softmax and keeps tiny cases from looking like unscaled cosines.
        logits=rng.normal(size=(K, h, w)) * 2 + 10,
        attention=random_attention(rng, gh * gw, heads=draw(st.sampled_from([None, 3]))),
        image=rng.random((3, draw(st.integers(1, 24)), draw(st.integers(1, 24)))),
        grid=(gh, gw),
        prompt_index=prompt_index,
        options=options | fixed,
    )
