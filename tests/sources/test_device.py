"""Devices by name: what "auto" is, and what is refused."""

import pytest
import torch

from ovss_refine.sources.device import Placement, given_device, given_dtype, resolve_device

CPU = torch.device("cpu")


@pytest.mark.parametrize("asked", [None, "auto"])
@pytest.mark.parametrize(("available", "wanted"), [(True, "cuda"), (False, "cpu")])
def test_automatic_is_a_gpu_if_there_is_one(monkeypatch, asked, available, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert resolve_device(asked) == torch.device(wanted)


@pytest.mark.parametrize("asked", ["cpu", "meta", torch.device("cpu")])
def test_a_device_that_torch_has_is_taken(asked):
    assert resolve_device(asked) == torch.device(asked)


@pytest.mark.parametrize("asked", ["abacus", "", 1.5])
def test_what_is_no_device_is_refused(asked):
    says = rf"`device` must be 'auto' or one that torch can use; got '{asked}': \S"
    with pytest.raises(ValueError, match=says):
        resolve_device(asked)


@pytest.mark.parametrize(
    ("count", "asked", "found"),
    [
        (0, "cuda", "no GPU"),
        (0, "cuda:0", "no GPU"),
        (1, "cuda:1", "1 GPU"),
        (2, "cuda:3", "2 GPUs"),
    ],
)
def test_a_gpu_that_is_not_here(monkeypatch, count, asked, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    says = f"'auto' or one that torch can use; got '{asked}': torch finds {found}."
    with pytest.raises(ValueError, match=f"^`device` must be {says}$"):
        resolve_device(asked)


@pytest.mark.parametrize("asked", ["mps", "mps:1", "xpu", "hpu", "mtia", "vulkan", "privateuseone"])
def test_an_accelerator_that_is_not_here_is_one_sentence(asked):
    if asked in ("mps", "xpu") and getattr(torch, asked).is_available():
        pytest.skip("is here")
    with pytest.raises(ValueError, match=rf"got '{asked}': .*$") as caught:
        resolve_device(asked)
    assert len(str(caught.value)) < 250
    assert "aten::" not in str(caught.value)


def test_an_unsaid_device_of_a_model_stays_unsaid():
    assert given_device(None) is None
    assert given_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="`device` must be 'auto' or one that torch can use; got"):
        given_device("cdua")


def test_a_device_that_fails_is_refused(monkeypatch):
    """One that torch counts, and still cannot put a tensor on."""

    def fail(*_, **__):
        raise RuntimeError("CUDA error: out of memory\nand more")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(ValueError, match=r"got 'cuda:0': CUDA error: out of memory$"):
        resolve_device("cuda:0")


@pytest.mark.parametrize("device", [None, CPU, torch.device("cuda"), torch.device("meta")])
def test_a_named_dtype_does_not_depend_on_the_device(device):
    assert given_dtype(None, device) is None
    for name in ("float32", "bfloat16", "float16"):
        assert given_dtype(name, device) == getattr(torch, name)
    assert given_dtype(torch.float64, device) == torch.float64


@pytest.mark.parametrize(
    ("capabilities", "wanted"),
    [
        ({}, torch.float32),
        ({"avx2": True, "avx512_f": True, "amx_tile": True, "amx_bf16": False}, torch.float32),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
    ],
)
def test_an_automatic_dtype_is_the_fastest_of_the_device(monkeypatch, capabilities, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert given_dtype("auto", None) == given_dtype("auto", CPU) == wanted
    assert given_dtype("auto", torch.device("cuda", 1)) == torch.float16
    assert given_dtype("auto", torch.device("meta")) == torch.float32


def test_a_torch_that_cannot_tell_stays_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert given_dtype("auto", CPU) == torch.float32


@pytest.mark.parametrize("asked", ["bf16", "", "int8", torch.int32, torch.float8_e5m2, 16])
def test_what_is_no_dtype_of_a_model_is_refused(asked):
    with pytest.raises(ValueError, match=r"^`dtype` must be None, a floating.*'float16'\]; got "):
        given_dtype(asked, CPU)


def test_a_source_is_given_the_options_that_it_has():
    place = Placement(torch.device("cuda", 1), "auto")
    both = {"device": "cuda:1", "dtype": "auto"}
    assert place.options(lambda **options: None) == both
    assert place.options(lambda dtype, device=None: None) == both
    assert place.options(lambda device: None) == {"device": "cuda:1"}
    assert place.options(lambda *, dtype=None: None) == {"dtype": "auto"}
    assert place.options(lambda: None) == {}
    assert Placement(CPU).options(lambda **options: None) == {}  # where models start
