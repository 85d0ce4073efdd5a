"""The HTML that the page shows."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from ovss_refine.app import views
from ovss_refine.app.uploads import NamedImage
from ovss_refine.images import draw
from ovss_refine.logits import Logits
from ovss_refine.segmentation import Segmentation

NAMES = ("sky", "<b>cat</b>", "dog")
RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def made(**changes):
    before = torch.zeros(20, 30, dtype=torch.int64)
    before[:, 20:] = 1
    after = torch.zeros(20, 30, dtype=torch.int64)
    after[15:] = 1
    values = {
        "image": RGB,
        "names": NAMES,
        "labels": after,
        "discrepancy": torch.tensor([[[0.0, 1.0]], [[2.0, 4.0]], [[-torch.inf, -torch.inf]]]),
        "kept": torch.tensor([True, True, False]),
        "baseline": before,
        "seconds": {"logits": 1.0, "refinement": 0.25},
    }
    return Segmentation(**(values | changes))


class Reader(HTMLParser):
    """Collects texts, tags, and the attributes of images."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.images, self.tags = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_data(self, data):
        self.texts.append(data)


def decode(image):
    with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as opened:
        return np.asarray(opened)


def result(**changes):
    values = torch.tensor([[[0.0, 4.0]], [[1.0, 0.0]], [[0.0, 0.0]]])  # [M, 1, 2]
    return made(logits=Logits(values, names=NAMES), **changes)


def parts(page):
    """The images of a result by their classes."""
    return {image["class"]: image for image in Reader(page).images}


def test_the_result_has_both_label_maps_over_the_image_and_a_legend():
    page = views.result(result())
    read, found = Reader(page), parts(page)
    assert list(found) == ["photo", "before", "before-facts", "after", "after-facts"]
    assert np.abs(decode(found["photo"]).astype(int) - RGB).mean() < 8  # it is a JPEG
    for kind, labels in (("before", made().baseline), ("after", made().labels)):
        want = draw.overlay(RGB, labels.numpy(), draw.palette(NAMES), opacity=1)
        assert_array_equal(decode(found[kind]), want)
    assert found["before"]["alt"] == "Baseline: logits alone. Largest: sky 67%, <b>cat</b> 33%"
    shares = [text for text in read.texts if "%" in text]
    assert shares == ["66.7%", "75.0%", "33.3%", "25.0%"]
    assert "dog" not in read.texts  # occurs nowhere
    assert "b" not in read.tags  # names are escaped


def test_a_pixel_has_its_class_and_the_confidence_of_its_patch():
    found = parts(views.result(result()))
    P = result().logits.values.double().softmax(0).numpy()
    for kind, labels in (("before", made().baseline), ("after", made().labels)):
        assert "hidden" in found[f"{kind}-facts"]
        facts = decode(found[f"{kind}-facts"]).astype(int)
        assert_array_equal(256 * facts[..., 0] + facts[..., 1], labels)
        for y, x in ((0, 0), (0, 29), (19, 14), (19, 15), (19, 29)):
            patch = int(x >= 15)
            assert facts[y, x, 2] == round(255 * P[labels[y, x], 0, patch])


def test_synonyms_and_the_scale_count_for_the_confidence():
    values = torch.tensor([1.0, 2.0, 0.5]).reshape(3, 1, 1)
    logits = Logits(values, 3.0, prompt_index=[0, 257, 257])
    facts = views.pixel_facts(logits, np.array([[0, 257, 5]]))
    p = np.exp(3 * values.flatten().double().numpy())
    p /= p.sum()
    want = [[0, 0, round(255 * p[0])], [1, 1, round(255 * (p[1] + p[2]))], [0, 5, 0]]
    assert_array_equal(facts[0], want)


def test_a_result_without_logits_has_no_confidence():
    assert list(parts(views.result(made()))) == ["photo", "before", "after"]


def test_a_large_result_is_shown_reduced_by_whole_labels():
    labels = torch.zeros(2000, 3000, dtype=torch.int64)
    labels[:, 1500:] = 1
    image = np.zeros((2000, 3000, 3), np.uint8)
    found = parts(views.result(result(image=image, labels=labels, baseline=labels)))
    facts = decode(found["after-facts"])
    assert facts.shape == (683, 1024, 3)
    assert_array_equal(facts[..., 1], np.broadcast_to(np.arange(1024) >= 512, (683, 1024)))


def test_the_legend_has_the_colours_of_the_overlay():
    colours = draw.palette(NAMES)
    found = re.findall(r"rgb\((\d+), (\d+), (\d+)\)", views.legend(made(), colours))
    assert_array_equal(np.array(found, dtype=int), colours[:2])


def test_classes_that_refinement_removed_are_listed_too():
    page = views.legend(made(labels=torch.full((20, 30), 2)), draw.palette(NAMES))
    shares = [text for text in Reader(page).texts if "%" in text]
    assert shares == ["0.0%", "100.0%", "66.7%", "0.0%", "33.3%", "0.0%"]


def test_maps_are_on_one_scale_and_the_rejected_are_named():
    read = Reader(views.maps(made()))
    assert [image["alt"].split(":")[0] for image in read.images] == [
        "Map of <b>cat</b>",
        "Map of sky",
    ]
    cat, sky = (decode(image) for image in read.images)
    assert_array_equal(cat[0, 1], draw.HEAT[-1])  # the highest of all
    assert_array_equal(sky[0, 0], draw.HEAT[0])  # the lowest of all
    assert_array_equal(sky[0, 1], draw.HEAT[1])  # a quarter of the way
    assert read.images[0]["style"] == "aspect-ratio: 30 / 20"
    assert "No patch is sure of: dog." in "".join(read.texts)
    bar = "".join(read.texts).partition("unlikely")[2]
    assert bar.startswith("0likely4")  # the lowest and the highest
    assert "b" not in read.tags


def test_of_many_maps_the_brightest_are_shown():
    names = tuple(f"class {n}" for n in range(1000))
    values = torch.arange(1000.0).reshape(-1, 1, 1)
    page = views.maps(made(names=names, discrepancy=values, kept=torch.ones(1000, dtype=bool)))
    read = Reader(page)
    assert len(read.images) == 48
    assert read.images[0]["alt"].startswith("Map of class 999:")
    assert "The 48 brightest of 1000 are shown." in "".join(read.texts)
    rejected = views.maps(made(names=names, discrepancy=values, kept=torch.arange(1000) < 1))
    assert "class 48 ..." in "".join(Reader(rejected).texts)


def test_a_class_that_has_won_everywhere_is_bright():
    flat = made(discrepancy=torch.zeros(3, 1, 2), kept=torch.tensor([True] * 3))
    assert_array_equal(decode(Reader(views.maps(flat)).images[0])[0, 0], draw.HEAT[-1])


def test_a_small_share_does_not_read_as_zero():
    many = torch.zeros(100, 100, dtype=torch.int64)
    many[0, 0] = 1
    page = views.legend(made(labels=many, baseline=many), draw.palette(NAMES))
    shares = [text for text in Reader(page).texts if "%" in text]
    assert shares == ["100.0%", "100.0%", "<0.1%", "<0.1%"]


def test_the_summary_counts_what_changed():
    read = Reader(views.summary(made(), "a<i>b"))
    text = "".join(read.texts)
    assert "a<i>b, 30 x 20 pixels, 2 x 1 patches, 3 classes" in text
    assert "changed 41.7% of the pixels" in text
    assert "total1.25 s" in text


@pytest.mark.parametrize("size", [(1, 1), (20, 30), (3000, 10), (1024, 2048)])
def test_images_are_shown_at_limited_size(size):
    h, w = views.shown_size(*size)
    assert 1 <= max(h, w) <= 1024
    assert min(h, w) >= 1
    image = np.zeros((*size, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(views.jpeg(image))) as shown:
        assert shown.size == (w, h)


def test_messages_are_escaped_and_backticks_become_code():
    page = views.error("`x` must be <1; got `<script>`.")
    assert "<code>x</code> must be &lt;1; got <code>&lt;script&gt;</code>." in page
    assert 'role="alert"' in page
    assert "alert" not in views.notice("fine")
    assert "details" not in page
    detailed = views.error("no", "`y` <b>")
    assert "<details>" in detailed
    assert "<code>y</code> &lt;b&gt;" in detailed
    assert "stale" in views.stale("old")


def test_a_reduced_image_is_said_to_be():
    assert "scaled" not in views.loaded(NamedImage("x", RGB))
    text = views.loaded(NamedImage("x", RGB, full_size=(6000, 4000)))
    assert "<code>x</code>, 30 x 20 pixels, is loaded. It was scaled down from 6000 x 4000" in text


def test_pending_downloads_are_listed():
    text = views.sizes({"kk-mean": "0.6 GB"})
    assert "`kk-mean` (0.6 GB)" in text
    assert "huggingface.co" in text
    assert "no further downloads" in views.sizes({})
