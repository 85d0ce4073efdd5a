"""Logits from a function and from files."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch.testing import assert_close

from adapters.tiny_clip import images
from ovss_refine import Logits, LogitsSource, Refiner, load_logits
from ovss_refine.postprocess import semantic_logits
from ovss_refine.testing.logits import check_logits_source
from ovss_refine_adapters.logits.own import CallableLogits, NpzLogits

VOC = Path(__file__).parents[4] / "shared" / "data" / "voc_real" / "arrays"


def colours(batch):
    """Three prompts: how red, green, blue a cell is."""
    return torch.nn.functional.adaptive_avg_pool2d(
        batch.float(), [max(1, n // 8) for n in batch.shape[2:]]
    )


def test_callable_conforms():
    check_logits_source(lambda: CallableLogits(colours, ["red/rose", "blue"], scale=40.0))


def test_module_in_a_callable_is_left_unchanged():
    net = torch.nn.Conv2d(3, 4, 8, stride=8).eval()

    def fn(batch):
        return net(batch.float())

    check_logits_source(lambda: load_logits("callable", fn=fn))


def test_callable():
    source = CallableLogits(colours, ["red/rose", "blue"], scale=40.0)
    out = source.logits(images(2, 48, 80))
    assert out.scale == 40.0
    assert out.names == ("red", "blue")
    assert out.prompt_index.tolist() == [0, 0, 1]
    assert_close(out.values, colours(images(2, 48, 80)))
    assert CallableLogits(colours).logits(images(1)).names == ()


def test_callable_may_return_arrays_outputs_and_logits():
    batch = images(2, 48, 80)
    expected = colours(batch)
    outputs = SimpleNamespace(logits=expected)
    made = Logits(expected, 40.0, prompt_index=[0, 0, 1], names=["red", "blue"])
    for fn in (lambda x: colours(x).numpy(), lambda x: outputs, lambda x: made):
        assert_close(CallableLogits(fn).logits(batch).values, expected)
    out = CallableLogits(lambda x: made).logits(batch)
    assert (out.scale, out.names, out.prompt_index.tolist()) == (40.0, ("red", "blue"), [0, 0, 1])
    queries = SimpleNamespace(  # of MaskFormer
        class_queries_logits=torch.randn(2, 4, 4), masks_queries_logits=torch.randn(2, 4, 6, 10)
    )
    got = CallableLogits(lambda x: queries).logits(batch).values
    assert_close(got, semantic_logits(queries))
    for more in ({"classes": ["a/b", "c"]}, {"scale": 2.0}):
        with pytest.raises(ValueError, match=r"got Logits\. They have their own classes"):
            CallableLogits(lambda x: made, **more).logits(batch)
    with pytest.raises(ValueError, match=r"\[B=1, K, h, w\] logits; got \(2, 3, 6, 10\)"):
        CallableLogits(lambda x: made).logits(batch[:1])


def test_callable_without_gradient():
    net = torch.nn.Conv2d(3, 2, 8)
    assert not CallableLogits(net).logits(images(1)).values.requires_grad


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda x: x[0], ValueError, r"`fn` must return \[B=2, K, h, w\] logits; got \(3, 48, 80"),
        (lambda x: x[:1], ValueError, r"`fn` must return \[B=2, K, h, w\] logits; got \(1, 3, 48"),
        (lambda x: {"out": x}, ValueError, r"`fn` must return .*; got dict"),
        (lambda x: x[:, :2], ValueError, r"`fn` must have K=3 maps, one for each.*; got 2"),
        (lambda x: x.long(), TypeError, r"`values` must be a floating-point tensor"),
        (lambda x: x / 0, ValueError, r"`values` must be finite"),
    ],
)
def test_bad_functions(fn, error, message):
    with pytest.raises(error, match=message):
        CallableLogits(fn, ["a/b", "c"]).logits(images(2, 48, 80))


def recipe(first_line):
    """The block of Python in the guide that has `first_line`."""
    text = (Path(__file__).parents[3] / "docs" / "logits.md").read_text()
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    (block,) = [b for b in blocks if first_line in b]
    return block


def test_recipe_for_a_function():
    names = {"torch": torch}
    exec(recipe("def redness"), names)
    check_logits_source(lambda: names["source"])


def test_recipe_for_hugging_face(monkeypatch):
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 8, 8, 8], num_attention_heads=[1] * 4, num_labels=3
    )
    net = transformers.SegformerForSemanticSegmentation(config)
    kind = transformers.AutoModelForSemanticSegmentation
    monkeypatch.setattr(kind, "from_pretrained", lambda name: net)
    names = {"torch": torch}
    exec(recipe("AutoModelForSemanticSegmentation"), names)
    out = names["source"].logits(images(2, 64, 96))
    assert out.values.shape == (2, 3, 16, 24)
    assert out.names == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert not net.training


def test_recipe_for_mmsegmentation(monkeypatch):
    """With a stub of the calls that the recipe makes."""

    def encode_decode(pixels, metas):
        assert [meta["img_shape"] for meta in metas] == [(48, 80)] * 2
        return pixels

    statistics = SimpleNamespace(mean=torch.zeros(3, 1, 1), std=torch.ones(3, 1, 1))
    net = SimpleNamespace(
        data_preprocessor=statistics,
        dataset_meta={"classes": ("a", "b", "c")},
        encode_decode=encode_decode,
    )
    library = SimpleNamespace(init_model=lambda *_, **__: net)
    monkeypatch.setitem(sys.modules, "mmseg", SimpleNamespace(apis=library))
    monkeypatch.setitem(sys.modules, "mmseg.apis", library)
    names = {"torch": torch}
    exec(recipe("mmseg"), names)
    assert_close(names["source"].logits(images(2, 48, 80)).values, 255 * images(2, 48, 80))


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["one", "two"]):
        np.savez(tmp_path / f"{name}.npz", logits=np.full((3, 4, 5), i, np.float16))
    np.savez(tmp_path / "wide.npz", logits=np.zeros((3, 4, 6), np.float32))
    np.savez(tmp_path / "synonyms.npz", logits=np.zeros((3, 4, 5)), prompt_index=[0, 1, 1])
    np.savez(tmp_path / "other.npz", scores=np.zeros((3, 4, 5)))
    return tmp_path


def test_files(folder):
    source = load_logits("npz", folder=folder, classes=["a/b", "c"], scale=2.0)
    assert isinstance(source, LogitsSource)
    one = source.for_image("two")
    assert one.values.shape == (3, 4, 5)
    assert one.prompt_index.tolist() == [0, 0, 1]
    assert (one.names, one.scale) == (("a", "c"), 2.0)
    out = source.logits(images(2), image_ids=["two", "one"])
    assert out.values[:, 0, 0, 0].tolist() == [1, 0]
    assert (out.names, out.scale) == (("a", "c"), 2.0)


def test_files_have_their_own_prompts(folder):
    assert NpzLogits(folder).for_image("synonyms").prompt_index.tolist() == [0, 1, 1]
    assert NpzLogits(folder, ["a", "b/c"]).for_image("synonyms").names == ("a", "b")
    with pytest.raises(ValueError, match=r"`prompt_index` of .* must be .* \[0, 0, 1\]; got \[0"):
        NpzLogits(folder, ["a/b", "c"]).for_image("synonyms")


def test_other_arrays(folder):
    assert NpzLogits(folder, key="scores").for_image("other").values.shape == (3, 4, 5)
    with pytest.raises(ValueError, match=r"must have the array 'logits'; got \['scores'\]"):
        NpzLogits(folder).for_image("other")


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([], ValueError, r"`image_ids` must name the B=2 images.*; got \[\]"),
        (["one"], ValueError, r"`image_ids` must name the B=2 images.*; got \['one'\]"),
        (["one", "three"], FileNotFoundError, r"`image_id` must have a file; `.*three.npz`"),
        (["one", "wide"], ValueError, r"of one shape and the same prompts; got"),
        (["one", "synonyms"], ValueError, r"of one shape and the same prompts; got"),
    ],
)
def test_bad_ids(folder, ids, error, message):
    with pytest.raises(error, match=message):
        NpzLogits(folder).logits(images(2), image_ids=ids)


def test_bad_folder_and_classes(folder, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"`folder` must be an existing folder; got `.*/none`"
    ):
        NpzLogits(tmp_path / "none")
    with pytest.raises(ValueError, match=r"one.npz` must have K=2 maps.*; got 3"):
        NpzLogits(folder, ["a", "b"]).for_image("one")


def test_real_files():
    if not VOC.is_dir():
        pytest.skip(f"no real data: `{VOC}` is not a folder")
    name = sorted(VOC.glob("*.npz"))[0].stem
    logits = NpzLogits(VOC).for_image(name)
    assert logits.values.shape == (21, 33, 33)
    attention = torch.full((1089, 1089), 1 / 1089)
    assert Refiner()(logits, attention, torch.rand(3, 60, 70)).labels.shape == (60, 70)


PROMPTS = {
    "too many": (np.zeros(1 << 22, np.int64), ValueError, r"must have shape \[K=3\]"),
    "two axes": (np.zeros((3, 1), np.int64), ValueError, r"must have shape \[K=3\]"),
    "one number": (np.array(2), ValueError, r"must have shape \[K=3\]"),
    "negative": (np.array([0, 1, -1]), ValueError, r"must be >= 0; got -1"),
    "fractions": (np.array([0, 1, np.nan]), TypeError, "must hold whole numbers"),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_prompts_of_a_file_are_checked(tmp_path, kind):
    index, error, text = PROMPTS[kind]
    np.savez(tmp_path / "x.npz", logits=np.zeros((3, 2, 2)), prompt_index=index)
    with pytest.raises(error, match=f"^`prompt_index` {text}"):
        NpzLogits(tmp_path).for_image("x")
    with pytest.raises(ValueError, match=r"^`prompt_index` of .* \[0, 0, 1\]; got \[") as err:
        NpzLogits(tmp_path, ["a/b", "c"]).for_image("x")
    assert len(str(err.value)) < 300


@pytest.mark.parametrize("shape", [(), (3,), (3, 2), (3, 0, 2), (1, 3, 2, 2)])
@pytest.mark.parametrize("classes", [None, ["a", "b", "c"]])
def test_logits_of_another_shape_are_refused(tmp_path, shape, classes):
    np.savez(tmp_path / "x.npz", logits=np.zeros(shape))
    with pytest.raises(ValueError, match=r"^`.*` must have "):
        NpzLogits(tmp_path, classes).logits(images(1), image_ids=["x"])


def test_an_array_that_claims_terabytes_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", logits=np.zeros((3, 2, 2)))
    data = (tmp_path / "x.npz").read_bytes().replace(b"(3, 2, 2), }      ", b"(3, 200000, 20000)")
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"`.*x\.npz` must be a readable \.npz file; got "):
        NpzLogits(tmp_path).for_image("x")
