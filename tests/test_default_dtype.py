"""The core under another default type of torch: the same results, in the same types.

Some other library, or a line at the top of a script, may have called `torch.set_default_dtype`.
"""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image
from torch.testing import assert_close

import reference
from conftest import RANGE_TOLERANCE
from ovss_refine import Attention, Logits, Refiner, joint_bilateral_upsample
from ovss_refine.attention import affinity
from ovss_refine.images.convert import as_image_batch, as_image_tensor, as_rgb
from strategies import cases, random_attention
from test_refiner import MODES, assert_same_map

under_each_default = pytest.mark.usefixtures("default")
DTYPES = [torch.float64, torch.float16, torch.bfloat16]
PACKAGE = Path(__file__).parents[1] / "ovss_refine"
CORE = ["attention", "logits", "refiner", "result", "images/convert", "postprocess", "export"]
# What torch makes of the default type unless it is given one; of whole numbers, of none.
MAKERS = {"zeros", "ones", "empty", "full", "rand", "randn", "linspace", "eye", "tensor"}


def test_every_tensor_is_made_with_its_type():
    files = [PACKAGE / f"{name}.py" for name in CORE]
    files += [*(PACKAGE / "method").glob("*.py"), *(PACKAGE / "tensors").glob("*.py")]
    assert untyped("torch.zeros(3)\nx.new_zeros(3)\ntorch.ones(2, dtype=x.dtype)") == [1]
    assert {path.name: lines for path in files if (lines := untyped(path.read_text()))} == {}


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def default(request):
    """Another default type, for the length of a test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@under_each_default
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(mode.values()))
def test_the_refinement_equals_the_reference(mode):
    @settings(max_examples=3)
    @given(cases(**mode))
    def check(case):
        result = Refiner(**case.options, keep_scores=True)(
            *case.tensors(), prompt_index=case.prompt_index
        )
        assert result.discrepancy.dtype == result.scores.dtype == torch.float32
        expected = case.expected()
        np.testing.assert_array_equal(result.seeds.numpy(), expected["seeds"])
        if expected["kept"].sum() > 1 or mode.get("criterion") != "increment":
            for name in ("discrepancy", "scores"):
                truth = torch.from_numpy(expected[name])
                assert_same_map(getattr(result, name), truth, RANGE_TOLERANCE)

    check()


@pytest.mark.parametrize("mode", sorted({mode["mode"] for mode in MODES}))
@pytest.mark.parametrize("held", ["dense", "factors"])
def test_tensors_are_made_on_the_device_of_the_input(mode, held, rng):
    """Not on torch's default device; `meta` stands for one, and cannot give values back."""
    q, k = torch.from_numpy(rng.normal(size=(2, 2, 12, 5))).float()
    attention = Attention.from_factors(q, k, 1.0, (3, 4), form=False)
    if held == "dense":
        attention = Attention(next(attention.blocks())[1][0], (3, 4))
    options = {"pre_propagation": 1, "background": (0, 0.3), "keep_scores": True}
    inputs = (rng.normal(size=(4, 5, 6)), attention, rng.integers(0, 256, (9, 8, 3), np.uint8))
    found = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            found.append(Refiner(mode, **options)(*inputs, prompt_index=[0, 1, 1, 2]))
    assert torch.equal(found[0].scores, found[1].scores)


@under_each_default
@pytest.mark.parametrize("form", ["path", "PIL", "array", "float array", "tensor", "float tensor"])
def test_images_become_float32(form, tmp_path, rng):
    pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = {
        "path": tmp_path / "x.png",
        "PIL": Image.fromarray(pixels),
        "array": pixels,
        "float array": pixels / 255,
        "tensor": torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
        "float tensor": torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255)),
    }[form]
    wanted = torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255))
    assert_close(as_image_tensor(image, "image"), wanted)
    assert_close(as_image_batch([image, image], "images")[0], torch.stack([wanted, wanted]))
    np.testing.assert_array_equal(as_rgb(image, "image"), pixels)


@under_each_default
def test_attention(rng):
    """Heads averaged, rows of factors, affinities, products."""
    heads = random_attention(rng, 12, heads=3)
    dense = torch.from_numpy(heads.mean(0)).float()
    assert_close(Attention(torch.from_numpy(heads[None]).float(), (3, 4)).weights[0], dense)
    q, k = torch.from_numpy(rng.normal(size=(2, 2, 12, 5))).float()
    held = Attention.from_factors(q, k, 0.7, (3, 4))
    wanted = (0.7 * q @ k.mT).softmax(-1).mean(0)
    assert_close(next(held.blocks())[1][0], wanted)
    x = torch.from_numpy(rng.random((1, 2, 12))).float()
    assert_close(held.left_matmul(x), x @ wanted)
    assert_close(Attention(dense, (3, 4)).left_matmul(x), x @ dense)
    assert affinity(torch.from_numpy(rng.random((5, 3, 4))).half(), 0.1).weights.dtype == (
        torch.float32
    )


@under_each_default
@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES])
def test_upsampling_keeps_the_type_of_the_map(dtype, rng):
    low, image = rng.random((1, 2, 4, 5)), rng.random((1, 3, 17, 20))
    found = joint_bilateral_upsample(torch.from_numpy(low).to(dtype), torch.from_numpy(image))
    assert found.dtype == dtype
    wanted = reference.joint_bilateral_upsample(
        low[0], image[0], sigma_spatial=1.0, sigma_range=0.1, radius=2
    )
    tolerance = RANGE_TOLERANCE if dtype.itemsize >= 4 else 1e-2
    np.testing.assert_allclose(found[0].double().numpy(), wanted, atol=tolerance)


@under_each_default
def test_arrays_and_numbers(rng):
    """Whatever is converted keeps its own type."""
    logits = Logits(rng.normal(size=(3, 4, 4)).astype(np.float32), np.float64(2), [0, 1, 1])
    assert logits.values.dtype == torch.float32
    assert logits.prompt_index.dtype == torch.int64
    image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    found = Refiner(logit_scale=np.float32(3))(logits, random_attention(rng, 16), image)
    assert found.discrepancy.dtype == torch.float32


def untyped(code):
    """Return the lines that make a tensor of the default type."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in MAKERS
        and "dtype" not in {keyword.arg for keyword in node.keywords}
    ]
