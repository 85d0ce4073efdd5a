"""Tensors of every kind, as every argument: refused by name, or as good as float32."""

import warnings

import numpy as np
import pytest
import torch

from ovss_refine import Attention, Logits, Refiner, joint_bilateral_upsample
from ovss_refine.attention import affinity

GENERATOR = torch.Generator().manual_seed(0)
GIVEN = {
    "logits": torch.randn(1, 3, 4, 4, generator=GENERATOR) * 4,
    "attn": torch.rand(1, 16, 16, generator=GENERATOR).softmax(-1),
    "image": torch.rand(1, 3, 8, 8, generator=GENERATOR),
}


def sparse_rows(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the layout a beta
        return x.to_sparse_csr()


def nested(layout):
    def make(x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls them a prototype
            return torch.nested.nested_tensor(list(x), layout=layout)

    return make


def quantised(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves them to another package
        return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


KINDS = {
    "COO": (torch.Tensor.to_sparse, "a dense tensor; got torch.sparse_coo. Pass `"),
    "CSR": (sparse_rows, "a dense tensor; got torch.sparse_csr. Pass `"),
    "nested": (nested(torch.strided), "a dense tensor; got a nested tensor"),
    "jagged": (nested(torch.jagged), "a dense tensor; got a nested tensor"),
    "quantised": (quantised, "a dense tensor; got torch.qint8. Pass `"),
    "meta": (lambda x: x.to("meta"), "a dense tensor; got one on the device `meta`"),
    "fp8": (lambda x: x.to(torch.float8_e4m3fn), "float.*; got torch.float8_e4m3fn. Pass `"),
    "fp8 e5m2": (lambda x: x.to(torch.float8_e5m2), "float.*; got torch.float8_e5m2. Pass `"),
    "complex": (lambda x: x.to(torch.complex64), "float.*; got torch.complex64"),
    "int64": (torch.Tensor.long, "float.*; got torch.int64"),
    "bool": (torch.Tensor.bool, "float.*; got torch.bool"),
    "masked array": (lambda x: np.ma.masked_array(x.numpy()), "got a masked array"),
    "objects": (lambda x: x.numpy().astype(object), "array.*; got object"),
    "strings": (lambda x: x.numpy().astype(str), "array.*; got <U"),
    "complex array": (lambda x: x.numpy().astype(complex), "; got .*complex"),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", GIVEN)
def test_as_an_argument_of_the_refinement(name, several, kind):
    make, message = KINDS[kind]
    given = GIVEN if several else {key: x[0] for key, x in GIVEN.items()}
    wrong = given[name]
    if name == "image":
        if isinstance(make(wrong[..., :1]), np.ndarray):
            wrong = wrong.movedim(-3, -1)
        elif kind in ("CSR", "nested", "jagged") and not several:
            pytest.skip("the same check as for a batch")
    with pytest.raises(TypeError, match=f"^`{name}` must be .*{message}"):
        Refiner()(**{**given, name: make(wrong)})


@each_kind
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("values", Logits),
        ("weights", lambda x: Attention(x[:, 0] if isinstance(x, np.ndarray) else x, (2, 2))),
    ],
)
def test_as_a_value(name, call, kind):
    make, message = KINDS[kind]
    with pytest.raises(TypeError, match=f"^`{name}` must be .*{message}"):
        call(make(torch.rand(2, 1, 4, 4)))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.endswith(("array", "s"))])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("low", lambda x: joint_bilateral_upsample(x, torch.rand(2, 3, 8, 8))),
        ("image", lambda x: joint_bilateral_upsample(torch.rand(2, 1, 4, 4), x)),
        ("features", lambda x: affinity(x, 0.1)),
        ("q", lambda x: Attention.from_factors(x, torch.rand(2, 3, 4, 4), 1.0, (2, 2))),
        ("k", lambda x: Attention.from_factors(torch.rand(2, 3, 4, 4), x, 1.0, (2, 2))),
    ],
)
def test_as_an_argument_of_the_parts(name, call, kind):
    make, message = KINDS[kind]
    with pytest.raises(TypeError, match=f"^`{name}` must be .*{message}"):
        call(make(torch.rand(2, 3, 4, 4)))


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble, np.float16])
@pytest.mark.parametrize("name", GIVEN)
def test_floats_of_other_machines(name, dtype):
    array = GIVEN[name].movedim(1, -1).numpy() if name == "image" else GIVEN[name].numpy()
    found = Refiner()(**{**GIVEN, name: array.astype(dtype)})
    assert torch.equal(found.labels, Refiner()(**GIVEN).labels)


@pytest.mark.parametrize(
    ("index", "got"),
    [
        (["a", "b", "c"], "got \\['a', 'b', 'c'\\]"),
        ([0, 1, 10**30], "got \\[0, 1, 1000"),
        ([0, [1], 2], "got \\[0, \\[1\\], 2\\]"),
        ([0, None, 1], "got \\[0, None, 1\\]"),
        ([0j, 1j, 2j], "got torch.complex"),
        (np.array([0.0, 1, 2]), "got torch.float64"),
    ],
)
def test_prompts_that_are_not_whole_numbers(index, got):
    with pytest.raises(TypeError, match=f"^`prompt_index` must hold whole numbers; {got}"):
        Refiner()(**GIVEN, prompt_index=index)
    with pytest.raises(TypeError, match=f"^`prompt_index` must hold whole numbers; {got}"):
        Logits(GIVEN["logits"], prompt_index=index)


@pytest.mark.parametrize("index", [[0, 1, 259], [0, 1, 10**9], np.array([0, 1, 2**62])])
def test_classes_are_bounded_by_the_prompts(index):
    message = rf"^`prompt_index` must be at most 258, for K=3 prompts; got {index[2]}\."
    with pytest.raises(ValueError, match=message):
        Refiner()(**GIVEN, prompt_index=index)
    with pytest.raises(ValueError, match=message):
        Logits(GIVEN["logits"], prompt_index=index)
    assert Refiner()(**GIVEN, prompt_index=[1, 2, 3]).kept.shape == (1, 4)
    assert Refiner()(**GIVEN, prompt_index=[1, 2, 258]).kept.shape == (1, 259)
