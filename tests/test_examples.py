"""The built-in photographs and their arrays."""

import numpy as np
import pytest
import torch

from ovss_refine import Attention, Refiner
from ovss_refine.examples import ARRAYS, EXAMPLES, example_labels, list_examples, read_example

NAMES = ["astronaut", "coffee", "hopper", "raccoon"]


def test_the_photographs_are_listed_and_small():
    assert list_examples() == NAMES
    files = [path for path in EXAMPLES.rglob("*.*") if path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 2_500_000
    notes = (EXAMPLES / "README.md").read_text()
    assert all(f"`{path.name}`" in notes for path in EXAMPLES.glob("*.[jp][pn]g"))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_logits_and_attention_of_its_prompts(name):
    example, labels = read_example(name), example_labels(name)
    with np.load(ARRAYS / f"{name}.npz") as file:
        logits, codes = file["logits"], file["codes"].astype(np.float64)
    assert example.logits.shape == (len(labels.all_prompts), 37, 37)
    assert np.array_equal(example.logits.numpy(), logits)
    assert example.prompt_index.tolist() == list(labels.prompt_index)
    assert len(labels) == example.M
    assert isinstance(example.attention, Attention)
    assert example.attention.grid == (37, 37)
    weights = codes**2 / (codes**2).sum(axis=1, keepdims=True)
    assert np.allclose(example.attention.weights.numpy(), weights, rtol=1e-5)
    assert max(example.image.shape) == 512


def test_an_example_is_refined_as_its_parts_are():
    example = read_example("coffee")
    parts = (example.logits, example.attention, example.image)
    by_parts = Refiner(mode="kl")(*parts, prompt_index=example.prompt_index)
    assert torch.equal(example.refine(Refiner(mode="kl").config).labels, by_parts.labels)


@pytest.mark.parametrize("name", ["chelsea", "Coffee", "../astronaut", ""])
def test_another_name_is_refused(name):
    with pytest.raises(ValueError, match=r"`name` must be .*'astronaut'.*got"):
        read_example(name)
    with pytest.raises(ValueError, match=r"`name` must be .*'astronaut'.*got"):
        example_labels(name)
