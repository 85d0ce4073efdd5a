"""Random inputs of a refinement, each made of a seed alone.

Axes: B images, A heads, d channels of a head, K prompts, M classes, (h, w) grid of the logits,
(gh, gw) grid of the attention, N = gh * gw patches, (H, W) pixels.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from ovss_refine import Attention
from ovss_refine.method.modes import MODES

FLOATS = (torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class FuzzCase:
    """Valid inputs of one refinement, always with a batch axis.

    Attributes:
        logits: [B, K, h, w] of any float type.
        weights: [B, N, N] or, heads kept, [B, A, N, N] of any float type.
        factors: None, or queries and keys [B, A, N, d], and their scale; `weights` are theirs.
        grid: (gh, gw).
        image: [B, 3, H, W] uint8, or of any float type.
        prompt_index: [K] class of each prompt, or None.
        options: of the refinement, the mode included.
        traits: what was drawn, in words.
    """

    logits: torch.Tensor
    weights: torch.Tensor
    factors: tuple[torch.Tensor, torch.Tensor, float] | None
    grid: tuple[int, int]
    image: torch.Tensor
    prompt_index: list[int] | None
    options: dict
    traits: tuple[str, ...]

    @property
    def B(self):
        return len(self.logits)

    @property
    def M(self):
        return self.logits.shape[1] if self.prompt_index is None else max(self.prompt_index) + 1

    @property
    def attention(self):
        """The maps as `Attention`, dense."""
        return Attention(self.weights, self.grid)

    def held_as_factors(self):
        """The same maps, held as factors."""
        q, k, scale = self.factors
        return Attention.from_factors(q, k, scale, self.grid, form=False)

    def inputs(self):
        """The arguments of a call with the batch axis, without options."""
        return {
            "logits": self.logits,
            "attn": self.attention,
            "image": self.image,
            "prompt_index": self.prompt_index,
        }

    def single(self, b):
        """The case of image `b` alone."""
        one = slice(b, b + 1)
        factors = self.factors and (self.factors[0][one], self.factors[1][one], self.factors[2])
        return replace(
            self,
            logits=self.logits[one],
            weights=self.weights[one],
            image=self.image[one],
            factors=factors,
        )


def draw(seed):
    """Draw the case of a seed."""
    rng = np.random.default_rng(seed)
    shape, grid = _grid(rng)
    K = _pick(rng, {"one prompt": 1, "few prompts": rng.integers(2, 7), "forty": 40, "many": 1000})
    K = int(rng.integers(2, 7)) if K[1] == 1000 and rng.random() < 0.7 else int(K[1])
    B = int(rng.choice([1, 1, 1, 2, 3]))
    look, image = _image(rng, B)
    size = grid if rng.random() < 0.6 else _other_size(rng, *image.shape[2:])
    kind = str(rng.choice(list(LOGITS)))
    logits = torch.from_numpy(LOGITS[kind](rng, (B, K, *size))).to(FLOATS[rng.integers(5)])
    sort, weights, factors = _attention(rng, B, grid[0] * grid[1])
    index = _prompt_index(rng, K)
    options = _options(rng, K if index is None else max(index) + 1)
    if kind == "cosines":
        options["logit_scale"] = float(rng.choice([40, 100]))
    traits = (
        shape,
        kind + " logits",
        sort + " attention",
        look + " image",
        f"logits of {logits.dtype}",
        f"attention of {weights.dtype}",
        f"image of {image.dtype}",
        "a batch" if B > 1 else "one image",
        "one prompt" if K == 1 else "many prompts" if K > 100 else "few prompts",
        "synonyms" if index else "a class for each prompt",
        "background" if options["background"] else "no background",
        "resampled" if size != grid else "on the grid",
        options["mode"],
    )
    return FuzzCase(logits, weights, factors, grid, image, index, options, traits)


def _pick(rng, named):
    name = str(rng.choice(list(named)))
    return name, named[name]


def _grid(rng):
    side, other = (int(x) for x in rng.integers(2, 7, 2))
    grids = {
        "one patch": (1, 1),
        "a row": (1, side * other),
        "a column": (side * other, 1),
        "square": (side, side),
        "rectangle": (side, other + 1),
        "prime": [(2, 13), (3, 11), (5, 7), (7, 3), (1, 31), (37, 1)][rng.integers(6)],
    }
    if rng.random() < 0.02:
        return "large", (int(rng.integers(8, 20)), int(rng.integers(8, 20)))
    return _pick(rng, grids)


def _other_size(rng, H, W):
    """Draw a grid of the logits' own, square or of the image's shape: others may be refused."""
    side = int(rng.integers(1, 8))
    if rng.random() < 0.3:
        return side, side
    shorter = max(1, round(side * min(H, W) / max(H, W)))
    return (side, shorter) if H > W else (shorter, side)


# By name: [B, K, h, w] float64 logits.
LOGITS = {
    "normal": lambda rng, shape: rng.normal(size=shape) * 4,
    "cosines": lambda rng, shape: np.clip(rng.normal(size=shape) * 0.1 + 0.2, -1, 1),
    "tied": lambda rng, shape: rng.integers(-1, 2, shape) * 2.0,
    "constant": lambda rng, shape: np.full(shape, rng.normal() * 3),
    "one-hot": lambda rng, shape: 200.0 * (rng.random(shape) < 0.1),
    "large": lambda rng, shape: rng.normal(size=shape) * 1e4,
    "faint": lambda rng, shape: rng.normal(size=shape) * 1e-6,
    "shifted": lambda rng, shape: rng.normal(size=shape) * 2 + rng.choice([-500, 500]),
}


def _softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _mixed(rng, B, N, columns, share):
    """Attention of which `columns` of the patches, one at least, get `share`."""
    A = _softmax(rng.normal(size=(B, N, N)))
    chosen = rng.permutation(N)[:columns]
    sinks = np.zeros(N)
    sinks[chosen] = 1 / len(chosen)
    return (1 - share) * A + share * sinks


def _weak_columns(rng, B, N, factor):
    """Attention whose columns, but for the first, are weakened at random."""
    weak = rng.random(N) < 0.3
    weak[0] = False
    A = _softmax(rng.normal(size=(B, N, N))) * np.where(weak, factor, 1.0)
    return A / A.sum(-1, keepdims=True)


def _blocks(rng, B, N):
    """Attention between blocks of patches that do not see each other."""
    block = rng.integers(0, 3, N)
    A = np.exp(rng.normal(size=(B, N, N))) * (block[:, None] == block)
    return A / A.sum(-1, keepdims=True)


# By name: [B, N, N] float64 attention whose rows sum to one.
ATTENTION = {
    "soft": lambda rng, B, N: _softmax(rng.normal(size=(B, N, N)) * 1.5),
    "sharp": lambda rng, B, N: _softmax(rng.normal(size=(B, N, N)) * 30),
    "uniform": lambda rng, B, N: np.full((B, N, N), 1 / N),
    "identity": lambda rng, B, N: np.broadcast_to(np.eye(N), (B, N, N)).copy(),
    "one-hot": lambda rng, B, N: np.eye(N)[rng.integers(0, N, (B, N))],
    "permuting": lambda rng, B, N: np.eye(N)[[rng.permutation(N) for _ in range(B)]],
    "sunk": lambda rng, B, N: _mixed(rng, B, N, rng.integers(1, 4), 1.0),
    "half sunk": lambda rng, B, N: _mixed(rng, B, N, rng.integers(1, 4), rng.uniform(0.5, 0.999)),
    "zero-column": lambda rng, B, N: _weak_columns(rng, B, N, 0.0),
    "denormal-column": lambda rng, B, N: _weak_columns(rng, B, N, rng.choice([1e-30, 1e-42])),
    "block": _blocks,
}


def _attention(rng, B, N):
    """Draw the name of a kind, weights, and factors or None."""
    kind = str(rng.choice([*ATTENTION, "factored", "factored", "heads"]))
    dtype = FLOATS[rng.integers(5)]
    if kind == "factored":
        heads, d = (int(x) for x in rng.integers(1, 5, 2))
        q, k = torch.from_numpy(rng.normal(size=(2, B, heads, N, d))).to(dtype)
        scale = float(rng.choice([d**-0.5, 1.0, 10.0, 100.0]))
        weights = (scale * q.double() @ k.double().mT).softmax(-1).mean(1).float()
        return kind, weights, (q, k, scale)
    if kind == "heads":
        heads = np.stack([ATTENTION["soft"](rng, B, N) for _ in range(rng.integers(1, 4))], 1)
        return kind, torch.from_numpy(heads).to(dtype), None
    return kind, torch.from_numpy(ATTENTION[kind](rng, B, N)).to(dtype), None


def _image(rng, B):
    sizes = {
        "one-pixel": (1, 1),
        "thin": (1, int(rng.integers(2, 30))),
        "odd": tuple(int(x) * 2 + 1 for x in rng.integers(1, 8, 2)),
        "small": tuple(int(x) for x in rng.integers(2, 16, 2)),
    }
    name, size = _pick(rng, sizes)
    if rng.random() < 0.03:
        name, size = "large", (int(rng.integers(30, 90)), int(rng.integers(30, 90)))
    pixels = rng.random((B, 3, *size))
    look = str(rng.choice(["noisy", "flat", "black", "saturated"]))
    if look == "flat":
        pixels[:] = rng.random()
    elif look == "black":
        pixels[:] = 0
    elif look == "saturated":
        pixels = pixels.round()
    if rng.random() < 0.4:
        pixels = (pixels * 255).round()
        pixels[pixels == 1] = 2  # an image of 0 and 1 alone is taken for a float image, cast
        return f"{name} {look}", torch.from_numpy(pixels).to(torch.uint8)
    return f"{name} {look}", torch.from_numpy(pixels).to(FLOATS[rng.integers(5)])


def _prompt_index(rng, K):
    if K == 1 or rng.random() < 0.5:
        return None
    # Classes without a prompt come by chance.
    return rng.integers(0, rng.integers(1, K + 1), K).tolist()


def _options(rng, M):
    """Options in their ranges, a third of them at their defaults."""
    drawn = {
        "logit_scale": [1.0, 3.0, 0.05, 40.0],
        "nms": ["classwise", "relative", "absolute"],
        "seed_quantile": [0.0, 0.25, 0.5, 1.0, rng.random()],
        "vote": [0.0, 0.006, 0.05, 1.0, rng.random() ** 4],
        "confidence_power": [0.0, 0.25, 1.0, rng.random()],
        "nms_threshold": [0.0, 0.5, 0.8, 0.95, 1.0, rng.random()],
        "pre_propagation": [0, 1, 3],
        "min_area": [0.0, 0.02, 0.2, 0.9, 1.0],
        "epsilon": [0.02, 0.05, 0.1, 0.5, 5.0],
        "sinkhorn_iterations": [1, 2, 10, 50],
        "tau": [0.01, 0.3, 0.6, 0.99, rng.uniform(0.01, 0.99)],
        "criterion": ["first_passage", "increment"],
        "max_steps": [1, 2, 10, 30, 100],
        "ipf_rounds": [1, 2, 5, 15],
        "propagation_steps": [0, 1, 3, 7],
        "sigma_spatial": [0.1, 0.5, 1.0, 3.0, 100.0],
        "sigma_range": [0.01, 0.1, 1.0, 100.0],
        "radius": [0, 1, 2, 3],
    }
    options = {
        name: values[rng.integers(len(values))]
        for name, values in drawn.items()
        if rng.random() < 0.67
    }
    background = None
    if rng.random() < 0.3:
        background = (int(rng.integers(M)), float(rng.choice([0.0, 0.3, 0.6, 1.0])))
    return {**options, "background": background, "mode": str(rng.choice(list(MODES)))}
