"""Loading of open_clip models: names, tags, folders, files, ready models, and errors."""

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from adapters.model_folders import open_clip_folder
from adapters.tiny_clip import CONFIG, tiny_clip
from ovss_refine_adapters.backbones.open_clip import PRESETS, load_clip


@pytest.fixture
def folder(tmp_path):
    """A model folder as open_clip exports it."""
    open_clip_folder(tmp_path)
    return tmp_path


@pytest.fixture
def named(monkeypatch, tmp_path):
    """An open_clip name with a tiny model."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {"tiny-clip": CONFIG})
    return "tiny-clip"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def assert_same_weights(one, two):
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_folder(folder, prefix):
    clip = load_clip(f"{prefix}{folder}")
    assert_same_weights(clip.model, tiny_clip())
    assert not clip.model.training
    assert clip.mean == (0.1, 0.2, 0.3)
    assert clip.std == (0.4, 0.5, 0.6)
    assert clip.tokenizer(["a cat"]).shape == (1, 77)
    assert_same_weights(load_clip(folder).model, clip.model)


def test_folder_without_weights_does_not_give_a_random_model(folder):
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"`model` must be a folder .* and the weights"):
        load_clip(folder)


def test_folder_without_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold `open_clip_config.json`"):
        load_clip(tmp_path)


@pytest.mark.parametrize("kind", ["local-dir:{}/x", "path"])
def test_folder_that_does_not_exist(tmp_path, kind):
    model = tmp_path / "x" if kind == "path" else kind.format(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"`model` must be an existing folder; got `.*/x`"):
        load_clip(model)


def test_folder_has_its_own_weights(folder):
    with pytest.raises(ValueError, match=r"`pretrained` must be None with 'local-dir:"):
        load_clip(folder, "openai")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_file(named, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(tiny_clip().state_dict(), path)
    else:
        save_file(tiny_clip().state_dict(), path)
    assert_same_weights(load_clip(named, path).model, tiny_clip())


def test_file_that_does_not_exist(named):
    with pytest.raises(
        FileNotFoundError, match=r"`pretrained` must be an existing file; got `x.safetensors`"
    ):
        load_clip(named, "x.safetensors")


class Payload:
    """The payload of a malicious file: unpickling it calls a function."""

    def __reduce__(self):
        return (pytest.fail, ("the file's code was run",))


@pytest.mark.parametrize("content", ["code", "garbage", "others"])
def test_file_without_matching_weights(named, tmp_path, content):
    path = tmp_path / "weights.pt"
    if content == "garbage":
        path.write_bytes(b"no tensors at all")
    else:
        torch.save(Payload() if content == "code" else {"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"the weights `.*weights.pt` must be tensors that fit"):
        load_clip(named, path)


def test_weights_must_be_named(named):
    with pytest.raises(ValueError, match=r"`pretrained` must be one of \[\] or a file for 'tiny"):
        load_clip(named)


def test_unknown_model_suggests_similar_names():
    with pytest.raises(ValueError, match=r"got 'ViT-B-61'. Did you mean .*'ViT-B-16'"):
        load_clip("ViT-B-61", "openai")


def test_unknown_tag_suggests_similar_names():
    with pytest.raises(ValueError, match=r"got 'openia'. Did you mean 'openai'"):
        load_clip("ViT-B-16-quickgelu", "openia")


@pytest.mark.parametrize(
    ("model", "tag", "message"),
    [
        ("ViT-B-16", "openai", r"'openai' has QuickGELU; got 'ViT-B-16'.*Use 'ViT-B-16-quickgelu'"),
        ("ViT-L-14", "metaclip_fullcc", r"QuickGELU; got 'ViT-L-14'.*Use 'ViT-L-14-quickgelu'"),
    ],
)
def test_mismatched_activations_are_refused(model, tag, message):
    with pytest.raises(ValueError, match=message):
        load_clip(model, tag)


def test_presets_have_the_activation_of_their_weights(offline):
    for size, (name, tag) in PRESETS.items():
        wanted = open_clip.get_pretrained_cfg(name, tag)["quick_gelu"]
        assert open_clip.get_model_config(name)["quick_gelu"] == wanted
        # So that the missing download is the only error.
        with pytest.raises(FileNotFoundError, match=r"clip_224.openai` must be available"):
            load_clip(size)


def test_offline_error_names_the_cache_and_the_fixes(offline):
    with pytest.raises(FileNotFoundError) as caught:
        load_clip("ViT-B-16", "laion2b_s34b_b88k")
    text = str(caught.value)
    repository = "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
    assert f"hf download {repository}" in text
    assert str(offline) in text
    assert "pretrained='PATH.safetensors'" in text
    with pytest.raises(FileNotFoundError, match=r"`timm/x` must be available.*local-dir:PATH"):
        load_clip("hf-hub:timm/x")


def test_ready_model_is_used_unchanged():
    model = tiny_clip().train()
    clip = load_clip(model)
    assert clip.model is model
    assert model.training
    assert clip.mean == open_clip.OPENAI_DATASET_MEAN
    tokens = open_clip.get_tokenizer("ViT-B-16")(["a cat", "two dogs"])
    torch.testing.assert_close(clip.tokenizer(["a cat", "two dogs"]), tokens)
    with pytest.raises(ValueError, match=r"`pretrained` must be None with a ready model"):
        load_clip(model, "openai")


def test_ready_model_with_another_vocabulary():
    model = tiny_clip()
    model.vocab_size = 10
    with pytest.raises(
        ValueError, match=r"`tokenizer` must be given for a vocabulary of 10 tokens"
    ):
        load_clip(model)
    assert load_clip(model, tokenizer=len).tokenizer is len
