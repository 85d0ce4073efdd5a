"""Logits with their axes in another order: refused by name, with a line that puts them right."""

import re

import numpy as np
import pytest
import torch

from ovss_refine import Attention, Logits, Refiner
from ovss_refine.tensors.layout import find_grid

LAST = [
    # shape [h, w, K], image (H, W), grid of the attention; None: a bare map of h * w patches
    ((14, 14, 5), (480, 640), None),
    ((14, 14, 3), (64, 64), None),
    ((16, 16, 4), (64, 64), (8, 8)),  # N = 64 = 16 * 4
    ((28, 28, 7), (64, 64), (14, 14)),  # N = 196 = 28 * 7
    ((48, 64, 21), (48, 64), (6, 8)),  # every pixel
    ((14, 20, 14), (140, 200), None),  # h = K
    ((14, 16, 14), (140, 160), None),
    ((7, 7, 3), (64, 64), None),
    ((8, 12, 21), (64, 96), (8, 12)),  # not far from the image's aspect, but not in it
]


def inputs(shape, size, grid, several=False):
    """Logits of a shape, attention over a grid and an image, with a batch axis or without."""
    lead = (shape[0],) if several else ()
    N = grid[0] * grid[1]
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 4
    return logits, torch.full((*lead, N, N), 1 / N), torch.full((*lead, 3, *size), 0.5)


def advice_of(call):
    """Return the code that the refusal of a call tells people to write."""
    with pytest.raises(ValueError, match=r"^`(logits|values)` must have shape") as said:
        call()
    return re.search(r"Pass `([^`]*)`", str(said.value))[1]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("shape", "size", "grid"), LAST)
def test_prompts_in_the_last_axis(shape, size, grid, several, as_array, named):
    grid_said, grid = named and (grid or shape[:2]), grid or shape[:2]
    shape = (2, *shape) if several else shape
    logits, attn, image = inputs(shape, size, grid, several)
    attn = Attention(attn, grid) if grid_said else attn
    given = logits.numpy() if as_array else logits
    advice = advice_of(lambda: Refiner()(given, attn, image))
    assert advice == ("logits.permute(0, 3, 1, 2)" if several else "logits.permute(2, 0, 1)")
    if not grid_said and grid != shape[-3:-1]:
        attn = Attention(attn, grid)
    right = eval(advice, {"logits": logits})
    assert Refiner()(right, attn, image).kept.shape[-1] == shape[-1]


@pytest.mark.parametrize(("shape", "size"), [((4, 5, 9), (40, 50)), ((4, 4, 2), (64, 64))])
def test_a_bare_map_tells_on_small_grids_too(shape, size):
    given = inputs(shape, size, shape[:2])
    assert advice_of(lambda: Refiner()(*given)) == "logits.permute(2, 0, 1)"
    tokens = given[0].flatten(0, 1)
    assert advice_of(lambda: Refiner()(tokens[None], *given[1:])).startswith(
        "logits[0].mT.reshape("
    )


@pytest.mark.parametrize("image_axis", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("lead", [(), (1,), (2,)])
@pytest.mark.parametrize("K", [3, 171])
def test_patches_in_a_row(K, lead, transposed, image_axis):
    """[N, K] and [K, N], with a batch axis and without, are the logits' fault, not the image's."""
    B, several = (lead or (1,))[0], bool(lead) and (image_axis or lead == (2,))
    logits = torch.randn(*lead, 196, K) * 4
    logits = logits.mT if transposed else logits
    _, attn, image = inputs((B, K, 14, 14), (48, 64), (14, 14), several)
    advice = advice_of(lambda: Refiner()(logits, attn, image))
    right = eval(advice, {"logits": logits, "gh": 14, "gw": 14})
    lead = lead if several else ()
    assert right.shape == (*lead, K, 14, 14)
    assert torch.equal(right.flatten(-2).view_as(rows := logits if transposed else logits.mT), rows)
    assert Refiner()(right, attn, image).kept.shape == (*lead, K)
    # A grid that is said is filled in; another model's attention tells less, and still enough.
    advice = advice_of(lambda: Refiner()(logits, Attention(attn, (14, 14)), image))
    assert f"{K}, 14, 14" in advice
    if K == 3:
        other = inputs((B, K, 14, 14), (48, 64), (8, 8), several)[1]
        advice_of(lambda: Refiner()(logits, other, image))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_what_counts_the_prompts_decides(batch):
    """Where names or prompts fit the last axis alone, without an image to ask."""
    values = torch.zeros(*batch, 9, 8, 3)
    wanted = "values.permute(0, 3, 1, 2)" if batch else "values.permute(2, 0, 1)"
    assert advice_of(lambda: Logits(values, names=["a", "b", "c"])) == wanted
    assert advice_of(lambda: Logits(values, prompt_index=[0, 1, 1])) == wanted
    logits, attn, image = inputs((*batch, 9, 8, 3), (8, 3), (8, 3), bool(batch))
    call = Refiner()
    with pytest.raises(ValueError, match=r"^`logits` must .* as many as `prompt_index`"):
        call(logits, attn, image, prompt_index=np.array([0, 1, 1]))
    square = torch.zeros(*batch, 3, 9, 3)  # fits both ways
    assert Logits(square, names=["a", "b", "c"]).names == ("a", "b", "c")


@pytest.mark.parametrize("shape", [(14, 16, 16), (14, 16, 19), (16, 14, 20)])
@pytest.mark.parametrize("several", [False, True])
def test_the_tokens_of_a_bare_map_tell(shape, several):
    """In the aspect of the image, but the attention is over the first two axes."""
    h, w, _ = shape
    lead = (2,) if several else ()
    given = inputs((*lead, *shape), (16 * h, 16 * w), (h, w), several)
    wanted = "logits.permute(0, 3, 1, 2)" if several else "logits.permute(2, 0, 1)"
    assert advice_of(lambda: Refiner()(*given)) == wanted


@pytest.mark.parametrize("logits_size", [(20, 20), (28, 32)])
@pytest.mark.parametrize(
    ("grid", "extra"), [((14, 16), 1), ((22, 38), 5), ((20, 31), 5), ((18, 32), 0), ((16, 14), 1)]
)
def test_tokens_beside_patches_that_make_a_square(grid, extra, logits_size):
    """With logits on another grid, square or not: the image's shape tells."""
    N, size = grid[0] * grid[1] + extra, (16 * grid[0], 16 * grid[1])
    with pytest.raises(ValueError, match=rf"^`attn` must .* got N={N}.* Pass `Attention"):
        find_grid(N, logits_size, size)


@pytest.mark.parametrize("side", [14, 16, 24, 32, 37, 64])
@pytest.mark.parametrize("size", [(480, 640), (375, 500), (500, 333), (224, 224), (224, 226)])
def test_squares_beside_square_logits(side, size):
    """Of models that squash the image."""
    assert find_grid(side * side, (20, 20), size) == (side, side)


RIGHT = [
    # shape [K, h, w], image (H, W), grid of the attention
    ((14, 14, 14), (64, 64), (14, 14)),
    ((10, 14, 14), (480, 640), (30, 40)),  # squashed to a square
    ((21, 14, 14), (256, 640), (14, 14)),
    ((3, 256, 256), (256, 256), (16, 16)),  # N = 256 = h
    ((1, 256, 192), (256, 192), (16, 16)),
    ((24, 32, 48), (480, 640), (30, 40)),  # squashed by an eighth
    ((14, 20, 14), (200, 140), (20, 14)),
    ((5, 1, 4), (4, 8), (1, 4)),
    ((20, 33, 9), (64, 64), (33, 9)),  # a grid that is said is believed
]


@pytest.mark.parametrize(("shape", "size", "grid"), RIGHT)
def test_what_fits_as_it_is_is_taken(shape, size, grid):
    logits, attn, image = inputs(shape, size, grid)
    result = Refiner()(logits, Attention(attn, grid), image)
    assert result.kept.shape == (shape[0],)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("shape", "grid"), [((40, 24, 1), (24, 1)), ((40, 24, 1), (8, 8)), ((40, 24, 9), (24, 9))]
)
def test_what_nothing_speaks_against_is_taken(shape, grid, several):
    """A strip of patches, and a bare map over as many tokens as the logits have patches."""
    shape = (2, *shape) if several else shape
    logits, attn, image = inputs(shape, (400, 240), grid, several)
    result = Refiner()(logits, attn if grid == shape[-2:] else Attention(attn, grid), image)
    assert result.kept.shape[-1] == 40


@pytest.mark.parametrize("several", [False, True])
def test_who_counts_the_prompts_is_believed(several):
    """Where the image's aspect alone speaks for prompts in the last axis."""
    shape = (2, 40, 24, 9) if several else (40, 24, 9)
    logits, attn, image = inputs(shape, (400, 240), (16, 16), several)
    attn = Attention(attn, (16, 16))
    with pytest.raises(ValueError, match=r"`prompt_index=range\(40\)`\.$") as said:
        Refiner()(logits, attn, image)
    assert "the image's aspect" in str(said.value)
    prompts, names = range(40), [f"class {n}" for n in range(40)]
    expected = Refiner()(logits, attn, image, prompt_index=prompts).labels
    for named in (Logits(logits, prompt_index=prompts), Logits(logits, names=names)):
        assert torch.equal(Refiner()(named, attn, image).labels, expected)


def test_a_last_axis_of_one_on_the_grid_of_the_attention_is_a_prompt():
    logits, attn, image = inputs((40, 24, 1), (400, 240), (40, 24))
    assert advice_of(lambda: Refiner()(logits, Attention(attn, (40, 24)), image)).endswith("1)")


@pytest.mark.parametrize("shape", [(), (196,), (14, 14), (1, 1, 3, 14, 14), (3, 0, 14), (3, 14, 0)])
def test_other_shapes_are_refused_as_they_were(shape):
    _, attn, image = inputs((3, 14, 14), (64, 64), (14, 14))
    with pytest.raises(ValueError, match=r"^`logits` must have shape \[(B, )?K, h, w\]"):
        Refiner()(torch.zeros(shape), attn, image)


def test_a_source_of_attention_tells_its_grid():
    class Source:
        def attention(self, images):
            return Attention(torch.full((len(images), 196, 196), 1 / 196), (14, 14))

    logits, _, image = inputs((14, 14, 3), (64, 64), (14, 14))
    assert advice_of(lambda: Refiner()(logits, Source(), image)) == "logits.permute(2, 0, 1)"


def test_a_square_must_agree_with_the_image_within_a_patch():
    """16 x 14 patches and a class token are 15 x 15, of an image that is longer than wide."""
    with pytest.raises(ValueError, match=r"`attn` must have N = h \* w = 400 tokens"):
        find_grid(225, (20, 20), (250, 225))
    assert find_grid(225, (20, 20), (230, 225)) == (15, 15)
