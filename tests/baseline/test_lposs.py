"""LPOSS and LPOSS+ against dense linear algebra in float64, and their laws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from ovss_refine import Attention, Logits
from ovss_refine.attention import affinity
from ovss_refine.baseline import label_propagation, lposs_pixels
from ovss_refine.baseline.label_propagation import patch_graph, propagate
from ovss_refine.baseline.lposs import Lposs
from ovss_refine.baseline.lposs_pixels import propagation_upsample
from ovss_refine.baseline.pixel_graph import PixelGraph, lab
from ovss_refine.testing import check_upsampler

# Conjugate gradients stop at a residual of 1e-6 of y, and alpha = 0.95 may multiply it by 20.
SOLVED = 2e-5


def dense_patches(features, places, k, sigma, gamma, power):
    """Weights [N, N], pair by pair."""
    N = len(features)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    A = np.zeros((N, N))
    for i in range(N):
        for j in np.argsort(-(unit @ unit[i]), kind="stable")[:k]:
            apart = np.sqrt(((places[i] - places[j]) ** 2).sum())
            A[i, j] = max(unit[i] @ unit[j], 0) ** gamma * np.exp(-sigma * apart**power)
    W = A + A.T
    np.fill_diagonal(W, 0)
    return W


def dense_pixels(image, window, tau):
    """Weights [H * W, H * W], pair by pair."""
    _, H, W = image.shape
    colours = lab(torch.from_numpy(image)).numpy() / np.array([100, 128, 128])[:, None, None]
    at = [(y, x) for y in range(H) for x in range(W)]
    out, reach = np.zeros((H * W, H * W)), window // 2
    for i, (y, x) in enumerate(at):
        for j, (v, u) in enumerate(at):
            if i != j and max(abs(y - v), abs(x - u)) <= reach:
                apart = np.sqrt(((colours[:, y, x] - colours[:, v, u]) ** 2).sum())
                out[i, j] = np.exp(-apart / tau)
    return out


def solve(W, alpha, y):
    """The exact solutions of maps [K, N]."""
    d = W.sum(1)
    root = np.where(d > 0, d, 1) ** -0.5
    system = np.eye(len(W)) - alpha * root[:, None] * W * root
    return torch.from_numpy(np.linalg.solve(system, y.T).T)


def grid_places(gh, gw, down, across):
    rows, columns = np.mgrid[:gh, :gw]
    return np.stack([down * rows.ravel(), across * columns.ravel()], 1).astype(float)


def over(graph):
    return lambda x: (graph @ x.mT).mT


@pytest.mark.parametrize("k", [1, 7, 400])
@pytest.mark.parametrize(("gamma", "power", "sigma"), [(3.0, 1.0, 0.01), (2.0, 2.0, 4e-4)])
def test_patches_equal_dense_algebra(rng, k, gamma, power, sigma, monkeypatch):
    monkeypatch.setattr(label_propagation, "BLOCK", 70)  # blocks of two patches, one map at a time
    features, y = rng.normal(size=(35, 6)), rng.normal(size=(3, 35))
    places = grid_places(5, 7, 16.0, 12.5)
    options = {"sigma": sigma, "gamma": gamma, "power": power}
    graph = patch_graph(
        torch.from_numpy(features), torch.from_numpy(places), neighbours=k, **options
    )
    W = dense_patches(features, places, k, **options)
    assert_close(graph.to_dense(), torch.from_numpy(W), atol=1e-12, rtol=0)
    found = propagate(torch.from_numpy(y), over(graph), 0.95, 1000)
    assert_close(found, solve(W, 0.95, y), atol=SOLVED * np.abs(y).sum(), rtol=0)
    exact = propagate(torch.from_numpy(y), over(graph), 0.95, 1000, tolerance=1e-13)
    assert_close(exact, solve(W, 0.95, y), atol=1e-10, rtol=0)


@pytest.mark.parametrize("window", [1, 2, 5, 13])
def test_pixels_equal_dense_algebra(rng, window):
    image, y = rng.random((3, 5, 8)), rng.normal(size=(2, 40))
    image[:, 2:4, 3:6] = 0.02  # in the linear part of the curves, and exactly equal neighbours
    graph = PixelGraph(torch.from_numpy(image), window, 0.1)
    W = dense_pixels(image, window, 0.1)
    unit = torch.eye(40, dtype=torch.float64).view(40, 5, 8)
    assert_close(graph.times(unit).flatten(1), torch.from_numpy(W), atol=1e-12, rtol=0)
    maps = torch.from_numpy(y).view(2, 5, 8)
    found = propagate(maps, graph.times, 0.95, 1000, tolerance=1e-13)
    assert_close(found.flatten(1), solve(W, 0.95, y), atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [(1, 9), (7, 1), (1, 1), (2, 3)])
def test_images_smaller_than_the_window(rng, size):
    image, n = rng.random((3, *size)), size[0] * size[1]
    unit = torch.eye(n, dtype=torch.float64).view(n, *size)
    found = PixelGraph(torch.from_numpy(image), 13, 0.1).times(unit)
    wanted = torch.from_numpy(dense_pixels(image, 13, 0.1))
    assert_close(found.flatten(1), wanted, atol=1e-12, rtol=0)


def test_colours_of_known_names():
    colours = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]]).double()
    found = lab(colours.T[..., None])[..., 0].T
    known = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    assert_close(found, torch.tensor(known).double(), atol=0.02, rtol=0)


def test_a_node_without_neighbours_keeps_its_value():
    features = torch.zeros(4, 3, dtype=torch.float64)
    features[:2] = 1.0
    places = torch.zeros(4, 2, dtype=torch.float64)
    options = {"neighbours": 400, "sigma": 0.01, "gamma": 3.0, "power": 1.0}
    graph = patch_graph(features, places, **options)
    y = torch.tensor([[1.0, 1.0, 5.0, -2.0]]).double()
    # The pair that agrees grows by 1 / (1 - alpha).
    assert_close(propagate(y, over(graph), 0.95, 10)[0].tolist(), [20.0, 20.0, 5.0, -2.0])


def test_maps_take_their_own_steps(rng):
    graph = PixelGraph(torch.from_numpy(rng.random((3, 6, 9))), 5, 0.1)
    maps = torch.from_numpy(rng.normal(size=(4, 6, 9)))
    maps[1] = 0  # is done before the first step
    maps[2] = 1e-3 * maps[3]
    together = propagate(maps, graph.times, 0.95, 10)
    for one, y in zip(together, maps, strict=True):
        assert_close(one, propagate(y[None], graph.times, 0.95, 10)[0], atol=1e-12, rtol=1e-9)
    assert_close(together[2], 1e-3 * together[3])
    assert bool((together[1] == 0).all())
    assert_close(propagate(maps, graph.times, 0.95, 0), torch.zeros_like(maps))
    more = propagate(maps, graph.times, 0.95, 11)
    assert float((more - together).abs().max()) > 1e-3  # the tenth step is not the last one


# The whole: logits, features and image in, labels out.


@pytest.fixture
def given(rng):
    """Logits of 5 prompts, features and images that are not square, for two images."""
    logits = torch.from_numpy(rng.normal(size=(2, 5, 3, 4)).astype(np.float32))
    features = torch.from_numpy(rng.normal(size=(2, 8, 4, 6)).astype(np.float32))
    images = torch.from_numpy(rng.random((2, 3, 20, 33)).astype(np.float32))
    return logits, features, images


def by_hand(logits, features, image, work, index, pixels):
    """One image, from formulas: the maps of 3 classes [3, H, W]."""
    logits, features = logits.double(), features.double()
    _, gh, gw = features.shape
    y = F.interpolate(logits[None], (gh, gw), mode="bilinear")[0].flatten(1)
    places = grid_places(gh, gw, work[0] / gh, work[1] / gw)
    W = dense_patches(features.flatten(1).mT.numpy(), places, 400, 0.01, 3.0, 1.0)
    x = solve(W, 0.95, y.numpy()).view(-1, gh, gw)
    best = lambda maps: torch.stack([maps[index == m].amax(0) for m in range(3)])  # noqa: E731
    resize = lambda maps, size: F.interpolate(maps[None], size, mode="bilinear")[0]  # noqa: E731
    if not pixels:
        return resize(resize(best(x), work), image.shape[1:])
    small = resize(image.double(), work)
    y = resize(x, work).flatten(1)
    x = solve(dense_pixels(small.numpy(), 13, 0.01), 0.95, y.numpy())
    return resize(best(x.view(-1, *work)), image.shape[1:])


@pytest.mark.parametrize("pixels", [False, True])
def test_equals_dense_algebra_from_image_to_labels(given, pixels):
    index = torch.tensor([0, 0, 1, 2, 2])
    lposs = Lposs(pixels=pixels, short_side=12, steps=2000)
    found = lposs(*given, prompt_index=index)
    assert found.labels.shape == (2, 20, 33)
    assert found.scores.shape == (2, 3, 20, 33)
    for b in range(2):
        wanted = by_hand(*(x[b] for x in given), (12, 20), index, pixels)
        assert_close(found.scores[b].double(), wanted, atol=1e-3, rtol=1e-4)
        assert (found.labels[b] != wanted.argmax(0)).double().mean() < 0.005  # near ties


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("kind", ["features", "attention", "factors"])
def test_a_batch_gives_what_its_images_give(given, kind, pixels):
    logits, features, images = given
    if kind == "attention":
        features = affinity(features, 0.2)
    elif kind == "factors":
        q, k = torch.rand(2, 2, 2, 24, 5).unbind()
        features = Attention.from_factors(q, k, 1.0, (4, 6))
    lposs = Lposs(pixels=pixels, short_side=16)
    both = lposs(logits, features, images)
    for b in range(2):
        one = lposs(logits[b], features[b], images[b])
        assert torch.equal(one.labels, both.labels[b])
        assert torch.equal(one.scores, both.scores[b])


def test_attention_is_features_of_its_rows(given):
    logits, features, images = given
    attention = affinity(features, 0.2)
    rows = attention.weights.mT.reshape(2, 24, 4, 6)
    found, wanted = (Lposs()(logits, x, images).scores for x in (attention, rows))
    assert_close(found, wanted)


def test_one_window_is_the_whole_image(given):
    logits, features, images = (x[:1] for x in given)
    for pixels in (False, True):
        lposs = Lposs(pixels=pixels, short_side=16)  # to 16 x 26
        whole = lposs(logits[0], features[0], images[0])
        window = lposs.windows(logits, features, images[0], [(0, 0)], window=(16, 26))
        assert_close(window.scores, whole.scores)
        assert torch.equal(window.labels, whole.labels)


def test_windows_share_one_graph_and_are_averaged(given):
    logits, features, images = given
    origins = [(0, 0), (0, 13)]  # of 20 x 20 pixels, in 20 x 33
    options = {"window": (20, 20), "size": (20, 33)}
    lposs = Lposs(short_side=None, steps=2000)
    found = lposs.windows(logits, features, images[0], origins, **options).scores
    tokens = features.double().flatten(2).mT.flatten(0, 1).numpy()
    inside = grid_places(4, 6, 5.0, 20 / 6)
    W = dense_patches(
        tokens, np.concatenate([inside, inside + np.array([0, 13])]), 400, 0.01, 3.0, 1.0
    )
    y = F.interpolate(logits.double(), (4, 6), mode="bilinear").movedim(1, 0).flatten(1)
    x = solve(W, 0.95, y.numpy()).view(5, 2, 4, 6).movedim(1, 0)
    large = F.interpolate(x, (20, 20), mode="bilinear")
    left, right = F.pad(large[0], (0, 13)), F.pad(large[1], (13, 0))
    wanted = left + right
    wanted[..., 13:20] /= 2
    assert_close(found.double(), wanted, atol=1e-3, rtol=1e-4)
    apart = replace(lposs, patch_size=100.0).windows(
        logits, features, images[0], origins, **options
    )
    assert float((apart.scores - found).abs().max()) > 1e-3  # patches of 100 pixels lie further off


def test_the_scale_of_the_logits_does_not_matter(given):
    logits, features, images = given
    lposs = Lposs(pixels=True, short_side=12)
    found = lposs(Logits(logits, 40.0), features, images)
    other = lposs(1e-3 * logits, features, images)
    assert (found.labels != other.labels).float().mean() < 0.005
    assert_close(other.scores, 1e-3 * found.scores)


def test_the_forms_of_the_input(given):
    logits, features, images = (x[0] for x in given)
    found = Lposs()(logits, features, images).labels
    array = images.permute(1, 2, 0).numpy()
    assert torch.equal(Lposs()(logits.numpy(), features.numpy(), array).labels, found)
    half = Lposs()(logits.double(), features.double(), images).labels
    assert (half != found).float().mean() < 0.005
    assert Lposs()(logits, features, images, size=(7, 9)).labels.shape == (7, 9)
    for setting in (torch.autocast("cpu"), torch.device("meta")):
        with setting:
            assert torch.equal(Lposs()(logits, features, images).labels, found)


def test_a_class_without_prompts_wins_nowhere(given):
    found = Lposs()(*given, prompt_index=[0, 0, 3, 3, 5])
    assert set(found.labels.unique().tolist()) <= {0, 3, 5}
    assert bool((found.scores[:, [1, 2, 4]] == -torch.inf).all())
    assert bool(found.scores[:, [0, 3, 5]].isfinite().all())


def test_the_defaults_are_the_published_ones():
    published = {"neighbours": 400, "sigma": 0.01, "gamma": 3.0, "power": 1.0, "alpha": 0.95}
    published |= {"tau": 0.01, "pixel_window": 13, "steps": 10, "short_side": 448}
    assert {name: getattr(Lposs(), name) for name in published} == published


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"neighbours": 0}, "`neighbours` must be at least 1; got 0"),
        ({"alpha": 1.0}, r"`alpha` must be in \[0, 0.999\]; got 1.0"),
        ({"tau": 0}, r"`tau` must be in \[1e-06, 1e\+06\]; got 0"),
        ({"steps": -1}, "`steps` must be at least 0; got -1"),
        ({"short_side": 0}, "`short_side` must be at least 1; got 0"),
        ({"patch_size": 0}, "`patch_size` must be in"),
    ],
)
def test_options_out_of_range(option, message):
    with pytest.raises(ValueError, match=message):
        Lposs(**option)


@pytest.mark.parametrize("option", [{"pixels": 1}, {"alpha": "0.9"}, {"neighbours": 4.0}])
def test_options_of_the_wrong_kind(option):
    with pytest.raises(TypeError, match=f"`{next(iter(option))}` must be"):
        Lposs(**option)


def test_numbers_of_other_libraries_become_plain():
    options = Lposs(alpha=np.float32(0.5), steps=torch.tensor(3), short_side=np.int64(9))
    assert [type(x) for x in (options.alpha, options.steps, options.short_side)] == [
        float,
        int,
        int,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 5, 3, 4)}, r"`logits` must have shape \[B=2, K, h, w\]"),
        ({"features": torch.zeros(2, 24, 24)}, r"`features` must have shape \[B=2, C, gh, gw\]"),
        ({"features": torch.full((2, 8, 4, 6), torch.nan)}, "`features` must be finite"),
        ({"features": Attention(torch.eye(24), (4, 6))}, r"`features` must have shape \[B=2, N"),
        ({"image": torch.rand(3, 20, 33)}, r"`logits` must have shape \[K, h, w\]"),
        ({"prompt_index": [0, 1]}, "`prompt_index` must have shape"),
        ({"size": (0, 3)}, r"`size\[0\]` must be at least 1; got 0"),
        ({"size": (3, 4, 5)}, "`size` must be two whole numbers"),
    ],
)
def test_bad_input(given, change, message):
    inputs = dict(zip(("logits", "features", "image"), given, strict=True)) | change
    with pytest.raises(ValueError, match=message):
        Lposs()(**inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origins": [(0, 0), (0, 14)]}, r"`origins` must be of windows \[20, 20\] inside"),
        ({"origins": [(0, 0), (0, 0)]}, "`origins` must cover the image; got 260 pixels in no"),
        ({"origins": [(0, 0)]}, r"`logits` must have shape \[n=1, K, h, w\]"),
        ({"origins": [(0, 0), (0, -1)]}, r"`origins\[1\]\[1\]` must be at least 0; got -1"),
        ({"origins": [(0, 0), 13]}, r"`origins\[1\]` must be two whole numbers; got 13"),
        ({"window": (20,)}, r"`window` must be two whole numbers; got \(20,\)"),
        ({"image": torch.rand(2, 3, 20, 33)}, "`image` must be one image; got 2"),
    ],
)
def test_bad_windows(given, change, message):
    inputs = {"logits": given[0], "features": given[1], "image": given[2][0]}
    inputs |= {"origins": [(0, 0), (0, 13)], "window": (20, 20)} | change
    with pytest.raises(ValueError, match=message):
        Lposs(short_side=None).windows(**inputs)


def test_windows_take_no_attention(given):
    logits, features, images = given
    with pytest.raises(TypeError, match="`features` must be features"):
        Lposs().windows(logits, affinity(features, 0.2), images[0], [(0, 0)] * 2)


def test_the_upsampler_is_the_second_step(rng, monkeypatch):
    assert Lposs().short_side == lposs_pixels.SHORT_SIDE
    monkeypatch.setattr(lposs_pixels, "SHORT_SIDE", 24)
    low = torch.from_numpy(rng.normal(size=(2, 3, 4, 5)).astype(np.float32))
    image = torch.from_numpy(rng.random((2, 3, 20, 33)).astype(np.float32))
    nothing = torch.zeros(2, 1, 4, 5)  # no patch has a neighbour, so the first step does nothing
    expected = Lposs(pixels=True, short_side=24)(low, nothing, image).scores
    assert_close(propagation_upsample(low, image), expected)
    halves = propagation_upsample(low.half(), (255 * image).byte())
    assert halves.dtype == torch.float16


def test_the_upsampler_is_one(monkeypatch):
    monkeypatch.setattr(lposs_pixels, "SHORT_SIDE", 16)
    check_upsampler(lambda: propagation_upsample)


@pytest.mark.parametrize(
    ("low", "image", "message"),
    [
        (torch.rand(3, 4, 5), torch.rand(1, 3, 8, 9), "low"),
        (torch.full((1, 1, 4, 5), torch.nan), torch.rand(1, 3, 8, 9), "low"),
        (torch.rand(2, 1, 4, 5), torch.rand(1, 3, 8, 9), "image"),
    ],
)
def test_the_upsampler_refuses_what_does_not_fit(low, image, message):
    with pytest.raises(ValueError, match=message):
        propagation_upsample(low, image)
