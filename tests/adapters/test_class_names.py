"""Class sets against torchvision's lists, and the published numbers of prompts."""

import re

import pytest
from torchvision.datasets import Cityscapes
from torchvision.models import _meta

from ovss_refine_adapters.class_names import BACKGROUND, SHORT_BACKGROUND, class_set


def joined(names):
    """Names without what lists write differently: blanks and hyphens."""
    return [re.sub(r"[ -]", "", name) for name in names]


def test_names_are_torchvisions():
    voc = ["background", *_meta._VOC_CATEGORIES[1:]]
    assert joined(class_set("voc21").names) == joined(voc)
    assert joined(class_set("voc20").names) == joined(voc[1:])
    coco = [name for name in _meta._COCO_CATEGORIES[1:] if name != "N/A"]
    assert joined(class_set("coco-object").names) == joined(["background", *coco])
    labels = {c.train_id: c.name for c in Cityscapes.classes if 0 <= c.train_id < 255}
    assert class_set("cityscapes").names == tuple(labels[i] for i in range(19))


@pytest.mark.parametrize(
    ("data_set", "family", "classes", "prompts"),
    [
        # As counted in the released files.
        ("voc21", "sclip", 21, 56),
        ("voc21", "clearclip", 21, 21),
        ("voc21", "proxyclip", 21, 46),
        ("voc20", "sclip", 20, 30),
        ("voc20", "clearclip", 20, 20),
        ("voc20", "proxyclip", 20, 20),
        ("coco-object", "sclip", 81, 113),
        ("coco-object", "clearclip", 81, 81),
        ("coco-object", "proxyclip", 81, 97),
        ("cityscapes", "sclip", 19, 19),
    ],
)
def test_numbers_of_prompts(data_set, family, classes, prompts):
    chosen = class_set(data_set, family)
    assert (len(chosen.names), len(chosen.prompts)) == (classes, prompts)


def test_prompts():
    voc = class_set("voc21")
    rows = dict(zip(voc.names, voc.synonyms, strict=True))
    assert rows["background"] == BACKGROUND
    assert rows["boat"] == ("ship",)
    assert rows["diningtable"] == ("table",)
    assert rows["tvmonitor"][0] == "television monitor"
    assert rows["person"][-1] == "person in jacket"
    assert class_set("coco-object").synonyms[1][-1] == "body"
    assert class_set("voc21", "proxyclip").synonyms[20] == ("tvmonitor",)
    assert class_set("cityscapes").prompts[6] == "trafficlight"
    assert (len(BACKGROUND), len(SHORT_BACKGROUND)) == (26, 17)


def test_unknown():
    with pytest.raises(ValueError, match=r"`data_set` must be one of \['voc20', .*; got 'voc'"):
        class_set("voc")
    with pytest.raises(ValueError, match=r"`family` must be one of \['sclip', .*; got 'x'"):
        class_set("voc20", "x")
