"""Variants: rows of an evaluation besides the usual ones."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from evaluation.trees import write_arrays, write_tree
from ovss_refine import Attention, Logits, RefineConfig, refine
from ovss_refine.evaluation.dataset import load_dataset
from ovss_refine.evaluation.request import Chosen, EvaluateRequest
from ovss_refine.evaluation.rows import Variant
from ovss_refine.evaluation.run import run_evaluate
from ovss_refine.upsamplers.bilinear import bilinear_upsample


def problem(B=2, K=5, grid=(4, 6), size=(33, 50)):
    generator = torch.Generator().manual_seed(0)
    N = grid[0] * grid[1]
    values = 4 * torch.rand(B, K, *grid, generator=generator)
    for b in range(B):
        values[b, [b, 2]] -= 9  # two classes that win nowhere, one of them in no image
    logits = Logits(values)
    attention = Attention(torch.rand(B, N, N, generator=generator).softmax(-1), grid)
    return logits, attention, torch.rand(B, 3, *size, generator=generator)


def test_equals_the_refinement():
    config = RefineConfig(mode="optimal_path")
    given = problem()
    assert torch.equal(Variant(config=config).label(*given), refine(*given, config).labels)


@pytest.mark.parametrize("mode", ["kl", "maximum_velocity"])
def test_bilinear_upsamples_the_discrepancies(mode):
    config = RefineConfig(mode=mode)
    logits, attention, images = problem()
    bilinear = replace(config, upsampler="bilinear")
    got = Variant(config=bilinear).label(logits, attention, images)
    result = refine(logits, attention, images, config)
    for b in range(2):
        best = torch.full(images.shape[2:], -torch.inf)
        label = torch.zeros(images.shape[2:], dtype=torch.long)
        for c in result.kept[b].nonzero()[:, 0].tolist():
            low = result.discrepancy[b, c][None, None]
            large = F.interpolate(low, images.shape[2:], mode="bilinear", align_corners=False)
            better = large[0, 0] > best
            best = torch.where(better, large[0, 0], best)
            label[better] = c
        assert (got[b] != label).float().mean() < 0.005  # ties by rounding
    assert not torch.equal(got, result.labels)
    assert not result.kept.all()  # so that a rejected class could have been chosen


def test_variants_are_rows_of_an_evaluation(tmp_path):
    ids = write_tree(tmp_path, "voc21", count=3)
    source = Chosen(f"npz:{write_arrays(tmp_path / 'arrays', ids, 21)}")

    def found(out, variants, **config):
        return run_evaluate(
            EvaluateRequest(
                dataset=load_dataset("voc21"),
                root=tmp_path,
                logits=source,
                attention=source,
                config=RefineConfig(vote=0, **config),  # else little is left of random logits
                rows=("baseline", "refined"),
                variants={name: Variant(config=one) for name, one in variants.items()},
                out=tmp_path / out,
                device="cpu",
            )
        ).rows

    changes = {"o": {"mode": "optimal_path"}, "tau": {"tau": 0.8}}
    variants = {name: RefineConfig(vote=0, **config) for name, config in changes.items()}
    rows = found("variants", variants)
    assert list(rows) == ["baseline", "refined", "o", "tau"]
    for name, config in {**changes, "refined": {}}.items():
        assert rows[name]["iou"] == found(name, {}, **config)["refined"]["iou"]
    assert len({row["miou"] for row in rows.values()}) == 4
    with pytest.raises(ValueError, match=r"variant tau was .*, is absent"):
        found("variants", {"o": variants["o"]})
    with pytest.raises(
        ValueError, match=r"`variants` must not have the names of rows; got \['refined'\]"
    ):
        found("taken", {"refined": RefineConfig()})


class Weighted(torch.nn.Module):
    """An upsampler with a weight."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, low, image):
        return bilinear_upsample(self.weight * low, image)


def test_an_upsampler_of_the_user_s_is_part_of_the_settings(tmp_path):
    ids = write_tree(tmp_path, "voc21", count=2)
    source = Chosen(f"npz:{write_arrays(tmp_path / 'arrays', ids, 21)}")
    plain, negated = (
        lambda low, image: bilinear_upsample(low, image),
        lambda low, image: bilinear_upsample(-low, image),
    )

    def found(out, upsampler):
        request = EvaluateRequest(
            dataset=load_dataset("voc21"),
            root=tmp_path,
            logits=source,
            attention=source,
            rows=("refined",),
            variants={"own": Variant(config=RefineConfig(vote=0, upsampler=upsampler))},
            config=RefineConfig(vote=0, upsampler=upsampler),
            out=tmp_path / out,
            device="cpu",
        )
        return run_evaluate(request).rows

    rows = found("function", plain)
    assert rows["own"]["iou"] == rows["refined"]["iou"] == found("name", "bilinear")["own"]["iou"]
    assert found("function", plain) == rows  # finds its results
    with pytest.raises(ValueError, match="refinement upsampler code was"):
        found("function", negated)
    settings = json.loads((tmp_path / "function" / "manifest.json").read_text())["settings"]
    assert settings["refinement upsampler"].startswith(f"{__name__}:test_an_upsampler")
    found("model", Weighted(1.0))
    found("model", Weighted(1.0))
    with pytest.raises(ValueError, match="refinement upsampler weights was"):
        found("model", Weighted(2.0))
