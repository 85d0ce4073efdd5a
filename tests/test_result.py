"""What a result can do: be split, and become a segmentation."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from ovss_refine import Refiner, RefineResult
from ovss_refine.images import draw
from ovss_refine.result import gather

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


def forms(b, folder):
    """The image `b` in every form."""
    image = rgb(b)
    Image.fromarray(image).save(folder / "x.png")
    return {
        "tensor": IMAGES[b],
        "uint8 tensor": torch.from_numpy(image).permute(2, 0, 1),
        "array": image,
        "float array": image / 255,
        "PIL": Image.fromarray(image),
        "path": folder / "x.png",
    }


@pytest.mark.parametrize("form", ["tensor", "uint8 tensor", "array", "float array", "PIL", "path"])
def test_segmentation_takes_the_image_in_every_form(form, tmp_path):
    one = refined()[1]
    found = one.segmentation(forms(1, tmp_path)[form], NAMES)
    assert_array_equal(found.image, rgb(1))
    assert found.names == tuple(NAMES)
    for name in ("labels", "discrepancy", "kept"):
        assert torch.equal(getattr(found, name), getattr(one, name))
    assert (found.baseline, found.attention, found.seconds) == (None, None, {})


def test_segmentation_draws_measures_and_saves(tmp_path):
    one = refined()[0]
    found = one.segmentation(IMAGES[0], NAMES)
    labels = one.labels.numpy()
    assert_array_equal(found.overlay(), draw.labelled(rgb(0), {"": labels}, NAMES))
    assert_array_equal(found.plot(), draw.labelled(rgb(0), {"refined": labels}, NAMES, "image"))
    assert one.kept.tolist() == [True, True, True, False]
    sheet = draw.heat_maps(one.discrepancy[:3].numpy(), NAMES[:3], (8, 12))
    assert_array_equal(found.maps(), sheet)
    found.save(tmp_path / "x.png")
    assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), found.overlay())
    assert {name: pixels for name, pixels, _ in found.areas()} == {
        NAMES[c]: int((labels == c).sum()) for c in np.unique(labels)
    }
    assert torch.equal(found.mask("cat"), one.labels == 1)
    assert [entry["category_id"] for entry in found.rle()] == np.unique(labels).tolist()


def test_without_names_classes_are_numbered():
    found = refined()[0].segmentation(IMAGES[0])
    assert found.names == ("class 0", "class 1", "class 2", "class 3")


def test_what_does_not_fit_is_refused():
    batch = refined()
    with pytest.raises(ValueError, match=r"of one image; got .* batch of 2. Take `result\[b\]"):
        batch.segmentation(IMAGES[0])
    with pytest.raises(ValueError, match=r"`image` must have H, W = \[8, 12\]; got \[8, 11\]"):
        batch[0].segmentation(IMAGES[0, :, :, 1:])
    with pytest.raises(ValueError, match=r"`image` must be a tensor .* got \[2, 3, 8, 12\]"):
        batch[0].segmentation(IMAGES)
    with pytest.raises(ValueError, match="`names` must name the M=4 classes; got 3"):
        batch[0].segmentation(IMAGES[0], NAMES[:3])
    with pytest.raises(ValueError, match="`names` must be distinct; got 'sky' twice"):
        batch[0].segmentation(IMAGES[0], [*NAMES[:3], "sky"])
    with pytest.raises(TypeError, match=r"`image` must be a path, a PIL image, .* got int"):
        batch[0].segmentation(3)


def test_pillow_is_loaded_only_to_draw(forks):
    code = "import sys, ovss_refine.result; print('PIL' in sys.modules)"
    assert forks.printed(code) == "False"


def test_gathered_results_say_the_most_steps_and_whether_all_converged():
    labels, maps = torch.arange(4).view(1, 2, 2), torch.rand(1, 3, 2, 2)
    parts = [
        RefineResult(labels + b, maps * b, maps[..., 0, 0] > b, maps > 0.5, None, {"kl": n}, done)
        for b, (n, done) in enumerate(((4, True), (9, False), (5, True)))
    ]
    whole = gather(parts, 3)
    assert whole.steps == {"kl": 9}
    assert not whole.converged
    assert gather(parts[::2], 2).converged
    for b, part in enumerate(parts):
        assert torch.equal(whole.labels[b], part.labels[0])
        assert torch.equal(whole.discrepancy[b], part.discrepancy[0])
        assert torch.equal(whole.kept[b], part.kept[0])
    assert whole.scores is None
