"""The method as literal float64 NumPy loops: slow, readable, importing nothing of ours.

Source: J. Li et al., "Direct Segmentation without Logits Optimization for Training-Free
Open-Vocabulary Semantic Segmentation", CVPR 2026, arXiv 2604.07723. The steps cited below are
those of the method as this project implements it; where the text is silent, the function that
decides says so.

Axes: K text prompts, M classes, N = gh * gw patches (row-major), h, w logits' own grid,
H, W pixels. One image at a time. `A` is the self-attention and `T` its doubly stochastic form;
both act on a row of patches from the right (`f @ T`), row = query.
"""

import math

import numpy as np


def resample(logits, grid):
    """Resize the logits to the attention grid (the method, step 1).

    Bilinear, half-pixel centres; where the grid is coarser, each hat is as wide as two new cells,
    and the weights that are left inside sum to one.

    Args:
        logits: [K, h, w] scores, any range.
        grid: (gh, gw) size to reach.

    Returns:
        [K, gh, gw] scores; the same values when the sizes are equal.
    """
    K, h, w = logits.shape
    gh, gw = grid
    out = np.zeros((K, gh, gw))
    for i in range(gh):
        rows = hat(i, h, gh)
        for j in range(gw):
            columns = hat(j, w, gw)
            for k in range(K):
                out[k, i, j] = sum(
                    a * b * logits[k, y, x]
                    for y, a in enumerate(rows)
                    for x, b in enumerate(columns)
                )
    return out


def hat(i, size, g):
    """Weights of `size` old cells in cell i of g new ones."""
    step = size / g
    centre = (i + 0.5) * step
    weights = [max(0.0, 1 - abs(y + 0.5 - centre) / max(step, 1.0)) for y in range(size)]
    return [weight / sum(weights) for weight in weights]


def confidence(logits, logit_scale, prompt_index, background):
    """Class confidence of every patch (the method, step 2).

    Args:
        logits: [K, gh, gw] scores on the attention grid.
        logit_scale: what the scores are multiplied by before the softmax over prompts.
        prompt_index: [K] class of each prompt, or None for one class per prompt.
        background: (class, threshold) or None. A patch whose best class confidence is under the
            threshold becomes one-hot at that class.

    Returns:
        P: [M, N] probabilities, columns sum to one; M = max(prompt_index) + 1. A class that has
        no prompt has confidence 0.
        assigned: [N] bool, the patches that the background rule decided.
    """
    K, gh, gw = logits.shape
    N = gh * gw
    classes = list(range(K)) if prompt_index is None else [int(c) for c in prompt_index]
    M = max(classes) + 1
    scores = np.asarray(logits, dtype=np.float64).reshape(K, N)

    P = np.zeros((M, N))
    for i in range(N):
        scaled = logit_scale * scores[:, i]  # [K]
        exponential = np.exp(scaled - scaled.max())
        probability = exponential / exponential.sum()
        for k in range(K):
            P[classes[k], i] += probability[k]

    assigned = np.zeros(N, dtype=bool)
    if background is not None:
        background_class, threshold = background
        for i in range(N):
            if P[:, i].max() < threshold:
                P[:, i] = 0.0
                P[background_class, i] = 1.0
                assigned[i] = True
    return P, assigned


def doubly_stochastic(A, rounds):
    """Iterative proportional fitting of the attention (the method, section 2, maximum velocity).

    A column or row that sums to zero cannot be scaled and is left alone (the text is silent).

    Args:
        A: [N, N] self-attention, >= 0.
        rounds: how often columns, then rows, are scaled to sum to one.

    Returns:
        [N, N] matrix; rows sum to one, columns nearly.
    """
    T = np.array(A, dtype=np.float64)
    N = T.shape[0]
    for _ in range(rounds):
        for j in range(N):
            total = T[:, j].sum()
            if total > 0:
                T[:, j] = T[:, j] / total
        for i in range(N):
            total = T[i, :].sum()
            if total > 0:
                T[i, :] = T[i, :] / total
    return T


def seeds(P, assigned, nms, nms_threshold, min_area, seed_quantile=0.25, suppress=True):
    """Reject classes and noisy patches (the method, steps 3 and 4).

    Decided here, where the text is silent: the lowest class index wins a tie; nobody wins a patch
    without any confidence, as a vote may leave it; an area gate that would leave no class is not
    applied; the relative bar uses the highest top confidence of the whole image, whichever class
    has it, but not of the patches that the background rule set to one (they would make the bar
    absolute); the class-wise bar leaves these out likewise, and they are seeds; if no seed is left
    anywhere, every winning patch of the classes that passed the area gate is a seed.

    Args:
        P: [M, N] class confidence.
        assigned: [N] bool, patches that the background rule decided.
        nms: "relative" or "absolute", the meaning of `nms_threshold`; or "classwise".
        nms_threshold: bar, as a share of the highest top confidence or as a confidence.
        min_area: share of the patches, in [0, 1], at which a class must win to go on.
        seed_quantile: "classwise": a patch is a seed where its confidence reaches this quantile of
            those at all patches that its class wins.
        suppress: False for the modes without NMS: every winning patch is a seed.

    Returns:
        kept: [M] bool, the classes that go on; never all False.
        seed: [M, N] bool, the seeds of each class; at most one class per patch.

    Raises:
        ValueError: on an unknown `nms`.
    """
    M, N = P.shape
    winner = [int(np.argmax(P[:, i])) for i in range(N)]  # argmax takes the lowest index on a tie
    top = [P[winner[i], i] for i in range(N)]
    winner = [c if p > 0 else None for c, p in zip(winner, top, strict=True)]

    wins = [sum(1 for i in range(N) if winner[i] == c) for c in range(M)]
    winning = [wins[c] > 0 for c in range(M)]
    passed = [winning[c] and wins[c] / N >= min_area for c in range(M)]
    if not any(passed):
        passed = winning

    if nms == "relative":
        bars = [nms_threshold * max([top[i] for i in range(N) if not assigned[i]], default=0.0)] * M
    elif nms == "absolute":
        bars = [nms_threshold] * M
    elif nms == "classwise":
        own = [[top[i] for i in range(N) if winner[i] == c and not assigned[i]] for c in range(M)]
        bars = [(1 - 1e-6) * np.quantile(v, seed_quantile) if v else 0.0 for v in own]
    else:
        raise ValueError(
            f"`nms` must be one of ['classwise', 'relative', 'absolute']; got {nms!r}."
        )

    winning_patch = np.zeros((M, N), dtype=bool)
    seed = np.zeros((M, N), dtype=bool)
    for i, c in enumerate(winner):
        if c is None:
            continue
        winning_patch[c, i] = passed[c]
        reached = top[i] >= bars[c] or (nms == "classwise" and assigned[i])
        seed[c, i] = passed[c] and reached
    if not suppress or not seed.any():
        seed = winning_patch

    kept = np.array([bool(seed[c].any()) for c in range(M)])
    return kept, seed


def log_confidence(logits, prompt_index, P, assigned):
    """Log confidence at the scale of the vote: the best prompt's mean probability is 0.75.

    Args:
        logits: [K, N] on the attention's grid.
        prompt_index: [K] class of each prompt, or None.
        P: [M, N] confidence, which holds where the background rule decided.
        assigned: [N] bool, where it did.

    Returns:
        [M, N] in nats; a confidence below 1e-4 counts as that.
    """
    logits = logits - logits.max(axis=0)

    def softmax(log_scale):
        e = np.exp(np.exp(log_scale) * logits)
        return e / e.sum(axis=0)

    low, high = -70.0, 70.0
    for _ in range(100):
        middle = (low + high) / 2
        if softmax(middle).max(axis=0).mean() < 0.75:
            low = middle
        else:
            high = middle
    own = softmax((low + high) / 2)
    if prompt_index is not None:
        own = np.stack([own[np.asarray(prompt_index) == c].sum(axis=0) for c in range(len(P))])
    return np.log(np.maximum(np.where(assigned, P, own), 1e-4))


def region_vote(logarithms, D, bar):
    """Drop the classes for which there is too little evidence on their regions.

    Args:
        logarithms: [m, N] log confidence of the kept classes.
        D: [m, N] their scores.
        bar: evidence that a class needs, in nats per patch of the image.

    Returns:
        [m] bool, the classes that are left; never all False.
    """
    m, N = D.shape
    left = [True] * m
    while True:
        evidence, rivals = {}, {}
        for c in (c for c in range(m) if left[c]):
            region = [i for i in range(N) if D[c, i] == max(D[d, i] for d in range(m) if left[d])]
            total = logarithms[:, region].sum(axis=1)
            others = [d for d in range(m) if left[d] and d != c]
            if not others:
                return np.array(left)
            rivals[c] = max(others, key=lambda d: total[d])  # the first of equal ones
            evidence[c] = total[c] - total[rivals[c]]
        gone = []
        for c, rival in rivals.items():
            margin = 1e-6 * N if rival < c else -1e-6 * N
            if evidence[c] < (bar - 1e-6) * N and evidence[rival] + margin > evidence[c]:
                gone.append(c)
        if not gone:
            return np.array(left)
        for c in gone:
            left[c] = False


def of_classes(P, classes):
    """Return the confidences [M, N] of `classes` among themselves; the others win nowhere."""
    alone = np.full_like(P, -1.0)
    alone[classes] = P[classes] / np.maximum(P[classes].sum(axis=0), 1e-38)
    return alone


def normalise(P, kept, seed):
    """Distribution of each class over its seeds (the method, step 5).

    Args:
        P: [M, N] class confidence.
        kept: [M] bool, classes that go on.
        seed: [M, N] bool, seeds of each class.

    Returns:
        [M, N] softmax of the confidence over the seeds, temperature 1; 0 off the seeds. Rows of
        kept classes sum to one, rows of rejected classes are zero.
    """
    M, N = P.shape
    q = np.zeros((M, N))
    for c in range(M):
        if not kept[c]:
            continue
        for i in range(N):
            if seed[c, i]:
                q[c, i] = math.exp(P[c, i])
        q[c] = q[c] / q[c].sum()
    return q


def kl(q):
    """Terms of the Kullback-Leibler divergence from q to 1/N (the method, section 2, KL).

    Args:
        q: [M, N] distributions of the kept classes.

    Returns:
        [M, N] q log(q / s) with s = 1/N, 0 where q = 0.
    """
    M, N = q.shape
    D = np.zeros((M, N))
    for c in range(M):
        for i in range(N):
            if q[c, i] > 0:
                D[c, i] = q[c, i] * math.log(q[c, i] * N)
    return D


def optimal_path(q, A, epsilon, iterations):
    """Cost carried into each patch by entropic transport (the method, section 2, optimal path).

    An all-zero attention has no maximum to be scaled by and is taken as zero cost.

    Args:
        q: [M, N] distributions of the kept classes, the sources.
        A: [N, N] self-attention; scaled to a maximum of 1 it is the cost.
        epsilon: entropy weight, > 0, in units of the scaled cost.
        iterations: how many Sinkhorn updates of u, then v, are made; starts from v = 1.

    Returns:
        [M, N] D[c, j] = sum_i pi[i, j] C[i, j].
    """
    M, N = q.shape
    cost = np.array(A, dtype=np.float64)  # [N, N]
    if cost.max() > 0:
        cost = cost / cost.max()
    kernel = np.exp(-cost / epsilon)  # [N, N]
    s = np.full(N, 1.0 / N)

    D = np.zeros((M, N))
    for c in range(M):
        u = np.ones(N)
        v = np.ones(N)
        for _ in range(iterations):
            u = q[c] / (kernel @ v)
            v = s / (kernel.T @ u)
        plan = np.diag(u) @ kernel @ np.diag(v)  # [N, N], rows = q[c], columns = s
        for j in range(N):
            D[c, j] = sum(plan[i, j] * cost[i, j] for i in range(N))
    return D


def maximum_velocity(q, T, tau, criterion, max_steps):
    """How fast each patch is reached by a random walk (the method, section 2, maximum velocity).

    Args:
        q: [M, N] distributions of the kept classes.
        T: [N, N] doubly stochastic attention.
        tau: threshold on the walk's map, whose maximum is 1.
        criterion: "first_passage" (interpolated first step above `tau`, D = 1 / (1 + l)) or
            "increment" (the paper's Eq. 12: first step that changes the patch by at most
            `tau` times the class's largest first change, D = l).
        max_steps: steps of the walk, and the l of a patch that never meets the criterion.

    Returns:
        [M, N] discrepancy.

    Raises:
        ValueError: on an unknown `criterion`.
    """
    if criterion not in ("first_passage", "increment"):
        raise ValueError(
            f"`criterion` must be one of ['first_passage', 'increment']; got {criterion!r}."
        )
    M, N = q.shape
    D = np.zeros((M, N))
    for c in range(M):
        f = [q[c] / q[c].max()]  # f[l]: [N] map after l steps, maximum 1
        for _ in range(max_steps):
            spread = f[-1] @ T
            f.append(spread / spread.max())
        for i in range(N):
            if criterion == "first_passage":
                D[c, i] = 1.0 / (1.0 + _first_passage(f, i, tau))
            else:
                D[c, i] = _small_increment(f, i, tau)
    return D


def _first_passage(f, i, tau):
    """First step, linearly interpolated, at which patch i is above `tau`; 0 if it starts there."""
    if f[0][i] > tau:
        return 0.0
    for t in range(1, len(f)):
        if f[t][i] > tau:
            return (t - 1) + (tau - f[t - 1][i]) / (f[t][i] - f[t - 1][i])
    return len(f) - 1


def _small_increment(f, i, tau):
    """First step whose change at patch i is at most `tau` * max |f(1) - f(0)| over patches."""
    for t in range(1, len(f)):
        if abs(f[t][i] - f[t - 1][i]) <= tau * np.abs(f[1] - f[0]).max():
            return t
    return len(f) - 1


def propagation(P, T, k):
    """The control: confidence moved along attention (the method, section 2, propagation).

    Args:
        P: [M, N] class confidence.
        T: [N, N] doubly stochastic attention.
        k: steps.

    Returns:
        [M, N] P T^k.
    """
    D = np.array(P, dtype=np.float64)
    for _ in range(k):
        D = D @ T
    return D


def anchored(P, T, k):
    """Propagation that sure patches resist (the method, section 2, anchored propagation).

    Args:
        P: [M, N] confidence of all classes, rejected ones too: the anchor weight needs the
            two highest. With a single class the second confidence is 0.
        T: [N, N] doubly stochastic attention.
        k: steps.

    Returns:
        [M, N] X(k), with X(0) = P and X(t+1) = w * P + (1 - w) * (X(t) T) in every patch.
    """
    M, N = P.shape
    weight = np.zeros(N)
    for i in range(N):
        ranked = sorted(P[:, i], reverse=True)
        weight[i] = ranked[0] - (ranked[1] if M > 1 else 0.0)

    X = np.array(P, dtype=np.float64)
    for _ in range(k):
        moved = X @ T  # [M, N]
        X = np.zeros((M, N))
        for c in range(M):
            for i in range(N):
                X[c, i] = weight[i] * P[c, i] + (1.0 - weight[i]) * moved[c, i]
    return X


def fusion(op, mv):
    """Mean of the two modes, each scaled to [0, 1] (the method, section 2, fusion).

    Args:
        op: [M, N] optimal path of the kept classes.
        mv: [M, N] maximum velocity of the kept classes.

    Returns:
        [M, N] mean of the two, min-max scaled over classes and patches together.
    """
    return (_min_max(op) + _min_max(mv)) / 2


def _min_max(values):
    """Scale to [0, 1] over the whole array; an array with zero range becomes 0."""
    low, high = values.min(), values.max()
    if high == low:
        return np.zeros_like(values)
    return (values - low) / (high - low)


def _area_average(image, grid):
    """Mean colour of each cell, [3, gh, gw] from [3, H, W] (the method, section 3, I(q)).

    Cell i covers the rows floor(i * H / gh) up to, not including, ceil((i + 1) * H / gh), as in
    adaptive average pooling; neighbouring cells share a row where H is no multiple of gh.
    """
    C, H, W = image.shape
    gh, gw = grid
    out = np.zeros((C, gh, gw))
    for i in range(gh):
        row_start, row_stop = (i * H) // gh, -((-(i + 1) * H) // gh)
        for j in range(gw):
            column_start, column_stop = (j * W) // gw, -((-(j + 1) * W) // gw)
            for channel in range(C):
                cell = image[channel, row_start:row_stop, column_start:column_stop]
                out[channel, i, j] = cell.mean()
    return out


def joint_bilateral_upsample(low, image, sigma_spatial, sigma_range, radius):
    """Upsample class maps along the edges of an image (the method, section 3; paper Eq. 23).

    Args:
        low: [M, gh, gw] class maps, any finite range.
        image: [3, H, W] guide in [0, 1]; sets the output size.
        sigma_spatial: spatial spread, in cells of the grid, > 0.
        sigma_range: colour spread, in units of the image's range, > 0.
        radius: neighbours on either side; the window has (2 * radius + 1)^2 cells.

    Returns:
        [M, H, W] weighted means of `low`.
    """
    M, gh, gw = low.shape
    _, H, W = image.shape
    colour = _area_average(image, (gh, gw))  # [3, gh, gw]
    out = np.zeros((M, H, W))
    for py in range(H):
        y = (py + 0.5) * gh / H - 0.5
        # The nearest cell, floor(y + 0.5) = floor((py + 0.5) * gh / H), in exact integers.
        centre_y = ((2 * py + 1) * gh) // (2 * H)
        for px in range(W):
            x = (px + 0.5) * gw / W - 0.5
            centre_x = ((2 * px + 1) * gw) // (2 * W)
            total = np.zeros(M)
            weights = 0.0
            for qy in range(centre_y - radius, centre_y + radius + 1):
                for qx in range(centre_x - radius, centre_x + radius + 1):
                    # A clamped cell lends its colour and value, at its unclamped distance.
                    row = min(max(qy, 0), gh - 1)
                    column = min(max(qx, 0), gw - 1)
                    distance2 = (y - qy) ** 2 + (x - qx) ** 2
                    contrast2 = sum(
                        (image[channel, py, px] - colour[channel, row, column]) ** 2
                        for channel in range(3)
                    )
                    spatial = math.exp(-distance2 / (2 * sigma_spatial**2))
                    similar = math.exp(-contrast2 / (2 * sigma_range**2))
                    # 1e-12: where every range weight vanishes, the spatial ones decide alone.
                    weight = spatial * similar + 1e-12 * spatial
                    total = total + weight * low[:, row, column]
                    weights = weights + weight
            out[:, py, px] = total / weights
    return out


def bilinear_upsample(low, size):
    """Upsample with half-pixel centres, pixel by pixel.

    Args:
        low: [M, gh, gw] maps.
        size: (H, W), at least (gh, gw).

    Returns:
        [M, H, W].
    """
    M, gh, gw = low.shape
    out = np.zeros((M, *size))
    for py in range(size[0]):
        y = min(max((py + 0.5) * gh / size[0] - 0.5, 0.0), gh - 1.0)
        top = min(int(y), max(gh - 2, 0))
        for px in range(size[1]):
            x = min(max((px + 0.5) * gw / size[1] - 0.5, 0.0), gw - 1.0)
            left = min(int(x), max(gw - 2, 0))
            for row, of_row in ((top, 1 - (y - top)), (min(top + 1, gh - 1), y - top)):
                for column, of_column in (
                    (left, 1 - (x - left)),
                    (min(left + 1, gw - 1), x - left),
                ):
                    out[:, py, px] += of_row * of_column * low[:, row, column]
    return out


def guided_upsample(low, image, radius, eps):
    """Upsample by a fast guided filter (He and Sun 2015, Algorithm 2; colour guide).

    Args:
        low: [M, gh, gw] maps, any finite range.
        image: [3, H, W] guide in [0, 1]; sets the output size, at least (gh, gw).
        radius: cells on either side of a window's centre; windows are cut at the border.
        eps: the ridge of the fit.

    Returns:
        [M, H, W].
    """
    M, gh, gw = low.shape
    colour = _area_average(image, (gh, gw))  # [3, gh, gw]

    def window(i, j):
        rows = range(max(i - radius, 0), min(i + radius + 1, gh))
        columns = range(max(j - radius, 0), min(j + radius + 1, gw))
        return [(y, x) for y in rows for x in columns]

    slopes, offsets = np.zeros((M, 3, gh, gw)), np.zeros((M, gh, gw))
    for i in range(gh):
        for j in range(gw):
            cells = window(i, j)
            guide = np.array([colour[:, y, x] for y, x in cells])  # [cells, 3]
            centred = guide - guide.mean(axis=0)
            for m in range(M):
                values = np.array([low[m, y, x] for y, x in cells])
                # The minimum of sum (a . guide + b - values)^2 / cells + eps |a|^2.
                left = centred.T @ centred / len(cells) + eps * np.eye(3)
                right = centred.T @ (values - values.mean()) / len(cells)
                slopes[m, :, i, j] = np.linalg.solve(left, right)
                offsets[m, i, j] = values.mean() - slopes[m, :, i, j] @ guide.mean(axis=0)
    mean_slopes, mean_offsets = np.zeros_like(slopes), np.zeros_like(offsets)
    for i in range(gh):
        for j in range(gw):
            cells = window(i, j)
            mean_slopes[..., i, j] = sum(slopes[..., y, x] for y, x in cells) / len(cells)
            mean_offsets[..., i, j] = sum(offsets[..., y, x] for y, x in cells) / len(cells)
    size = image.shape[1:]
    out = bilinear_upsample(mean_offsets, size)
    for channel in range(3):
        out += bilinear_upsample(mean_slopes[:, channel], size) * image[channel]
    return out


def refine(
    logits,
    A,
    image,
    grid,
    *,
    prompt_index=None,
    mode="maximum_velocity",
    logit_scale=1.0,
    nms="classwise",
    nms_threshold=0.5,
    seed_quantile=0.25,
    vote=0.006,
    confidence_power=0.25,
    pre_propagation=0,
    min_area=0.0,
    epsilon=0.1,
    sinkhorn_iterations=50,
    tau=0.3,
    criterion="first_passage",
    max_steps=100,
    ipf_rounds=15,
    propagation_steps=3,
    sigma_spatial=1.0,
    sigma_range=0.1,
    radius=2,
    background=None,
):
    """Refine one image's logits (the method, steps 1 to 8).

    Decided here, where the text is silent: which classes "propagation" and "anchored" report is
    settled by the same confidence that the mode starts from (for "anchored", after
    pre-propagation), without NMS; the anchor weight comes from all classes.

    Args:
        logits: [K, h, w] scores, any range.
        A: [N, N] self-attention, rows sum to one, or [A, N, N] heads, averaged.
        image: [3, H, W] in [0, 1].
        grid: (gh, gw) with gh * gw = N.
        prompt_index: [K] class of each prompt, or None for one class per prompt.
        mode: "kl", "optimal_path", "maximum_velocity", "fusion", "propagation" or "anchored".
        logit_scale: see `confidence`.
        nms: see `seeds`.
        nms_threshold: see `seeds`.
        seed_quantile: see `seeds`.
        vote: `bar` of `region_vote`; 0: none. If it drops a class, the confidences of those left
            are divided by their sum and scored once more.
        confidence_power: the scores of maximum velocity are multiplied by the confidence, 1e-6 or
            more, to this power.
        pre_propagation: steps by which the confidence is propagated before step 3; not applied
            in mode "propagation".
        min_area: see `seeds`.
        epsilon: see `optimal_path`.
        sinkhorn_iterations: `iterations` of `optimal_path`.
        tau: see `maximum_velocity`.
        criterion: see `maximum_velocity`.
        max_steps: see `maximum_velocity`.
        ipf_rounds: `rounds` of `doubly_stochastic`.
        propagation_steps: `k` of `propagation` and `anchored`.
        sigma_spatial: see `joint_bilateral_upsample`.
        sigma_range: see `joint_bilateral_upsample`.
        radius: see `joint_bilateral_upsample`.
        background: see `confidence`.

    Returns:
        A dict with
        labels: [H, W] int, original class indices (the lowest on a tie);
        discrepancy: [M, gh, gw], -inf for rejected classes;
        kept: [M] bool;
        seeds: [M, gh, gw] bool;
        scores: [M, H, W] upsampled discrepancy, -inf for rejected classes.

    Raises:
        KeyError: on an unknown `mode`.
        ValueError: on an unknown `nms` or `criterion`.
    """
    logits, A, image = (np.asarray(x, dtype=np.float64) for x in (logits, A, image))
    (gh, gw), (H, W) = grid, image.shape[1:]
    if A.ndim == 3:
        A = A.mean(axis=0)  # [N, N]
    T = doubly_stochastic(A, ipf_rounds)

    given = resample(logits, grid)
    P, assigned = confidence(given, logit_scale, prompt_index, background)
    M, N = P.shape
    decided = P
    if mode != "propagation":
        P = propagation(P, T, pre_propagation)
    has_seeds = mode not in ("propagation", "anchored")

    def score(P):
        kept, seed = seeds(P, assigned, nms, nms_threshold, min_area, seed_quantile, has_seeds)
        q = normalise(P, kept, seed)[kept]  # [kept classes, N]
        path = optimal_path(q, A, epsilon, sinkhorn_iterations)
        velocity = maximum_velocity(q, T, tau, criterion, max_steps)
        velocity = velocity * np.maximum(P[kept], 1e-6) ** confidence_power
        D = {
            "kl": kl(q),
            "optimal_path": path,
            "maximum_velocity": velocity,
            "fusion": fusion(path, velocity),
            "propagation": propagation(P, T, propagation_steps)[kept],
            "anchored": anchored(P, T, propagation_steps)[kept],
        }[mode]
        return kept, seed, D

    kept, seed, D = score(P)
    if has_seeds and vote:
        votes = log_confidence(given.reshape(-1, N), prompt_index, decided, assigned)
        left = region_vote(votes[kept], D, vote)
        if not left.all():
            kept, seed, D = score(of_classes(P, np.flatnonzero(kept)[left]))

    D = D.reshape(-1, gh, gw)
    upsampled = joint_bilateral_upsample(D, image, sigma_spatial, sigma_range, radius)
    discrepancy, scores = np.full((M, gh, gw), -np.inf), np.full((M, H, W), -np.inf)
    discrepancy[kept], scores[kept] = D, upsampled
    return {
        "labels": scores.argmax(axis=0),
        "discrepancy": discrepancy,
        "kept": kept,
        "seeds": seed.reshape(M, gh, gw),
        "scores": scores,
    }
