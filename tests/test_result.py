"""What a result can do: be split, drawn and saved."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from ovss_refine import Refiner
from ovss_refine.images import draw

IMAGES = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
NAMES = ["sky", "cat", "dog", "sea"]


def refined(*, keep_scores=True):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(2, 4, 4, 6, generator=generator)
    logits[:, 3] = -20  # rejected
    attn = torch.eye(24) + 0.05 * torch.rand(2, 24, 24, generator=generator)
    refiner = Refiner(keep_scores=keep_scores)
    return refiner(logits, attn / attn.sum(-1, keepdim=True), IMAGES)


def rgb(b):
    return (IMAGES[b] * 255).round().byte().permute(1, 2, 0).numpy()


def test_one_of_a_batch():
    batch = refined()
    for b in (0, 1, -1, -2):
        one = batch[b]
        for name in ("labels", "discrepancy", "kept", "seeds", "scores"):
            assert torch.equal(getattr(one, name), getattr(batch, name)[b])
    assert [torch.equal(one.labels, batch.labels[b]) for b, one in enumerate(batch)] == [True] * 2
    assert refined(keep_scores=False)[0].scores is None


def test_there_is_no_such_image():
    with pytest.raises(IndexError, match=r"`b` must be in \[-2, 1\]; got 2"):
        refined()[2]
    with pytest.raises(IndexError, match="got -3"):
        refined()[-3]
    for wrong in (0.0, slice(1), True, "0"):
        with pytest.raises(TypeError, match="`b` must be a whole number"):
            refined()[wrong]
    with pytest.raises(TypeError, match="must be of a batch; this is the result of one image"):
        refined()[0][0]


@pytest.mark.parametrize("form", ["tensor", "bytes", "array", "PIL"])
def test_overlay_takes_the_image_in_every_form(form):
    one, image = refined()[1], rgb(1)
    given = {
        "tensor": IMAGES[1],
        "bytes": torch.from_numpy(image).permute(2, 0, 1),
        "array": image,
        "PIL": Image.fromarray(image),
    }[form]
    page = one.overlay(given, NAMES)
    assert page.dtype == np.uint8
    wanted = draw.overlay(image, one.labels.numpy(), draw.palette(NAMES))
    assert_array_equal(page[:8, :12], wanted)
    assert len(page) > 8  # the legend


def test_without_names_classes_are_numbered():
    one, numbers = refined()[0], [f"class {c}" for c in range(4)]
    assert_array_equal(one.overlay(IMAGES[0]), one.overlay(IMAGES[0], numbers))
    assert not np.array_equal(one.overlay(IMAGES[0]), one.overlay(IMAGES[0], NAMES))


def test_plot_has_the_image_beside_its_classes():
    one = refined()[0]
    plot = one.plot(IMAGES[0], NAMES)
    panels = {"refined": one.labels.numpy()}
    assert_array_equal(np.asarray(plot), draw.labelled(rgb(0), panels, NAMES, "image"))
    assert_array_equal(np.asarray(plot)[2 * draw.FONT_PX :][:8, :12], rgb(0))


def test_maps_are_those_of_the_kept_classes():
    one = refined()[0]
    assert one.kept.tolist() == [True, True, True, False]
    sheet = draw.heat_maps(one.discrepancy[:3].numpy(), NAMES[:3], (8, 12))
    assert_array_equal(one.maps(IMAGES[0], NAMES), sheet)


def test_save_writes_the_overlay(tmp_path):
    one = refined()[0]
    one.save(tmp_path / "x.png", IMAGES[0], NAMES)
    assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), one.overlay(IMAGES[0], NAMES))


@pytest.mark.parametrize("draw", ["overlay", "plot", "maps"])
def test_what_does_not_fit_is_refused(draw):
    batch = refined()
    with pytest.raises(ValueError, match=r"of one image; got a batch of 2. Take `result\[b\]`"):
        getattr(batch, draw)(IMAGES[0])
    with pytest.raises(ValueError, match=r"`image` must have H, W = \[8, 12\]; got \[8, 11\]"):
        getattr(batch[0], draw)(IMAGES[0, :, :, 1:])
    with pytest.raises(ValueError, match="`names` must name the M=4 classes; got 3"):
        getattr(batch[0], draw)(IMAGES[0], NAMES[:3])


def test_pillow_is_loaded_only_to_draw():
    code = "import sys, ovss_refine.result; print('PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
