"""Prompts and settings of published methods: the TOML files against tables of their own.

The tables here are the one other copy: they were written from the released configurations, so that
a typo in a TOML file fails.
"""

import inspect
import re

import pytest

from ovss_refine.evaluation.dataset import list_datasets, load_dataset
from ovss_refine.evaluation.published import Published
from ovss_refine.labels import Labels

OFFICIAL = list_datasets()[:-1]
# Prompts in all for the families of SCLIP, ClearCLIP and ProxyCLIP, as their authors count them.
PROMPTS = {
    "voc21": (56, 21, 46),
    "voc20": (30, 20, 20),
    "context60": (60, 60, 60),
    "context59": (59, 59, 59),
    "coco-object": (113, 81, 97),
    "coco-stuff": (171, 171, 171),
    "cityscapes": (19, 19, 19),
    "ade20k": (150, 150, 150),
}
# (short side, window, stride, scale, probability, area) where a publication departs from its usual.
USUAL = {
    "sclip": (336, 224, 112, 40, 0, None),
    "clearclip": (448, 448, 224, 50, 0, None),
    "naclip": (336, 224, 112, 40, 0, None),
    "proxyclip": (336, 336, 112, 40, 0, None),
    "sc-clip": (336, 224, 112, 40, 0, None),
    "cass": (336, 224, 112, 40, 0, None),
    "rf-clip": (336, 224, 112, 40, 0, None),
}
DEPARTURES = {
    ("sclip", "voc21"): (336, 224, 112, 65, 0.1, 0.1),
    ("sclip", "context60"): (336, 224, 112, 50, 0.1, None),
    ("sclip", "coco-object"): (336, 224, 112, 50, 0.1, None),
    ("sclip", "coco-stuff"): (448, 224, 112, 40, 0, None),
    ("sclip", "cityscapes"): (560, 224, 112, 40, 0, None),
    ("clearclip", "voc21"): (448, 448, 224, 50, 0.5, None),
    ("clearclip", "context60"): (448, 448, 224, 50, 0.15, None),
    ("clearclip", "coco-object"): (448, 448, 224, 50, 0.4, None),
    ("clearclip", "cityscapes"): (448, 224, 224, 50, 0, None),
    ("naclip", "voc21"): (336, "whole", 112, 40, 0.1, None),
    ("naclip", "voc20"): (336, "whole", 112, 40, 0, None),
    ("naclip", "context60"): (336, 224, 112, 40, 0.1, None),
    ("naclip", "coco-object"): (336, 224, 112, 40, 0.1, None),
    ("naclip", "cityscapes"): (560, 224, 112, 40, 0, None),
    ("proxyclip", "voc21"): (336, 336, 112, 40, 0.2, None),
    ("proxyclip", "context60"): (336, 336, 112, 40, 0.15, None),
    ("proxyclip", "coco-object"): (336, 336, 112, 40, 0.25, None),
    ("proxyclip", "cityscapes"): (448, 224, 112, 40, 0, None),
    ("proxyclip", "ade20k"): (448, 336, 112, 40, 0, None),
    ("sc-clip", "voc21"): (336, 224, 112, 50, 0.15, 0.1),
    ("sc-clip", "context60"): (336, 224, 112, 40, 0.15, None),
    ("sc-clip", "coco-object"): (336, 224, 112, 55, 0.35, None),
    ("sc-clip", "cityscapes"): (560, 224, 112, 40, 0, None),
    **{
        (method, data): row
        for method in ("cass", "rf-clip")
        for data, row in {
            "voc21": (336, "whole", 112, 40, 0.1, None),
            "context60": (336, 224, 112, 40, 0.1, None),
            "coco-object": (336, 224, 112, 40, 0.1, None),
            "cityscapes": (560, 224, 112, 40, 0, None),
        }.items()
    },
}
KEYS = (
    "short_side",
    "window",
    "stride",
    "logit_scale",
    "probability_threshold",
    "area_threshold",
)
# CASS and RF-CLIP: global_weight, patch_weight, cluster_distance.
TEXT = {
    "voc21": (0.1, 0.03, 0.1),
    "voc20": (0.4, 0.02, 0.1),
    "context60": (0.25, 0.04, 0.09),
    "context59": (0.25, 0.04, 0.09),
    "coco-object": (0.25, 0.01, 0.1),
    "coco-stuff": (0.2, 0.02, 0.02),
    "cityscapes": (0.1, 0.03, 0.14),
    "ade20k": (0.3, 0.05, 0.06),
}
BACKGROUND = (
    "sky/wall/tree/wood/grass/road/sea/river/mountain/sands/desk/bed/building/cloud/lamp/door/"
    "window/wardrobe/ceiling/shelf/curtain/stair/floor/hill/rail/fence"
)
SHORT_BACKGROUND = (
    "sky/wall/tree/wood/grass/road/sea/river/mountain/sands/desk/bed/building/cloud/floor/hill/rail"
)
PERSON = (
    "person/person in shirt/person in jeans/person in dress/person in sweater/person in skirt/"
    "person in jacket"
)


@pytest.mark.parametrize("name", OFFICIAL)
def test_number_of_prompts(name):
    dataset = load_dataset(name)
    families = ("sclip", "clearclip", "proxyclip")
    assert tuple(len(dataset.labels(f).all_prompts) for f in families) == PROMPTS[name]
    assert dataset.prompts_of("names") == list(dataset.names)
    assert dataset.labels() == Labels(dataset.names, tuple((name,) for name in dataset.names))
    for family, rows in dataset.prompts.items():  # no prompts for a class that does not exist
        assert set(rows) <= {*dataset.names, "joined"}, family


def prompts(name, family):
    labels = load_dataset(name).labels(family)
    assert labels.names == load_dataset(name).names
    return dict(zip(labels.names, labels.prompts, strict=True))


def test_prompts_of_single_classes():
    for name in ("voc20", "voc21"):
        for family in ("sclip", "clearclip", "proxyclip"):
            assert prompts(name, family)["boat"] == "ship"
            assert prompts(name, family)["diningtable"] == "table"
        rows = prompts(name, "sclip")
        assert rows["person"] == PERSON
        assert rows["tvmonitor"] == "television monitor/tv monitor/monitor/television/screen"
        assert prompts(name, "proxyclip")["tvmonitor"] == "tvmonitor"
    for name in ("voc21", "coco-object"):
        assert prompts(name, "sclip")["background"] == BACKGROUND
        assert prompts(name, "clearclip")["background"] == "background"
    assert prompts("voc21", "proxyclip")["background"] == BACKGROUND
    assert prompts("coco-object", "proxyclip")["background"] == SHORT_BACKGROUND
    assert prompts("coco-object", "sclip")["person"] == f"{PERSON}/body"
    for family in ("sclip", "clearclip", "proxyclip"):
        assert prompts("cityscapes", family)["traffic light"] == "trafficlight"
    with pytest.raises(ValueError, match=r"`prompts` must be one of \[.*\]; got 'gem'"):
        load_dataset("voc21").labels("gem")


def test_a_published_prompt_of_two_classes_is_kept():
    labels = load_dataset("coco-object").labels("sclip")
    classes = [
        c
        for c, prompt in zip(labels.prompt_index, labels.all_prompts, strict=True)
        if prompt == "bed"
    ]
    assert [labels.names[c] for c in classes] == ["background", "bed"]


def plain(names):
    """Names without what lists write differently: blanks and hyphens."""
    return [re.sub(r"[ -]", "", name) for name in names]


def test_names_are_torchvisions():
    datasets = pytest.importorskip("torchvision.datasets", reason="has lists of its own")
    from torchvision.models import _meta

    names = {name: load_dataset(name).names for name in OFFICIAL}
    voc = ["background", *_meta._VOC_CATEGORIES[1:]]
    assert plain(names["voc21"]) == plain(voc)
    assert plain(names["voc20"]) == plain(voc[1:])
    coco = [name for name in _meta._COCO_CATEGORIES[1:] if name != "N/A"]
    assert plain(names["coco-object"]) == plain(["background", *coco])
    labels = {c.train_id: c.name for c in datasets.Cityscapes.classes if 0 <= c.train_id < 255}
    assert names["cityscapes"] == tuple(labels[i] for i in range(19))


def golden(method, name):
    return dict(zip(KEYS, DEPARTURES.get((method, name), USUAL[method]), strict=True))


def source_of(settings):
    """The options of a source in a row of the tables."""
    keys = ("short_side", "window", "stride", "logit_scale")
    return {key: None if settings[key] == "whole" else settings[key] for key in keys}


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("method", USUAL)
def test_published_settings(method, name):
    """What the description says, over the method's usual settings, is the published table."""
    how, wanted = load_dataset(name).published(method), golden(method, name)
    usual = dict(zip(KEYS, USUAL[method], strict=True))
    shared = source_of(usual) | how.source
    own = {key: shared.pop(key) for key in [*shared] if key not in KEYS}
    assert shared == source_of(wanted)
    decision = {key: wanted[key] for key in ("probability_threshold", "area_threshold")}
    assert {"probability_threshold": 0, "area_threshold": None} | how.decision == decision
    assert how.enlarged_twice == (wanted["window"] == "whole")
    assert how.pamr_iterations == (10 if method == "naclip" else 0)
    assert how.prompts == (method if method in ("clearclip", "proxyclip") else "sclip")
    text = {}
    if method in ("cass", "rf-clip"):
        keys = ("global_weight", "patch_weight", "cluster_distance")
        text = dict(zip(keys, TEXT[name], strict=True))
        text["global_from"] = "window" if name == "cityscapes" else "image"
    if method == "cass":
        text["spectrum_stretch"] = name not in ("voc20", "cityscapes")
    assert own == text


# What the trained methods are given on data sets with a background; on others, nothing.
TRAINED = {
    "talk2dino": {
        name: {"background": 0.55, "clean_background": True}
        for name in ("voc21", "context60", "coco-object")
    },
    "clip-dinoiser": {name: {"background": True} for name in ("voc21", "coco-object")},
    "tcl": {name: {"background": 0.4} for name in ("voc21", "context60", "coco-object")},
    "groupvit": {
        "voc21": {"background": 0.95},
        "context60": {"background": 0.35},
        "coco-object": {"background": 0.95},
    },
}


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("method", TRAINED)
def test_published_settings_of_trained_methods(method, name):
    own = method in ("clip-dinoiser", "groupvit") and name in ("voc20", "voc21")
    wanted = Published(prompts=method if own else "names", source=TRAINED[method].get(name, {}))
    assert load_dataset(name).published(method) == wanted
    assert load_dataset(name).names[0] == "background" or not wanted.source


@pytest.mark.parametrize("name", ["voc20", "voc21"])
def test_prompts_of_trained_methods(name):
    changed = {
        method: {c: p for c, p in prompts(name, method).items() if c != p}
        for method in ("clip-dinoiser", "groupvit")
    }
    assert changed == {
        "clip-dinoiser": {"diningtable": "dining table", "pottedplant": "potted plant"},
        "groupvit": {"diningtable": "table", "pottedplant": "plant", "tvmonitor": "monitor"},
    }


def test_every_setting_has_one_taker():
    every = {
        "prompts": "sclip",
        "probability_threshold": 0.1,
        "area_threshold": 0.2,
        "enlarged_twice": True,
        "pamr_iterations": 3,
        "window": "whole",
        "stride": 8,
    }
    how = Published.of(every)
    assert how == Published(
        prompts="sclip",
        source={"window": None, "stride": 8},
        decision={"probability_threshold": 0.1, "area_threshold": 0.2},
        enlarged_twice=True,
        pamr_iterations=3,
    )
    assert Published.of({}) == Published()


def test_an_unknown_method_has_the_usual_prompts_in_an_evaluation_only():
    assert load_dataset("voc21").method("my-own") == {"prompts": "sclip"}
    for name in ("my-own", "default"):
        with pytest.raises(
            ValueError, match=rf"`method` must be one of \['cass', .*; got '{name}'"
        ):
            load_dataset("voc21").published(name)
    with pytest.raises(ValueError, match=r"`dataset` must be one of .*; got 'voc'"):
        load_dataset("voc")


@pytest.mark.parametrize("name", OFFICIAL)
def test_settings_of_lavg_are_those_of_sclip(name):
    ours, sclip = (load_dataset(name).published(method) for method in ("lavg", "sclip"))
    own = {"no_object_is_background": True} if name == "voc21" else {}
    assert dict(ours.source) == {**sclip.source, **own}
    assert (ours.prompts, ours.decision) == (sclip.prompts, sclip.decision)
    assert (ours.enlarged_twice, ours.pamr_iterations) == (False, 0)


def test_cliptrase_differs_on_voc20_only():
    for name in OFFICIAL:
        own = {"class_factor": True} if name == "voc20" else {}
        assert load_dataset(name).method("cliptrase") == {"prompts": "sclip", **own}


def clip_options(method, model, **options):
    """The options that the producer of a method has on a tiny model, of those in the tables."""
    import torch

    from ovss_refine_adapters.logits import cass, clip, dense, proxyclip, rf_clip, sc_clip

    others = {
        "proxyclip": proxyclip.ProxyClipLogits,
        "sc-clip": sc_clip.ScClipLogits,
        "cass": cass.CassLogits,
        "rf-clip": rf_clip.RfClipLogits,
    }
    if method not in others:
        make = getattr(clip, method)
        return make(["a", "b"], model=model, text_features=torch.eye(2, 24), **options).options
    own = {*inspect.signature(others[method]).parameters} | {
        *inspect.signature(others[method].__mro__[1]).parameters
    }
    common = {key: value for key, value in options.items() if key in KEYS}
    assert set(options) - set(common) <= own
    return dense.ClipOptions(**(others[method].defaults | common))


@pytest.mark.parametrize("method", USUAL)
def test_the_usual_is_what_the_producers_do(method):
    """A producer's defaults are its usual settings, and it runs as published with the others."""
    pytest.importorskip("open_clip", reason="the models need open_clip")
    from adapters.tiny_clip import tiny_clip

    model = tiny_clip()
    wanted = source_of(dict(zip(KEYS, USUAL[method], strict=True)))
    default = clip_options(method, model)
    assert {key: getattr(default, key) for key in wanted} == wanted
    for name in OFFICIAL:
        options = clip_options(method, model, **load_dataset(name).published(method).source)
        wanted = source_of(golden(method, name))
        assert {key: getattr(options, key) for key in wanted} == wanted, name


def test_options_fit_the_decision():
    import torch

    from ovss_refine import Logits
    from ovss_refine.baseline.decision import decide

    values = torch.rand(1, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    logits = Logits(values, scale=40.0, prompt_index=[0, 0, 1, 2])
    for method in USUAL:
        for name in OFFICIAL:
            decision = load_dataset(name).published(method).decision
            assert decide(logits, (48, 80), **decision).labels.shape == (1, 48, 80)
