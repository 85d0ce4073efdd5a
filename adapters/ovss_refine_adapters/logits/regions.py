"""Regions of an image: clusters of patches, and logits averaged over regions.

Source of the clusters: M. Ester et al., "A Density-Based Algorithm for Discovering Clusters in
Large Spatial Databases with Noise" (DBSCAN), KDD 1996.

Axes: N points of C coordinates, K prompts, M classes, R regions, P pixels, (H, W) pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine_adapters.logits.windows import upsample

# Side of the median filter that smooths clusters, on a grid refined by this factor.
MEDIAN, REFINED = 7, 4


def dbscan(points: Tensor, eps: float, min_samples: int) -> Tensor:
    """Cluster [N, C] points by density: the [N] int64 cluster of each, -1 for noise.

    Clusters are numbered in the order of their first core point; a border point belongs to the
    first cluster that reaches it.

    Args:
        points: of any float dtype.
        eps: Euclidean distance up to which points are neighbours.
        min_samples: neighbours, itself included, that make a point a core point.
    """
    # In float64, so that no rounding moves a distance across `eps`; not every device has it.
    exact = points.cpu().double()
    near = torch.cdist(exact, exact) <= eps
    core = (near.sum(dim=1) >= min_samples).tolist()
    neighbours = [
        row.nonzero().flatten().tolist() if is_core else []
        for row, is_core in zip(near, core, strict=True)
    ]
    found = [-1] * len(core)
    clusters = 0
    for start, is_core in enumerate(core):
        if is_core and found[start] < 0:
            _spread(start, clusters, neighbours, found)
            clusters += 1
    return torch.tensor(found, dtype=torch.int64, device=points.device)


def _spread(start: int, cluster: int, neighbours: list[list[int]], found: list[int]) -> None:
    """Mark what is reached from a core point; `neighbours` are empty for all others."""
    found[start] = cluster
    open_points = [start]
    while open_points:
        for other in neighbours[open_points.pop()]:
            if found[other] < 0:
                found[other] = cluster
                open_points.append(other)


def cluster_regions(
    affinity: Tensor, clusters: Tensor, grid: tuple[int, int], size: tuple[int, int]
) -> Tensor | None:
    """Assign each pixel to the cluster whose patches have the greatest affinity with it.

    The rows of a cluster are averaged, refined fourfold, smoothed by a 7 x 7 median filter and
    upsampled.

    Args:
        affinity: [N, N] float32, N patches on the `grid`.
        clusters: [N] from `dbscan`.
        grid: (h, w).
        size: (H, W) of the result.

    Returns:
        [H, W] int64 in [0, R), the first of equals; None if there is no cluster.
    """
    R = int(clusters.max()) + 1
    if R == 0:
        return None
    maps = torch.stack([affinity[clusters == r].mean(dim=0) for r in range(R)]).view(1, R, *grid)
    refined = upsample(maps, (REFINED * grid[0], REFINED * grid[1]))
    smooth = torch.stack([median_filter(one, MEDIAN) for one in refined[0]])
    return first_argmax(upsample(smooth[None], size)[0])


def median_filter(image: Tensor, side: int) -> Tensor:
    """Take the median of `side` x `side` pixels, odd, around each; the border is mirrored.

    [H, W] to [H, W]; the pixels beyond the border are the border's own, then those inside.
    """
    reach = side // 2
    rows, columns = (_mirrored(n, reach, image.device) for n in image.shape)
    windows = image[rows][:, columns].unfold(0, side, 1).unfold(1, side, 1)  # [H, W, side, side]
    # By sorting: `median` is not deterministic on every device.
    return windows.flatten(2).sort(dim=-1).values[..., side * side // 2]


def _mirrored(n: int, reach: int, device: torch.device) -> Tensor:
    """Index n pixels and `reach` mirrored ones on both sides: d c b a | a b c d | d c b a."""
    at = torch.arange(-reach, n + reach, device=device) % (2 * n)
    return torch.where(at < n, at, 2 * n - 1 - at)


def first_argmax(values: Tensor) -> Tensor:
    """Return the index of the maximum along the first axis, the first of equals."""
    return (values == values.amax(dim=0)).cumsum(dim=0).eq(0).sum(dim=0)


def region_means(values: Tensor, masks: Tensor) -> Tensor:
    """Average [K, P] values over each of [R, P] bool masks: [K, R], 0 over an empty mask."""
    weights = masks.to(values.dtype)
    return values @ weights.T / weights.sum(dim=1).clamp(min=1)


def average_in_regions(values: Tensor, regions: Tensor) -> Tensor:
    """Replace [K, H, W] values by their means over the regions, [H, W] int64 from 0."""
    masks = F.one_hot(regions.flatten()).T.bool()  # [R, P]
    means = region_means(values.flatten(1), masks)
    return means[:, regions.flatten()].view_as(values)


def vote(labels: Tensor, regions: Tensor) -> Tensor:
    """Give each region its most frequent label, the smallest of equals.

    [H, W] int64 labels and regions, both from 0, to [H, W] int64 labels.
    """
    M, R = int(labels.max()) + 1, int(regions.max()) + 1
    votes = (regions * M + labels).flatten().bincount(minlength=R * M).view(R, M)
    return first_argmax(votes.T)[regions]
