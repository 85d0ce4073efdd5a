"""Devices by name: what "auto" is, and what is refused."""

import pytest
import torch

from ovss_refine.sources.device import given_device, resolve_device


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
