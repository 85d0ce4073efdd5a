"""LPOSS and LPOSS+ against their authors' released code."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from adapters import peer_vectors2 as pv
from ovss_refine.baseline import lposs as module
from ovss_refine.baseline.label_propagation import patch_graph, propagate
from ovss_refine.baseline.lposs import Lposs
from ovss_refine.baseline.lposs_inputs import places
from ovss_refine.baseline.pixel_graph import PixelGraph, lab

# As the README of the vectors states: of a float64 computation, and of LPOSS+ on float32 colours.
DOUBLE, COLOURS = 1e-5, 1e-3
PUBLIC = [("patch", False, DOUBLE), ("plus", False, COLOURS), ("plus", True, DOUBLE)]


def arrays():
    """Inputs and outputs, by their names without the method's."""
    return {key.removeprefix("lposs_"): x for key, x in pv.load("lposs").items()}


def settings(case):
    """What the metadata says of a case: as options of ours, else the published ones, and all."""
    meta = pv.metadata()
    found = meta["settings"]["lposs"].get(case[0], {}) | meta["statistics"]["lposs"][case]
    names = {"k": "neighbours", "pix_dist_pow": "power", "r": "pixel_window"}
    names |= {name: name for name in ("sigma", "gamma", "alpha", "tau", "patch_size")}
    return Lposs(short_side=None, **{names[k]: found[k] for k in names if k in found}), found


def assert_close(actual, expected, tolerance=DOUBLE):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0, check_dtype=False)


def over_patches(lposs, maps, features, at):
    """Propagate [K, N] maps along [N, C] features at places [N, 2]."""
    options = {name: getattr(lposs, name) for name in ("neighbours", "sigma", "gamma", "power")}
    weights = patch_graph(features, at, **options)
    return propagate(maps, lambda x: (weights @ x.mT).mT, lposs.alpha, lposs.steps)


def cosines(features, text, grid):
    """[n, C, h, w] features, resized and then normalised, with [Q, C] texts: [n, Q, *grid]."""
    resized = F.interpolate(features.double(), grid, mode="bilinear")
    return torch.einsum("nchw,qc->nqhw", F.normalize(resized, dim=1), text.double())


@pytest.mark.parametrize("case", ["A_default", "A_k60", "B_other"])
def test_patches(case):
    given, (lposs, _) = arrays(), settings(case)
    features, logits = given[f"{case[0]}_feat"].double(), given[f"{case[0]}_logits"].double()
    at = places(features.shape[1:], (lposs.patch_size,) * 2)
    found = over_patches(lposs, logits.flatten(1), features.flatten(1).mT, at)
    assert_close(found.view_as(logits), given[case])


def test_the_patches_of_all_windows():
    given, (lposs, found) = arrays(), settings("S_patch")
    dino = given["S_dino"].double()
    inside = places(dino.shape[2:], (lposs.patch_size,) * 2)
    at = torch.cat([inside + torch.tensor(o) for o in found["window_origins_row_col"]])
    maps = cosines(given["S_clip"], given["S_text"], dino.shape[2:]).movedim(1, 0).flatten(1)
    solved = over_patches(lposs, maps, dino.flatten(2).mT.flatten(0, 1), at)
    assert_close(solved.mT, given["S_nodes"])


def test_colours():
    given = arrays()
    assert_close(lab(given["P_image_u8"].double() / 255), given["P_lab"])


@pytest.mark.parametrize("case", ["P_default", "P_tau05_r5"])
def test_pixels(case):
    given, (lposs, _) = arrays(), settings(case)
    image, maps = given["P_image_u8"].double() / 255, given["P_logits"].double()
    graph = PixelGraph(image, lposs.pixel_window, lposs.tau)
    assert_close(propagate(maps, graph.times, lposs.alpha, lposs.steps), given[case])


@pytest.fixture
def run(monkeypatch):
    """Call LPOSS on a case; `exact`: with colours in float64, as the stored numbers are made."""

    def call(case, exact):
        given, (lposs, found) = arrays(), settings(case)
        image = given[f"{case[0]}_image_u8"]
        if exact:
            pixels = image[None].double() / 255
            monkeypatch.setattr(module, "as_image_batch", lambda *_: (pixels, False))
        lposs = replace(lposs, pixels=case.endswith("plus"))
        features, text = given[f"{case[0]}_dino"], given[f"{case[0]}_text"]
        clip = given[f"{case[0]}_clip"]
        logits = cosines(clip if clip.ndim == 4 else clip[None], text, features.shape[-2:])
        # The first queries are the background's.
        several = found["background_queries_first"]
        index = [0] * several + list(range(1, found["queries"] - several + 1))
        more = {"prompt_index": index, "size": found["output_size"]}
        if "window" in found:
            window, origins = (found["window"],) * 2, found["window_origins_row_col"]
            result = lposs.windows(logits, features, image, origins, window=window, **more)
        else:
            result = lposs(logits[0], features, image, **more)
        of_labels = result.scores.gather(0, result.labels[None])[0]
        assert torch.equal(of_labels, result.scores.amax(dim=0))
        return result.scores[:, 1::3, 2::3], given[case]

    return call


@pytest.mark.parametrize("letter", ["W", "S"], ids=["whole image", "windows"])
@pytest.mark.parametrize(("kind", "exact", "tolerance"), PUBLIC)
def test_from_image_to_maps(run, letter, kind, exact, tolerance):
    found, stored = run(f"{letter}_{kind}", exact)
    assert_close(found, stored, tolerance)
