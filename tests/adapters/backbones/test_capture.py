"""Sources take images in every form, and answer with a batch axis."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ovss_refine_adapters.attention.affinity import AffinityAttention
from ovss_refine_adapters.backbones.capture import check_images
from ovss_refine_adapters.logits.own import CallableLogits

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 12, 20, 3), dtype=np.uint8)
BYTES = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
FLOATS = (BYTES / 255).contiguous()
FORMS = {
    "float tensor": FLOATS,
    "float64 tensor": BYTES.double() / 255,
    "uint8 tensor": BYTES,
    "array": PIXELS,
    "float array": PIXELS / 255,
    "PIL images": [Image.fromarray(pixels) for pixels in PIXELS],
    "arrays": list(PIXELS),
    "tensors": tuple(FLOATS),
}


def pooled(images):
    assert images.dtype == torch.float32
    return F.adaptive_avg_pool2d(images, (3, 5))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_batch(form):
    torch.testing.assert_close(check_images(FORMS[form]), FLOATS)
    logits = CallableLogits(pooled).logits(FORMS[form])
    torch.testing.assert_close(logits.values, pooled(FLOATS))
    attention = AffinityAttention(pooled).attention(FORMS[form])
    torch.testing.assert_close(
        attention.weights, AffinityAttention(pooled).attention(FLOATS).weights
    )


def test_paths(tmp_path):
    paths = [tmp_path / f"{b}.png" for b in range(2)]
    for path, pixels in zip(paths, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    assert torch.equal(check_images(paths), FLOATS)


@pytest.mark.parametrize("image", [FLOATS[0], PIXELS[0], Image.fromarray(PIXELS[0])])
def test_one_image_is_refused_outside_a_batch(image):
    message = (
        r"`images` must be a batch or a list of images; got one image, 12 x 20\. Pass `\[images\]`"
    )
    with pytest.raises(ValueError, match=message):
        check_images(image)
    assert check_images([image]).shape == (1, 3, 12, 20)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (BYTES.int(), TypeError, "must be uint8 or floating-point; got torch.int32"),
        (BYTES.float(), ValueError, r"in \[0, 1\] .* divide by 255"),
        (FLOATS[:, :2], ValueError, r"must be a tensor \[B, 3, H, W\]; got \[2, 2, 12, 20\]"),
        ([PIXELS[0], PIXELS[1, 1:]], ValueError, "one size H x W; got 12 x 20, 11 x 20"),
        ([], ValueError, "at least one image"),
    ],
)
def test_what_is_refused(images, error, message):
    with pytest.raises(error, match=f"`images` .*{message}"):
        check_images(images)
