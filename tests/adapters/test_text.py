"""Class names, templates, text features and their cache."""

import threading

import numpy as np
import open_clip
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from adapters.tiny_clip import tiny_clip
from ovss_refine_adapters import text
from ovss_refine_adapters.backbones.open_clip import load_clip
from ovss_refine_adapters.text import (
    as_classes,
    as_templates,
    default_cache,
    read_classes,
    text_features,
)


@pytest.fixture
def clip():
    return load_clip(tiny_clip())


def test_classes_of_a_source(tmp_path):
    """Read as labels are everywhere, save that a string is a path."""
    classes = as_classes(["television/tv/monitor", "dog", "room: wall/floor"])
    assert classes.names == ("television", "dog", "room")
    assert classes.all_prompts == ("television", "tv", "monitor", "dog", "wall", "floor")
    assert classes.prompt_index == (0, 0, 0, 1, 2, 2)
    assert as_classes(classes) is classes
    path = tmp_path / "cls_x.txt"
    # The last name has the trailing blank of a published file.
    path.write_text("sky, wall\nperson; person in shirt\nwood \n")
    classes = as_classes(str(path))
    assert classes.synonyms == (("sky", "wall"), ("person", "person in shirt"), ("wood",))
    assert as_classes(path) == read_classes(path) == classes
    with pytest.raises(FileNotFoundError, match=r"`cat` does not exist. For a single class"):
        as_classes("cat")


def test_templates():
    templates = as_templates("imagenet")
    assert len(set(templates)) == 80
    assert templates[0] == "a bad photo of a {}."
    assert templates[-1] == "a tattoo of the {}."
    scenes = as_templates("imagenet-scene")
    assert scenes[:80] == templates
    assert [x.replace("{}", "X") for x in scenes[80:]] == [
        "there is a X in the scene.",
        "there is the X in the scene.",
        "this is a X in the scene.",
        "this is the X in the scene.",
        "this is one X in the scene.",
    ]
    assert as_templates("single") == ("a photo of a {}.",)
    assert as_templates(["{}", "my {}"]) == ("{}", "my {}")


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ("image", r"'imagenet-scene', 'single' or a list of strings; got 'image'"),
        ([], r"or a list of strings; got \[\]"),
        (["a {} and a {}"], r"exactly one '\{\}' each; got 'a \{\} and a \{\}'"),
        (["a photo"], r"exactly one '\{\}' each; got 'a photo'"),
    ],
)
def test_bad_templates(templates, message):
    with pytest.raises(ValueError, match=message):
        as_templates(templates)


def test_features_are_the_mean_of_unit_vectors(clip):
    """By hand, one text at a time, in float64."""
    templates = ["a photo of a {}.", "the {}", "{}"]
    classes = as_classes(["cat/kitten", "dog"])
    features = text_features(clip, classes, templates)
    tokenize = open_clip.get_tokenizer("ViT-B-16")
    for prompt, row in zip(classes.all_prompts, features, strict=True):
        total = torch.zeros(24, dtype=torch.float64)
        for template in templates:
            with torch.no_grad():
                vector = clip.model.encode_text(tokenize([template.format(prompt)]))[0].double()
            total += vector / vector.norm()
        assert_close(row.double(), total / total.norm(), atol=1e-6, rtol=0)


def test_features_equal_open_clips_classifier(clip):
    names = ["cat", "dog", "great white shark"]
    wanted = open_clip.build_zero_shot_classifier(
        clip.model, clip.tokenizer, names, open_clip.OPENAI_IMAGENET_TEMPLATES
    ).detach()
    assert_close(text_features(clip, as_classes(names)), wanted.T, atol=1e-6, rtol=0)


def test_braces_in_a_name_are_not_a_template(clip):
    features = text_features(clip, as_classes(["a {} b", "c"]), "single")
    assert features.shape == (2, 24)


def test_cache_is_used_and_exact(clip, tmp_path, monkeypatch):
    classes = as_classes(["cat", "dog"])
    made = text_features(clip, classes, "single", tmp_path)
    assert_close(made, text_features(clip, classes, "single"), rtol=0, atol=0)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]
    monkeypatch.setattr(text, "_embed", lambda *_: pytest.fail("embedded again"))
    assert_close(text_features(clip, classes, "single", tmp_path), made, rtol=0, atol=0)


def other_weights(model):
    with torch.no_grad():
        model.text_projection[0, 0] += 1e-3


def other_activation(model):
    model.transformer.resblocks[0].mlp.gelu = nn.GELU()


def other_heads(model):
    model.transformer.resblocks[0].attn.num_heads = 4


@pytest.mark.parametrize("change", [other_weights, other_activation, other_heads])
def test_cache_depends_on_the_model(clip, tmp_path, change):
    classes = as_classes(["cat"])
    text_features(clip, classes, "single", tmp_path)
    change(clip.model)
    text_features(clip, classes, "single", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_cache_depends_on_names_and_templates(clip, tmp_path):
    for names, templates in [
        (["cat"], "single"),
        (["dog"], "single"),
        (["cat", "big cat"], ["{}"]),
        # The same two texts, but of one class.
        (["cat"], ["{}", "big {}"]),
        (["cat"], ["{}"]),
    ]:
        text_features(clip, as_classes(names), templates, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_cache_ignores_the_image_tower(clip, tmp_path):
    text_features(clip, as_classes(["cat"]), "single", tmp_path)
    with torch.no_grad():
        clip.model.visual.proj += 1
    text_features(clip, as_classes(["cat"]), "single", tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY damaged", b"no array"])
def test_a_damaged_cache_is_computed_again(clip, tmp_path, content):
    made = text_features(clip, as_classes(["cat"]), "single", tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"is damaged \(.*\); computed again"):
        again = text_features(clip, as_classes(["cat"]), "single", tmp_path)
    assert_close(again, made, rtol=0, atol=0)
    assert_close(text_features(clip, as_classes(["cat"]), "single", tmp_path), made)


def test_unwritable_cache_folder_warns(clip, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match=r"embedding of text was not cached in `.*/file`"):
        features = text_features(clip, as_classes(["cat"]), "single", tmp_path / "file")
    assert_close(features, text_features(clip, as_classes(["cat"]), "single"))


def write_again_and_again(path, value):
    for _ in range(200):
        text._write(path, torch.full((500, 100), value).numpy())


def test_readers_never_see_a_partial_file(tmp_path):
    path = tmp_path / "text.npy"
    write_again_and_again(path, 0.0)
    writers = [threading.Thread(target=write_again_and_again, args=(path, v)) for v in (1.0, 2.0)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert len(np.unique(np.load(path))) == 1
    for writer in writers:
        writer.join()
    assert [p.name for p in tmp_path.iterdir()] == ["text.npy"]


def test_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "save", full_disk)
    with pytest.warns(UserWarning, match=r"not cached in `.*`: .*; got no space left"):
        text._write(tmp_path / "text.npy", np.zeros(3))
    assert list(tmp_path.iterdir()) == []


def full_disk(*args, **kwargs):
    raise OSError("no space left")


def test_default_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "ovss_refine"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "ovss_refine"


def test_model_is_left_unchanged(clip):
    clip.model.train()
    text_features(clip, as_classes(["cat"]), "single")
    assert all(module.training for module in clip.model.modules())


def words(count):
    return " ".join(["cat"] * count)  # a token each


@pytest.mark.parametrize("templates", ["single", ["{}"]])
def test_the_longest_prompt_fits_and_one_more_token_does_not(clip, templates):
    # Two tokens mark the start and end of the text; "a photo of a ." has five.
    limit = 77 - 2 - (5 if templates == "single" else 0)
    text_features(clip, as_classes(["dog", words(limit)]), templates)
    with pytest.raises(ValueError, match=r"fit in the model's 77 tokens in every .*got 'cat cat"):
        text_features(clip, as_classes(["dog", words(limit + 1)]), templates)


def test_the_error_names_the_prompt_that_is_too_long(clip):
    classes = as_classes(["dog/" + "\u732b" * 40, "sofa"])  # three bytes a letter, and more tokens
    with pytest.raises(ValueError, match="got '\u732b\u732b"):
        text_features(clip, classes, ["{}", "a {}"])
