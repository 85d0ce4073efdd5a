"""TCL against the authors' released code on random weights; data/README.md has every array."""

import functools
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from adapters.peer_vectors import assert_golden
from ovss_refine_adapters.logits.tcl import TclLogits

PATH = Path(__file__).parents[1] / "data" / "tcl.npz"
# Inner activations are of order ten.
ACTIVATIONS = 2e-5
THRESHOLDS = {0: 0.5, 1: 0.4}


@functools.cache
def vectors():
    with np.load(PATH) as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def under(prefix):
    return {k.removeprefix(prefix): v for k, v in vectors().items() if k.startswith(prefix)}


@functools.cache
def clip():
    vision = {"layers": 3, "width": 32, "head_width": 8, "patch_size": 16, "image_size": 64}
    text = {"width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(
        16, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text), quick_gelu=True
    )
    model.visual.load_state_dict(under("w/visual."))
    return model.eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The trained part as the released file has it."""
    path = tmp_path_factory.mktemp("tcl") / "tcl.pth"
    held = {k.replace("blocks.2.", "blocks.11."): v for k, v in under("w/").items()}
    torch.save({"model": held, "step": 1}, path)
    return path


def make(file, **options):
    given = {"model": clip(), "text_features": vectors()["text/features"]}
    plain = {"short_side": None, "window": None, "masker": file}
    return TclLogits([f"class {i}" for i in range(5)], **(given | plain | options))


def pixels(image):
    if image == "padded":
        return vectors()["square/pixels"][None, :, :50, :59]
    if image == "samecount":
        return vectors()["square/pixels"].reshape(1, 3, 32, 128)
    return vectors()[f"{image}/pixels"][None]


@pytest.mark.parametrize("image", ["square", "wide"])
def test_parts(image, file):
    golden, source, x = under(f"{image}/"), make(file), pixels(image)
    grid = source.tower.grid(*x.shape[-2:])
    with torch.no_grad():
        patches = source.patches(x)
        decoded, plain = source.decoded(patches, grid), source.plain(patches, grid)
    tokens = golden["shared_tokens"]
    assert_golden(patches[0], tokens[len(tokens) - grid[0] * grid[1] :], ACTIVATIONS)
    assert_golden(source.compare(decoded)[0], golden["m_cos"])
    assert_golden(source.compare(plain)[0], golden["k_cos"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mask", {"pamr_steps": 0, "maskclip_weight": 0}),
        ("pamr", {"maskclip_weight": 0}),
        ("mix_pamr0", {"pamr_steps": 0}),
        ("mix_pamr1", {}),
    ],
)
def test_masks(name, options, file):
    images = [image for image in ("square", "wide") if f"{image}/{name}" in vectors()]
    assert images
    for image in images:
        with torch.no_grad():
            masks = make(file, **options).masks(pixels(image))
        assert_golden(masks[0], vectors()[f"{image}/{name}"])


@pytest.mark.parametrize("weighted", [0, 1])
@pytest.mark.parametrize("refined", [0, 1])
@pytest.mark.parametrize("image", ["square", "wide", "padded", "samecount"])
def test_masks_on_pixels(image, refined, weighted, file):
    options = {"pamr_steps": 10 * refined, "maskclip_weight": 0.3 * weighted}
    x = pixels(image)
    H, W = x.shape[-2:]
    with torch.no_grad():
        masks = F.interpolate(make(file, **options).values(x, None), (H, W), mode="bilinear")
    golden = under(f"{image}/")
    assert_golden(masks[0, :, ::7, ::7], golden[f"final_pamr{refined}_kp{weighted}"])
    if weighted:
        threshold = torch.full_like(masks[:, :1], THRESHOLDS[refined])
        labels = torch.cat([threshold, masks], dim=1).argmax(dim=1)[0]
        assert len(labels.unique()) > 2
        wanted = golden[f"labels_bg_pamr{refined}_kp1"]
        assert torch.equal(labels, wanted.long())


def test_text(file):
    raw, wanted = vectors()["text/raw"], vectors()["text/mean_unit"]
    assert_golden(make(file, text_features=raw.mean(dim=1)).text, wanted)
    # The templates differ enough for another order to be seen.
    assert (F.normalize(F.normalize(raw, dim=-1).mean(dim=1), dim=-1) - wanted).abs().max() > 1e-3
