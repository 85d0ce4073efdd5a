"""Hostile model folders of each library: nothing that came with them runs, or is asked for."""

import json
import pickle
import re
import shutil
import zipfile

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.model_folders import (
    add_code,
    change,
    diffusion_folder,
    groupvit_folder,
    open_clip_folder,
    timm_folder,
)
from adapters.tiny_clip import CONFIG
from ovss_refine.sources import hub
from ovss_refine_adapters.attention.stable_diffusion import StableDiffusionAttention
from ovss_refine_adapters.backbones import folders
from ovss_refine_adapters.backbones.groupvit import load_groupvit
from ovss_refine_adapters.backbones.open_clip import load_clip
from ovss_refine_adapters.backbones.timm import TimmBackbone
from ovss_refine_adapters.backbones.weights import load_timm

WRITE = {
    "open_clip": open_clip_folder,
    "timm": timm_folder,
    "diffusers": diffusion_folder,
    "transformers": groupvit_folder,
}
LOAD = {
    "open_clip": load_clip,
    "timm": load_timm,
    "diffusers": lambda model: StableDiffusionAttention(model, resolution=64, cache_dir=None),
    "transformers": load_groupvit,
}
# Where each library keeps weights, and its own configuration.
WEIGHTS = {
    "open_clip": "open_clip_model.safetensors",
    "timm": "model.safetensors",
    "diffusers": "unet/diffusion_pytorch_model.safetensors",
    "transformers": "model.safetensors",
}
CONFIGS = {
    "open_clip": "open_clip_config.json",
    "timm": "config.json",
    "diffusers": "unet/config.json",
    "transformers": "config.json",
}
# Every configuration that a library may look for beside them.
FILES = {
    "open_clip": [
        *("open_clip_config.json", "config.json", "tokenizer_config.json", "tokenizer.json"),
        *("preprocessor_config.json", "processor_config.json", "generation_config.json"),
        *("special_tokens_map.json", "added_tokens.json", "adapter_config.json", "CONFIG.JSON"),
    ],
    "timm": ["config.json", "preprocessor_config.json"],
    "diffusers": [
        *("model_index.json", "modular_model_index.json", "unet/config.json", "vae/config.json"),
        *(
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "unet/adapter_config.json",
        ),
        *("text_encoder/generation_config.json", "tokenizer/tokenizer_config.json"),
        *("tokenizer/special_tokens_map.json", "tokenizer/added_tokens.json"),
        "tokenizer/processor_config.json",
    ],
    "transformers": [
        *("config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json"),
        *("preprocessor_config.json", "processor_config.json"),
    ],
}
MAP = {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None], "AutoModel": "evil.Evil"}
SENTENCE = re.compile(r"^[^\n]*must [^\n]*; [^\n]*$")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A folder of each library that loads."""
    found = {}
    for library, write in WRITE.items():
        found[library] = tmp_path_factory.mktemp(library)
        write(found[library])
    return found


@pytest.fixture
def copy(clean, tmp_path, monkeypatch):
    """Copy a folder, with code in it that would leave `ran`; a question would fail the test."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))

    def make(library):
        shutil.copytree(clean[library], tmp_path / library)
        add_code(tmp_path / library, tmp_path / "ran")
        return tmp_path / library

    yield make
    assert not (tmp_path / "ran").exists()


def refused(load, folder, error=ValueError):
    with pytest.raises(error) as caught:
        load(folder)
    assert SENTENCE.match(str(caught.value)), caught.value
    return str(caught.value)


@pytest.mark.parametrize("library", LOAD)
def test_a_clean_folder_loads(copy, library):
    """Code that only lies there does not matter, nor do entries that are empty."""
    folder = copy(library)
    change(folder / CONFIGS[library], auto_map=None, trust_remote_code=False)
    change(folder / "preprocessor_config.json", image_processor_type="CLIPImageProcessor")
    words = {"auto_map</w>": 3, "hf_</w>": 4, "trust_remote_code": 5}
    (folder / "vocab.json").write_text(json.dumps(words))
    LOAD[library](folder)


@pytest.mark.parametrize(
    ("library", "file"), [(name, file) for name, files in FILES.items() for file in files]
)
def test_no_file_may_name_code(copy, library, file):
    folder = copy(library)
    change(folder / file, auto_map=MAP)
    assert f"{file}` must describe a model of the library itself; got 'auto_map', which may" in (
        refused(LOAD[library], folder)
    )


@pytest.mark.parametrize("library", LOAD)
@pytest.mark.parametrize(
    "entry",
    [
        {"trust_remote_code": True},
        {"trust_remote_code": 1},
        {"Trust_Remote_Code": "yes"},
        {"AUTO_MAP": MAP},
        {"autoMap": MAP},
        {"auto-map": MAP},
        {"custom_pipeline": "evil"},
        {"custom_pipelines": {"evil": {"impl": "evil.Evil"}}},
        {"_attn_implementation": "evil/kernel"},
        {"_attn_implementation_internal": "evil/kernel"},
        {"base_model_name_or_path": "evil/evil"},
        {"quantization_config": {"quant_method": "evil"}},
        {"tokenizer_kwargs": {"trust_remote_code": True}},
        {"hf_model_name": "{0}"},
        {"hf_tokenizer_name": "{0}"},
        {"HF_tokenizer_name": "{0}"},
        {"timm_model_name": "hf-hub:evil/evil"},
        {"timm_model_name": " Local-Dir:{0}"},
        {"_class_name": "evil.Evil"},
        {"_class_name": ["evil", "Evil"]},
        {"tokenizer_class": "evil.Evil"},
        {"tokenizer_class": ["Evil", "evil.Evil"]},
        {"nested": [{"deeper": [[{"auto_map": MAP}]]}]},
    ],
    ids=lambda entry: "-".join(map(str, next(iter(entry.items()))))[:40],
)
def test_no_entry_may_name_code(copy, library, entry):
    folder = copy(library)
    entry = json.loads(json.dumps(entry).replace("{0}", str(folder)))
    inside = ["model_cfg", "text_cfg"] if library == "open_clip" else ["a", "b"]
    change(folder / CONFIGS[library], *inside, **entry)
    message = refused(LOAD[library], folder)
    assert "must describe a model of the library itself" in message
    assert "Load the model yourself and pass it." in message


@pytest.mark.parametrize(
    ("file", "entry"),
    [
        ("model_index.json", {"_class_name": ["pipeline", "Evil"]}),
        ("model_index.json", {"unet": ["evil", "Evil"]}),
        ("model_index.json", {"safety_checker": ["pipeline.evil", "Evil"]}),
        ("modular_model_index.json", {"unet": ["evil", "Evil", {"repo": "evil/evil"}]}),
        ("unet/config.json", {"_class_name": "Evil"}),
        ("vae/config.json", {"_class_name": "UNet2DConditionModel"}),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "EvilTokenizer"}),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ],
)
def test_diffusion_has_parts_of_known_classes(copy, file, entry):
    folder = copy("diffusers")
    change(folder / file, **entry)
    refused(LOAD["diffusers"], folder)


def test_the_index_of_a_pipeline_is_no_obstacle(copy):
    folder = copy("diffusers")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DCondition"]}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"], "feature_extractor": [None, None]}
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    change(folder / "model_index.json", **index, requires_safety_checker=True)
    LOAD["diffusers"](folder)


@pytest.mark.parametrize(
    "architecture",
    ["evil", "evil.Evil", "hf-hub:evil/evil", "local-dir:.", "../evil", "", 7, ["resnet18"], None],
)
def test_timm_has_models_of_its_own(copy, architecture):
    folder = copy("timm")
    change(folder / "config.json", architecture=architecture)
    refused(load_timm, folder)


@pytest.mark.parametrize(
    "args",
    [
        {"checkpoint_path": "evil.bin"},
        {"pretrained": True},
        {"pretrained_cfg": {"custom_load": True, "file": "evil.bin"}},
        {"norm_layer": "evil.Evil"},
        {"act_layer": "evil.Evil"},
        {"depth": "__import__('evil')"},
    ],
    ids=str,
)
def test_timm_gets_no_arguments_that_are_not_its_own(copy, args, monkeypatch):
    folder = copy("timm")
    monkeypatch.chdir(folder)
    change(folder / "config.json", "model_args", **args)
    refused(load_timm, folder)


@pytest.mark.parametrize("library", ["open_clip", "timm"])
@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"mean": "evil"}, "`mean` of a model's pixels must be three numbers; got 'evil'"),
        ({"std": [0.5, 0.5]}, "`std` of a model's pixels must be three numbers; got "),
        ({"mean": [0, 0, 1e300]}, "`mean` must be in .* got 1e\\+300"),
        ({"std": [0.5, 0, 0.5]}, "`std` must be in .* got 0"),
    ],
    ids=str,
)
def test_pixel_statistics_are_three_numbers(copy, library, statistics, message):
    folder = copy(library)
    timm = library == "timm"
    change(folder / CONFIGS[library], "pretrained_cfg" if timm else "preprocess_cfg", **statistics)
    load = (lambda folder: TimmBackbone(load_timm(folder))) if timm else load_clip
    assert re.search(message, refused(load, folder))


@pytest.mark.parametrize("library", LOAD)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', r"must be a JSON file; got the key 'a' twice\.$"),
        ('{"a": {"auto_map": null, "auto_map": {"x": "evil.Evil"}}}', "the key 'auto_map' twice"),
        ("[" * 100_000, "must be a JSON file; got "),
        ("{", "must be a JSON file; got "),
        ("", "must be a JSON file; got "),
        ("\ufeff{}", "must be a JSON file; got "),
        (b"\xff\xfe{\x00}\x00", "must be a JSON file; got "),
        ("[]", "must have an entry"),
        ("7", "must have an entry"),
    ],
    ids=range(9),
)
def test_a_damaged_configuration_is_refused(copy, library, text, message):
    folder = copy(library)
    (folder / CONFIGS[library]).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert re.search(message, refused(LOAD[library], folder))


def test_a_configuration_of_unlimited_size_is_refused(copy):
    folder = copy("timm")
    with (folder / "other.json").open("wb") as file:
        file.truncate(1 << 40)
    assert "other.json` must have at most 67,108,864 bytes of JSON; got 1," in refused(
        load_timm, folder
    )


@pytest.mark.parametrize("library", LOAD)
def test_links_are_followed_to_what_the_library_would_read(copy, library, tmp_path):
    folder = copy(library)
    outside = tmp_path / "outside.json"
    shutil.move(folder / CONFIGS[library], outside)
    (folder / CONFIGS[library]).symlink_to(outside)
    LOAD[library](folder)
    change(outside, auto_map=MAP)
    refused(LOAD[library], folder)


def test_linked_folders_are_checked(copy, tmp_path):
    folder = copy("diffusers")
    for part in ("tokenizer", "text_encoder"):
        shutil.move(folder / part, tmp_path / part)
        (folder / part).symlink_to(tmp_path / part)
    LOAD["diffusers"](folder)
    change(tmp_path / "tokenizer" / "special_tokens_map.json", auto_map=MAP)
    refused(LOAD["diffusers"], folder)


class Evil:
    """Unpickling it calls `open`, which leaves a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


def pickled(kind, path, marker):
    payload = {"weight": Evil(marker)}
    if kind == "zip":
        torch.save(payload, path)
    elif kind == "legacy":
        torch.save(payload, path, _use_new_zipfile_serialization=False)
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, weight=np.array([Evil(marker)], dtype=object))
    elif kind == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(payload))
            archive.writestr("data.pkl", pickle.dumps(payload))
    else:
        path.write_bytes(pickle.dumps(payload))


@pytest.mark.parametrize("library", LOAD)
@pytest.mark.parametrize("kind", ["plain", "zip", "legacy", "npz", "archive"])
@pytest.mark.parametrize("where", ["weights", "config", "beside", "bin"])
def test_pickles_under_any_name_are_not_unpickled(copy, library, kind, where, tmp_path):
    folder = copy(library)
    path = folder / WEIGHTS[library]
    if where == "config":
        path = folder / CONFIGS[library]
    elif where == "beside":
        path = path.with_name("weights.json")
    elif where == "bin":
        path.unlink()
        names = {"open_clip": "open_clip_pytorch_model", "timm": "pytorch_model"}
        path = path.with_name(f"{names.get(library, 'diffusion_pytorch_model')}.bin")
    pickled(kind, path, tmp_path / "ran")
    refused(LOAD[library], folder, (ValueError, FileNotFoundError))


@pytest.mark.parametrize("kind", ["plain", "zip", "legacy", "npz", "archive"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt", "pth", "npz", "npy", "json", "zip"])
@pytest.mark.parametrize("library", ["open_clip", "timm"])
def test_a_file_of_weights_is_not_unpickled(copy, library, kind, suffix, tmp_path, monkeypatch):
    copy("timm")
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {"tiny-clip": CONFIG})
    path = tmp_path / f"weights.{suffix}"
    pickled(kind, path, tmp_path / "ran")
    load = {
        "open_clip": lambda path: load_clip("tiny-clip", path),
        "timm": lambda path: load_timm(tmp_path / "timm", weights=path),
    }[library]
    refused(load, path)


def test_a_pickle_would_leave_a_mark(tmp_path):
    pickled("plain", tmp_path / "x", tmp_path / "ran")
    pickle.loads((tmp_path / "x").read_bytes())["weight"].close()
    assert (tmp_path / "ran").exists()


@pytest.fixture
def repository(monkeypatch, tmp_path):
    """A hub whose every repository is a given folder; and the files that were asked for."""
    import huggingface_hub

    monkeypatch.setattr(hub, "_reachable", lambda endpoint: True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    asked = []

    def serve(folder):
        def snapshot(repository, *, revision, allow_patterns):
            asked.append((repository, revision, allow_patterns))
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        return asked

    return serve


HUB_NAMES = {
    "open_clip": "hf-hub:a/b",
    "timm": "hf-hub:a/b@c",
    "diffusers": "a/b",
    "transformers": "a/b",
}


@pytest.mark.parametrize("library", LOAD)
def test_a_repository_is_checked_like_a_folder(copy, library, repository):
    folder = copy(library)
    asked = repository(folder)
    LOAD[library](HUB_NAMES[library])
    assert {name for name, *_ in asked} == {"a/b"}
    assert {revision for _, revision, _ in asked} == {"c" if library == "timm" else None}
    assert {CONFIGS[library], WEIGHTS[library]} <= {name for _, _, names in asked for name in names}
    change(folder / CONFIGS[library], auto_map=MAP)
    assert "must describe a model of the library" in refused(LOAD[library], HUB_NAMES[library])
    (folder / CONFIGS[library]).unlink()
    message = refused(LOAD[library], HUB_NAMES[library], FileNotFoundError)
    assert "the weights `a/b` must be available; got nothing from the cache" in message


@pytest.mark.parametrize("name", ["/etc", "a/b/c", "https://evil.com/a/b", "", "..//x", "a b"])
def test_what_is_no_repository_is_refused(name):
    with pytest.raises(ValueError, match=r"^`model` must be 'owner/name' on the hub; got"):
        folders.fetch(name, ["x"], argument="x", instead="x")


def test_a_text_tower_of_transformers_is_described_by_a_checked_file(
    copy, repository, monkeypatch, tmp_path
):
    folder = copy("timm")
    repository(folder)
    asked = {
        "hf_model_name": "roberta-base",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
    }
    config = CONFIG | {"text_cfg": asked}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {"tiny-roberta": config})
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta", "auto_map": MAP}))
    (tmp_path / "weights.bin").touch()
    message = refused(lambda name: load_clip(name, tmp_path / "weights.bin"), "tiny-roberta")
    assert "config.json` must describe a model of the library itself; got 'auto_map'" in message
    seen = []
    monkeypatch.setattr(
        open_clip, "create_model", lambda *_, **more: seen.append(more) or torch.nn.Linear(1, 1)
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    load_clip("tiny-roberta", tmp_path / "weights.bin", tokenizer=len)
    assert seen[0]["text_cfg"] == asked | {
        "hf_model_name": str(folder),
        "hf_model_pretrained": False,
    }


def test_a_tokenizer_of_transformers_runs_no_code(copy, repository, monkeypatch, tmp_path):
    folder = copy("open_clip")
    change(folder / "tokenizer_config.json", auto_map=MAP, tokenizer_class="Evil")
    change(folder / "config.json", auto_map=MAP, model_type="evil")
    repository(folder)
    config = CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"hf_tokenizer_name": str(folder)}}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {"tiny-clip": config})
    weights = folder / WEIGHTS["open_clip"]
    message = refused(lambda name: load_clip(name, weights), "tiny-clip")
    assert message.startswith("`tokenizer` must be given for 'tiny-clip'; its own, `")
    assert load_clip("tiny-clip", weights, tokenizer=len).tokenizer is len


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    ("library", "file"),
    [
        *((name, file) for name, file in WEIGHTS.items()),
        ("diffusers", "vae/diffusion_pytorch_model.safetensors"),
        ("diffusers", "text_encoder/model.safetensors"),
    ],
)
def test_weights_that_are_not_finite_are_refused(copy, library, file, value):
    folder = copy(library)
    state = load_file(folder / file)
    name = sorted(state)[-1]
    state[name].view(-1)[0] = value
    save_file(state, folder / file, metadata={"format": "pt"})
    message = refused(LOAD[library], folder)
    assert re.search(
        r"^the weights `.*` must be finite; got 1 NaN or infinite values in '", message
    )


def test_what_overflows_in_half_precision_is_refused(copy):
    folder = copy("timm")
    state = load_file(folder / "model.safetensors")
    state["norm.weight"][:2] = 1e6
    save_file(state, folder / "model.safetensors")
    load_timm(folder)
    with pytest.raises(ValueError, match=r"got 2 NaN .*'norm.weight' \(torch.float16\)"):
        load_timm(folder, dtype=torch.float16)


@pytest.mark.parametrize("library", LOAD)
@pytest.mark.parametrize("device", ["mps", "cuda:7", "xpu", "cdua", ""])
def test_a_device_that_is_not_here_is_one_sentence(copy, library, device, monkeypatch):
    load = {
        "open_clip": load_clip,
        "timm": load_timm,
        "diffusers": StableDiffusionAttention,
        "transformers": load_groupvit,
    }[library]
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("is here")
    with pytest.raises(ValueError, match=rf"^`device` must be .* torch can use; got '{device}': "):
        load(copy(library), device=device)


@pytest.mark.parametrize("library", LOAD)
@pytest.mark.parametrize("url", ["https://hub.example/a/b", "file:///models/x", "s3://models/x"])
def test_a_url_is_no_model(library, url):
    message = refused(LOAD[library], url)
    assert message.startswith(f"`model` must be a local path; got the URL '{url}'")


@pytest.mark.parametrize("url", ["https://hub.example/x.safetensors", "HTTP://hub.example/x"])
def test_a_url_is_no_file_of_weights(url):
    with pytest.raises(ValueError, match=r"^`weights` must be a local path; got the URL"):
        load_timm("vit_base_patch8_224.dino", weights=url)
    with pytest.raises(ValueError, match=r"^`pretrained` must be a local path; got the URL"):
        load_clip("ViT-B-16", url)
