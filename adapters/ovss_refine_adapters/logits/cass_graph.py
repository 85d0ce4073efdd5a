"""CASS's graphs of keys: their spectra, pairing and low-rank factors.

Source: C. Kim et al., "Distilling Spectral Graph for Object-Context Aware Open-Vocabulary Semantic
Segmentation", CVPR 2025, section 3.

Axes: B images, A heads of d channels, N patches, q components.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.registry import require

# Eigenvalues by which two graphs are compared.
EIGENVALUES = 20
# Power iterations of the randomised factorisation.
POWER_ROUNDS = 2
# Above float32's rounding of a difference of spectra, far below half precision's.
TIE_BREAK = 1e-6
# Stretched singular values range from half the least to one and a half times the largest.
LEAST, MOST = 0.5, 1.5


def scaled_products(keys: Tensor) -> Tensor:
    """Compare keys with keys: k k^T / sqrt(d), [B, A, N, d] to [B, A, N, N]."""
    return (keys @ keys.mT).mul(keys.shape[-1] ** -0.5)


def match_range(x: Tensor, like: Tensor, *, per_head: bool = False) -> Tensor:
    """Map values linearly onto the range of others: [B, A, N, d] each, one range per image.

    With `per_head`, one per head. Constants map to the lower end.
    """
    axes = tuple(range(2 if per_head else 1, x.ndim))
    (low, high), (least, most) = (
        (y.amin(axes, keepdim=True), y.amax(axes, keepdim=True)) for y in (x, like)
    )
    share = (x - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny)
    return share * (most - least) + least


def double(x: Tensor) -> Tensor:
    """Return `x` in float64, on the CPU if it lies on a device that may not have float64."""
    return (x if x.device.type in ("cpu", "cuda", "meta") else x.cpu()).double()


def assign(worth: Tensor) -> Tensor:
    """Pair rows with columns for the largest total, by the Hungarian method.

    If one eigenvalue dominates every graph, `worth` is nearly a row term plus a column term, all
    assignments are equally good, and rounding would decide. A small penalty on the distance from
    the diagonal breaks such ties. [B, A, A] to the [B, A] int64 column of each row, on the CPU.
    """
    solve = require("scipy.optimize", "models").linear_sum_assignment
    places = torch.arange(worth.shape[-1], dtype=torch.float64, device="cpu")
    total = worth.cpu().double() - TIE_BREAK * (places[:, None] - places) ** 2
    return torch.stack([torch.from_numpy(solve(-one.numpy())[1]) for one in total])


def spectrum(keys: Tensor) -> Tensor:
    """Compute the largest eigenvalues of the graph k k^T / sqrt(d), as shares of their sum.

    [B, A, N, d] to [B, A, 20] as `double`, ascending; fewer if there are fewer patches.
    """
    # k^T k has the same eigenvalues except zeros, and is d x d.
    keys = double(keys)
    values = torch.linalg.eigvalsh(keys.mT @ keys).clamp(min=0)
    count = min(EIGENVALUES, keys.shape[2])
    values = F.pad(values, (max(count - values.shape[-1], 0), 0))[..., -count:]
    return values / values.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


def randomised_svd(factor: Tensor, q: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Factor F F^T by random projection, as `torch.svd_lowrank` does, with its own seed.

    N. Halko et al., "Finding structure with randomness", SIAM Review 2011, algorithms 4.4 and 5.1.
    The random matrices are drawn head by head; every image gets the same. F is [B, A, N, d].

    Returns:
        U [B, A, N, q], singular values s [B, A, q] descending, V [B, A, N, q], q <= N, in the dtype
        of `factor`: F F^T is about U diag(s) V^T.
    """
    N = factor.shape[2]
    # On the CPU, so that a seed gives the same matrices on every device.
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        torch.randn(N, q, dtype=factor.dtype, generator=generator) for _ in range(factor.shape[1])
    ]
    basis = torch.stack(drawn).to(factor.device).expand(len(factor), -1, -1, -1)
    # F F^T is symmetric, so that each round of the algorithm multiplies by it twice.
    for _ in range(1 + 2 * POWER_ROUNDS):
        basis = torch.linalg.qr(factor @ (factor.mT @ basis)).Q
    projected = (basis.mT @ factor) @ factor.mT  # [B, A, q, N]
    u, s, vh = torch.linalg.svd(projected, full_matrices=False)
    return basis @ u, s, vh.mT


def stretch(values: Tensor) -> Tensor:
    """Spread [..., q] singular values, descending, from half the least to 1.5 times the largest.

    They are unchanged where all are equal.
    """
    least, most = values[..., -1:], values[..., :1]
    span = most - least
    share = (values - least) / span.clamp(min=torch.finfo(values.dtype).tiny)
    return torch.where(span > 0, share * (MOST * most - LEAST * least) + LEAST * least, values)
