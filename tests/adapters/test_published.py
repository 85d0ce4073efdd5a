"""Published settings: every entry runs, and those that differ from the usual are as printed."""

import pytest
import torch

from adapters.tiny_clip import images, make
from ovss_refine import list_logits
from ovss_refine.baseline.decision import decide
from ovss_refine_adapters.logits import clip
from ovss_refine_adapters.published import _SETTINGS, DATA_SETS, published

# Short side, window (0: whole), stride, scale, thresholds of probability and area (0: none).
PRINTED = {
    ("sclip", "voc21"): (336, 224, 112, 65, 0.1, 0.1),
    ("sclip", "context60"): (336, 224, 112, 50, 0.1, 0),
    ("sclip", "coco-stuff"): (448, 224, 112, 40, 0, 0),
    ("sclip", "ade20k"): (336, 224, 112, 40, 0, 0),
    ("clearclip", "voc21"): (448, 448, 224, 50, 0.5, 0),
    ("clearclip", "cityscapes"): (448, 224, 224, 50, 0, 0),
    ("naclip", "voc20"): (336, 0, 112, 40, 0, 0),
    ("naclip", "cityscapes"): (560, 224, 112, 40, 0, 0),
    ("proxyclip", "cityscapes"): (448, 224, 112, 40, 0, 0),
    ("proxyclip", "ade20k"): (448, 336, 112, 40, 0, 0),
    ("sc-clip", "coco-object"): (336, 224, 112, 55, 0.35, 0),
    ("cass", "voc21"): (336, 0, 112, 40, 0.1, 0),
    ("rf-clip", "voc20"): (336, 224, 112, 40, 0, 0),
}


@pytest.mark.parametrize(("method", "data_set"), PRINTED)
def test_as_printed(method, data_set):
    how = published(method, data_set)
    source = (how.short_side, how.window or 0, how.stride, how.logit_scale)
    got = (*source, how.probability_threshold, how.area_threshold or 0)
    assert got == PRINTED[method, data_set]


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_the_usual_is_what_the_producers_do(data_set):
    """A producer's defaults are its settings on ADE20K or Context59, where nothing is special."""
    for name in ("sclip", "clearclip", "naclip"):
        options = make(getattr(clip, name), **published(name, data_set).source).options
        how = published(name, data_set)
        assert (options.window, options.logit_scale) == (how.window, how.logit_scale)
        default = getattr(clip, name)(
            ["a", "b"],
            model=options.model,
            text_features=torch.eye(2, 24),
        ).options
        if data_set in ("context59", "ade20k"):
            assert {k: getattr(default, k) for k in how.source} == how.source


def test_options_fit_the_decision():
    logits = make(clip.sclip).logits(images(1))
    for method in _SETTINGS:
        for data_set in DATA_SETS:
            labels = decide(logits, (48, 80), **published(method, data_set).decision).labels
            assert labels.shape == (1, 48, 80)


def test_only_naclip_has_pamr():
    rounds = {method: published(method, "ade20k").pamr_iterations for method in _SETTINGS}
    assert {method for method, n in rounds.items() if n} == {"naclip"}


def test_unknown():
    assert {"sclip", "clearclip", "naclip"} <= set(list_logits())
    with pytest.raises(ValueError, match=r"`method` must be one of .*; got 'clip'"):
        published("clip", "voc21")
    with pytest.raises(ValueError, match=r"`data_set` must be one of .*; got 'voc'"):
        published("sclip", "voc")
