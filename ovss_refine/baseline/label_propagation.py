"""Label propagation over a graph, and the graph of patches that LPOSS propagates over.

Sources: V. Stojnić et al., "LPOSS: Label Propagation Over Patches and Pixels for Open-vocabulary
Semantic Segmentation", CVPR 2025, and what its released code computes; D. Zhou et al., "Learning
with Local and Global Consistency", NIPS 2003, for the linear system. Everything is float64.

Axes: K maps, N nodes, C channels, k neighbours of a node.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Values of the maps that are solved for at a time, and similarities that are held at a time.
BLOCK = 1 << 20
# A map is solved when its residual is this small, relative to the map that was given.
TOLERANCE = 1e-6


def propagate(
    maps: Tensor,
    times: Callable[[Tensor], Tensor],
    alpha: float,
    steps: int,
    tolerance: float = TOLERANCE,
) -> Tensor:
    """Solve (I - alpha D^-1/2 W D^-1/2) x = y for each map y, by conjugate gradients from 0.

    The published method stops after 10 steps, before they converge: the number of steps is part of
    the result. Each map has its own step lengths, as if it were alone. Nothing is scaled back, so
    that values may grow by up to 1 / (1 - alpha).

    Args:
        maps: [K, ...] float64 maps y over the nodes, any range.
        times: the product of maps with the weights W, [K, ...] to new [K, ...]; W is symmetric,
            with entries >= 0. D has W's row sums; a node without neighbours keeps its value.
        alpha: how much a node takes from its neighbours, in [0, 1).
        steps: upper bound on the steps, >= 0.
        tolerance: a map is done when its residual is at most this share of its norm.

    Returns:
        [K, ...] float64.
    """
    degree = times(torch.ones_like(maps[:1]))
    root = degree.where(degree > 0, 1).rsqrt()

    def system(x: Tensor) -> Tensor:
        return times(root * x).mul_(-alpha * root).add_(x)

    parts = torch.split(maps, max(1, BLOCK // maps[0].numel()))
    return torch.cat([_conjugate_gradients(system, y, steps, tolerance) for y in parts])


def _conjugate_gradients(
    system: Callable[[Tensor], Tensor], y: Tensor, steps: int, tolerance: float
) -> Tensor:
    """Solve for every map [K, ...] on its own; those that are done stand still."""
    x, r, p = torch.zeros_like(y), y.clone(), y.clone()
    squares = _dot(r, r)
    done = tolerance**2 * squares
    for _ in range(steps):
        going = squares > done
        if not bool(going.any()):
            break
        q = system(p)
        length = (squares / _dot(p, q)).where(going, 0)  # 0 / 0 in maps that are done
        x.addcmul_(length, p)
        r.addcmul_(length, q, value=-1)
        before, squares = squares, _dot(r, r)
        p.mul_((squares / before).where(going, 0)).add_(r)
    return x


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Multiply maps [K, ...] with others, [K, 1, ...]."""
    products = x.flatten(1)[:, None] @ y.flatten(1)[..., None]
    return products.view(-1, *[1] * (x.ndim - 1))


def patch_graph(
    features: Tensor,
    places: Tensor,
    *,
    neighbours: int,
    sigma: float,
    gamma: float,
    power: float,
) -> Tensor:
    """Join every patch with those whose features are most similar, near ones more strongly.

    Patch i gives each of its `neighbours` most similar patches j, itself among them,
    max(cos(i, j), 0)^gamma * exp(-sigma * distance(i, j)^power). The weight of a pair is the sum of
    what both give, so that mutual neighbours count twice; a patch has no weight with itself.

    Memory: about 200 * N * k bytes. No N x N matrix is formed.

    Args:
        features: [N, C] float64, any length; a patch without features joins nothing.
        places: [N, 2] float64 row and column of each patch, in pixels, from any origin.
        neighbours: k; all N where there are fewer.
        sigma: how fast the weight falls with the distance, per pixel^power.
        gamma: exponent of the cosine.
        power: exponent of the distance.

    Returns:
        [N, N] sparse weights, symmetric.
    """
    N, k = len(features), min(neighbours, len(features))
    unit = F.normalize(features, dim=1)
    best = [(rows @ unit.T).topk(k, dim=1) for rows in torch.split(unit, max(1, BLOCK // N))]
    cosine = torch.cat([values for values, _ in best])  # [N, k]
    there = torch.cat([index for _, index in best])
    apart = (places[there] - places[:, None]).norm(dim=2)
    weight = cosine.clamp_min(0) ** gamma * (-sigma * apart**power).exp()
    here = torch.arange(N, device=there.device)[:, None].expand_as(there)
    others = here != there
    edges = torch.stack([here[others], there[others]])
    pairs, weights = torch.cat([edges, edges.flip(0)], dim=1), weight[others].repeat(2)
    graph = torch.sparse_coo_tensor(
        pairs, weights, (N, N), device=pairs.device, check_invariants=False
    )
    return graph.coalesce()  # adds what the patches of a pair give each other
