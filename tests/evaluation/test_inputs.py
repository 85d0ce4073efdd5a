"""Sources by name or from files, and their digests."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.trees import CLASSES, write_arrays, write_tree
from ovss_refine.attention import affinity
from ovss_refine.cli import main
from ovss_refine.evaluation.inputs import (
    NpzAttention,
    PerImage,
    files_digest,
    weights_digest,
)
from ovss_refine.evaluation.request import Chosen
from ovss_refine.labels import parse_labels
from ovss_refine.sources import files as sources
from ovss_refine.sources.device import Placement

CPU = Placement(torch.device("cpu"))


def test_logits_from_files(tmp_path):
    write_arrays(tmp_path, ["b/x"], 5)
    source = Chosen(f"npz:{tmp_path}", {"scale": 2.0}).logits(parse_labels("unused"), CPU)
    assert isinstance(source, PerImage)
    read = source.for_image("b/x")
    assert (tuple(read.values.shape), read.scale) == ((5, 3, 4), 2.0)


def test_attention_from_features_and_from_maps(tmp_path, rng):
    write_arrays(tmp_path, ["x"], 5)
    source = Chosen(f"npz:{tmp_path}", {"temperature": 0.2}).attention(CPU)
    features = torch.from_numpy(np.load(tmp_path / "x.npz")["features"])
    made = source.for_image("x")
    torch.testing.assert_close(made.weights, affinity(features, 0.2).weights, rtol=0, atol=0)
    assert made.grid == (3, 4)
    weights = rng.random((6, 6))
    weights /= weights.sum(1, keepdims=True)
    np.savez(tmp_path / "y.npz", attention=weights, features_2=rng.random((3, 2, 2)))
    bare = source.for_image("y")  # its grid depends on the logits
    torch.testing.assert_close(bare, torch.from_numpy(weights), rtol=0, atol=0)
    assert NpzAttention(tmp_path, key="features_2").for_image("y").grid == (2, 2)
    np.savez(tmp_path / "z.npz", attention=weights, grid=(3, 2))
    assert source.for_image("z").grid == (3, 2)


def test_invalid_attention_files_are_refused(tmp_path, rng):
    with pytest.raises(
        FileNotFoundError, match=r"`folder` must be an existing folder; got `.*none`"
    ):
        NpzAttention(tmp_path / "none")
    with pytest.raises(ValueError, match="`temperature` must be"):
        NpzAttention(tmp_path, temperature=0)
    source = NpzAttention(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"x\.npz` must be the attention of an image"):
        source.for_image("x")
    np.savez(tmp_path / "x.npz", other=np.ones(3))
    with pytest.raises(ValueError, match="must have the array 'attention' or 'features'"):
        source.for_image("x")
    fair = np.full((6, 6), 1 / 6)
    for arrays, message in (
        ({"attention": 2 * fair}, "rows of the attention `weights` must sum to one"),
        ({"attention": fair[0, 0]}, r"`weights` must have shape"),
        ({"attention": fair, "grid": (2, 4)}, r"gh \* gw = N=6, one patch per token; got \(2, 4\)"),
        ({"attention": fair, "grid": (2.0, 3.0)}, r"two whole numbers \[gh, gw\]; got \[2\.0, 3"),
        ({"attention": fair, "grid": 6}, r"`grid` in `.*x\.npz` must be two whole numbers"),
    ):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            source.for_image("x")


def test_a_named_source_gets_classes_and_device(monkeypatch):
    given = {}

    def load(kind):
        return lambda name, **options: given.setdefault(kind, (name, options))

    monkeypatch.setattr("ovss_refine.registry.load_logits", load("logits"))
    monkeypatch.setattr("ovss_refine.registry.load_attention", load("attention"))
    gpu = Placement(torch.device("cuda", 1), "float16")
    labels = parse_labels("a, x: b/c")
    Chosen("sclip", {"stride": 56}).logits(labels, gpu)
    placed = {"device": "cuda:1", "dtype": "float16"}
    assert given == {"logits": ("sclip", {"classes": labels, **placed, "stride": 56})}
    Chosen("sd2", {"device": "meta"}).attention(gpu)
    assert given["attention"] == (
        "sd2",
        {"device": "meta", "dtype": "float16"},
    )  # the user's option wins
    given.clear()
    Chosen("sd2").attention(CPU)
    assert given["attention"] == ("sd2", {})  # where models start


def test_settings_have_the_absolute_path_of_the_folder(tmp_path, monkeypatch):
    (tmp_path / "arrays").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Chosen("npz:arrays", {"key": "logits"}).settings() == {
        "name": f"npz:{tmp_path.resolve()}/arrays",
        "option key": "logits",
    }
    assert Chosen("dino-b8").settings() == {"name": "dino-b8"}


def source(seed, buffer=0.0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[1].running_mean += buffer
    return SimpleNamespace(parts={"a": [SimpleNamespace(model=model)]}, name="x")


def test_the_digest_changes_with_the_weights():
    digest = weights_digest(source(0))
    assert digest == weights_digest(source(0))
    assert digest != weights_digest(source(1))
    assert digest != weights_digest(source(0, buffer=1e-6))
    half = source(0)
    half.parts["a"][0].model.half()
    assert weights_digest(half) != digest
    assert weights_digest(SimpleNamespace(text=torch.ones(2))) != weights_digest(
        SimpleNamespace(text=torch.zeros(2))
    )
    assert weights_digest(SimpleNamespace(name="x")) is None


def test_weights_of_a_source_that_refers_to_itself():
    one = source(0)
    one.parts["a"].append(one)
    assert weights_digest(one) == weights_digest(source(0))


def test_the_digest_changes_with_the_files(tmp_path):
    write_arrays(tmp_path, ["x", "y"], 3)
    paths = [tmp_path / "x.npz", tmp_path / "y.npz", tmp_path / "none.npz"]
    before = files_digest(paths)
    assert files_digest(paths) == before
    paths[1].write_bytes(paths[1].read_bytes() + b"x")
    assert files_digest(paths) != before


def test_other_threads_read_but_do_not_compute(tmp_path, monkeypatch):
    ids = write_tree(tmp_path, "voc21", 3)
    write_arrays(tmp_path / "arrays", ids, CLASSES["voc21"])
    threads = {"affinity": set(), "read_arrays": set()}

    def watch(name, original):
        def watched(*args, **options):
            threads[name].add(threading.current_thread())
            return original(*args, **options)

        monkeypatch.setattr(sources, name, watched)

    for name in threads:
        watch(name, getattr(sources, name))
    files = f"npz:{tmp_path / 'arrays'}"
    sources_and_out = ["--logits", files, "--attention", files, "--out", str(tmp_path / "out")]
    assert main(["evaluate", "--dataset", "voc21", "--root", str(tmp_path), *sources_and_out]) == 0
    assert threads["affinity"] == {threading.main_thread()}
    assert threads["read_arrays"]
    assert threading.main_thread() not in threads["read_arrays"]
