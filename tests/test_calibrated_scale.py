"""`logit_scale="auto"`, end to end: no factor on the logits and no number of prompts matters."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovss_refine import Logits, RefineConfig, Refiner, Segmenter, refine
from ovss_refine.attention import affinity

GRID, SIZE = (14, 18), (56, 72)
FACTORS = (0.3, 0.7, 3.0)


def smooth(seed, channels, size=GRID, coarse=(4, 5)):
    """Random maps [channels, *size] without noise from patch to patch."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(1, channels, *coarse, generator=generator)
    return F.interpolate(maps, size, mode="bicubic")[0]


@pytest.fixture
def problem():
    """Cosines of 6 prompts, attention and image of regions that have nothing to do with pixels."""
    attention = affinity(smooth(1, 8)[None], 0.2)
    return 0.03 * smooth(0, 6) + 0.2, attention[0], smooth(2, 3, SIZE).sigmoid()


def difference(one, other):
    return float((one.labels != other.labels).float().mean())


@pytest.mark.parametrize("mode", ["maximum_velocity", "optimal_path", "fusion", "kl", "anchored"])
def test_a_factor_on_the_cosines_changes_no_label(problem, mode):
    cosines, *rest = problem
    auto = Refiner(mode, logit_scale="auto")
    wanted = auto(cosines, *rest)
    assert len(wanted.labels.unique()) > 2
    for factor in FACTORS:
        assert difference(auto(factor * cosines, *rest), wanted) < 0.005
        assert difference(auto(Logits(cosines, scale=factor), *rest), wanted) == 0
    # Which a fixed scale cannot say: the confidences decide who is kept, and where.
    fixed = Refiner.paper(mode, logit_scale=40.0)
    assert (
        max(difference(fixed(f * cosines, *rest), fixed(cosines, *rest)) for f in FACTORS) > 0.005
    )


def test_every_image_of_a_batch_has_a_scale_of_its_own(problem):
    cosines, attention, image = problem
    other = 0.002 * smooth(5, 6)
    images, config = torch.stack([image, image]), RefineConfig(logit_scale="auto")
    both = refine(
        torch.stack([cosines, other]), type(attention).stack([attention] * 2), images, config
    )
    for found, logits in zip((both[0], both[1]), (cosines, other), strict=True):
        alone = refine(logits, attention, image, config)
        assert torch.equal(found.kept, alone.kept)
        assert difference(found, alone) < 0.005


def test_many_prompts_of_one_class_do_not_take_the_image():
    """Of 130 prompts, 109 are the background's; summed, they win everywhere at a low scale."""
    cosines = 0.04 * smooth(3, 130, coarse=(7, 9))
    middle = torch.zeros(GRID, dtype=torch.bool)
    middle[3:11, 4:14] = True
    cosines[120, middle] += 0.15
    index = [0] * 109 + list(range(1, 22))
    given = 0.1 * cosines + 0.2, affinity(middle[None, None].float() + 0.2, 0.3)[0]
    image = F.interpolate(middle[None, None].float(), SIZE).expand(1, 3, *SIZE)[0]
    truth = image[0] > 0.5
    for factor in (1.0, *FACTORS):
        result = Refiner(logit_scale="auto")(factor * given[0], given[1], image, prompt_index=index)
        found = result.labels == 12
        assert (found & truth).sum() > 0.9 * (found | truth).sum()
    low = Refiner(logit_scale=20.0)(given[0], given[1], image, prompt_index=index)
    assert (low.labels == 0).all()


def test_the_segmenter_takes_it(problem):
    cosines, attention, image = problem

    class Cosines:
        factor = 1.0

        def logits(self, images):
            return Logits(self.factor * cosines[None], names=tuple("abcdef"))

    class Held:
        def attention(self, images):
            return type(attention).stack([attention])

    pixels = image.permute(1, 2, 0).numpy().astype(np.float32)
    source, found = Cosines(), []
    for factor in (1.0, *FACTORS):
        source.factor = factor
        segmenter = Segmenter(source, Held(), device="cpu", logit_scale="auto")
        found.append(segmenter(pixels, None))
        assert difference(found[-1], found[0]) < 0.005
    wanted = Refiner(logit_scale="auto")(cosines, attention, image)
    assert difference(found[0], wanted) < 0.005  # pixels are rounded to 8 bits
