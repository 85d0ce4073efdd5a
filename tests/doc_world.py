"""What the documents' commands and code find when they are run: files, and tiny models."""

import functools
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from evaluation.trees import random_mask, write_arrays, write_tree
from ovss_refine import registry
from ovss_refine.evaluation.dataset import load_dataset

NAMES = ["background", "cat", "dog", "grass"]
GRID, SIZE = (6, 8), (48, 64)
# Where weights would come from; the tiny models take their place.
FROM = ("model", "pretrained", "weights", "revision", "variant", "projection", "heads", "masker")
# Those of a tiny CLIP that SC-CLIP combines.
BLOCKS = {"pre_adjust": 1, "post_adjust": 0, "multi_start": 0, "multi_end": 2, "class_weight": 0.3}
OWN = ("npz", "callable")  # sources that take no weights


def scene(K=4, grid=GRID, size=SIZE, seed=0):
    """Return logits [K, h, w], attention [N, N] on the same grid and an image [3, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(K, *grid, generator=generator)
    N = grid[0] * grid[1]
    attention = torch.rand(N, N, generator=generator) + N * torch.eye(N) / 4
    image = torch.rand(3, *size, generator=generator)
    return logits, attention / attention.sum(dim=-1, keepdim=True), image


def write_world(root):
    """Write every file that a document names, small."""
    logits, attention, image = scene()
    pixels = (255 * image).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(root / "photo.jpg")
    np.savez(root / "logits.npz", logits=logits.numpy())
    np.savez(root / "attention.npz", attention=attention.numpy())
    for text in ("names.txt", "classes.txt"):
        (root / text).write_text("".join(f"{name}\n" for name in NAMES))
    (root / "MODELS").mkdir()
    (root / "photos" / "a").mkdir(parents=True)
    for photo in ("photos/one.jpg", "photos/a/x.jpg"):
        Image.fromarray(pixels[::-1]).save(root / photo)
    write_scores(root / "scores")
    write_tree(root / "VOCdevkit", "voc21", count=1)
    ids = write_tree(root / "voc_real", "voc21", count=1)
    arrays = write_arrays(root / "voc_real" / "arrays", ids, 21)
    for id in ids:
        path = arrays / f"{id}.npz"
        with np.load(path) as file:
            np.savez(path, logits_weak=file["logits"], features=file["features"])
    write_tree(root / "DIR", "coco-object")
    write_published_maps(root)


def write_scores(folder):
    """Write logits of two prompts for two images of VOC."""
    folder.mkdir()
    for id in ("2007_000033", "2007_000042"):
        np.savez(folder / f"{id}.npz", logits=scene(2)[0].numpy())


def write_published_maps(root):
    """Write label maps as the publishers ship them, before any conversion."""
    rng = np.random.default_rng(0)
    classes = load_dataset("context60").names[1:]
    (root / "labels.txt").write_text("".join(f"{i}: {n}\n" for i, n in enumerate(classes, 1)))
    for folder, name, highest in (
        ("stuffthingmaps/val2017", "000000000139.png", 10),
        ("gtFine/val/frankfurt", "frankfurt_000000_000294_gtFine_labelIds.png", 33),
        ("trainval", "2008_000002.png", 59),
    ):
        (root / folder).mkdir(parents=True)
        mask = random_mask(rng, highest, SIZE)
        mask[mask == 255] = 0  # no map but COCO's has it
        Image.fromarray(mask).save(root / folder / name)


def tiny_options(kind, name):
    """Return what makes a source of that name tiny: the model, and sizes that suit it."""
    from adapters.tiny_clip import halves, tiny_clip
    from adapters.tiny_models import (
        tiny_groupvit,
        tiny_heads,
        tiny_masker,
        tiny_parts,
        tiny_projection,
        tiny_vit,
    )
    from adapters.tiny_promptable import tiny_clipseg
    from ovss_refine_adapters.logits.sc_clip import Calibration

    plain = {"short_side": None, "window": None, "templates": "single", "cache_dir": None}
    if name == "talk2dino":
        models = {"model": tiny_vit("registers"), "clip": tiny_clip()}
        return {**plain, **models, "projection": tiny_projection()}
    if name == "groupvit":
        return {**plain, "model": tiny_groupvit()}
    if name == "transformers":
        return {**plain, "model": tiny_clipseg(), "size": 64}
    if kind == "logits":
        more = {"proxyclip": {"proxy": tiny_vit("dino")}, "cass": {"proxy": tiny_vit("dino")}}
        more["sc-clip"] = {"calibration": Calibration(**BLOCKS)}
        more["rf-clip"] = {"sink_channels": []}
        more["gem"] = more["clip-surgery"] = {"blocks": 2}
        more["clip-dinoiser"] = {"heads": tiny_heads()}
        more["tcl"] = {"masker": tiny_masker()}
        more["lavg"] = {"masks": halves}
        # Large patches: the published settings resize to hundreds of pixels.
        clip = tiny_clip(patch_size=16, image_size=64)
        return {"model": clip, **plain, **more.get(name, {})}
    if name.startswith("sd"):
        return {"model": tiny_parts(1 if name == "sd1.5" else 2), "resolution": 64}
    if name.startswith("clip"):
        return {"model": tiny_clip(), "size": 64}
    if name.startswith("dinov2"):
        return {"model": tiny_vit("registers" if "reg" in name else "dinov2"), "size": 56}
    return {"model": tiny_vit("dinov3" if "dinov3" in name else "dino"), "size": 64}


def make_tiny(factory, tiny, **options):
    """Call a source's own factory, so that options are checked, with a model of ours."""
    return factory(**{**tiny, **{k: v for k, v in options.items() if k not in FROM}})


def install_tiny_models(monkeypatch):
    """Let every source that is loaded by name, and exists, be made of a tiny random model."""
    original = registry._registered

    def load(kind, name, point):
        return functools.partial(make_tiny, point.load(), tiny_options(kind, name))

    def registered(kind):
        points = original(kind)
        if kind not in ("attention", "logits"):
            return points
        return {
            name: point
            if name in OWN
            else SimpleNamespace(
                name=name, module=point.module, load=functools.partial(load, kind, name, point)
            )
            for name, point in points.items()
        }

    # Below `find`, which modules that are imported already hold by name.
    monkeypatch.setattr(registry, "_registered", registered)
