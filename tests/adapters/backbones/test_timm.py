"""Any timm backbone: loading, sizes, positions, and the parts of its attention."""

import json

import pytest
import safetensors.torch
import timm
import torch
from torch.nn.functional import interpolate
from torch.testing import assert_close

from adapters.model_folders import timm_folder
from adapters.tiny_models import FAMILIES, PREFIX, TINY, images, tiny_vit
from ovss_refine_adapters.backbones.positions import resize_positions
from ovss_refine_adapters.backbones.timm import TimmBackbone
from ovss_refine_adapters.backbones.weights import load_timm


def watch(module, name="output"):
    """Record the outputs of a module, or its inputs."""
    seen = []
    if name == "output":
        module.register_forward_hook(lambda _m, _a, output: seen.append(output))
    else:
        module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_projections_are_those_of_the_block(family):
    model = tiny_vit(family)
    (got,) = TimmBackbone(model).projections(images(), [1])
    attn = model.blocks[1].attn
    attn.fused_attn = False
    maps = watch(attn.attn_drop)
    TimmBackbone(model).features(images())
    weights = (got.scale * got.q @ got.k.mT).softmax(-1)
    assert weights.std() > 0.05 / weights.shape[-1]  # not uniform, which would pass trivially
    assert_close(weights, maps[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, -1])
def test_features_and_keys_drop_the_prefix(family, layer):
    model, x = tiny_vit(family), images()
    backbone = TimmBackbone(model)
    gh, gw = backbone.grid(x)
    assert backbone.prefix == PREFIX.get(family, 1)
    blocks, got = watch(model.blocks[layer]), backbone.features(x, layer)
    assert_close(got, model.norm(blocks[0])[:, backbone.prefix :].mT.reshape(2, 64, gh, gw))
    (whole,) = backbone.projections(x, [layer])
    keys = backbone.keys(x, layer)
    assert keys.shape == (2, 2, gh * gw, 32)
    assert_close(keys, whole.k[:, :, backbone.prefix :])


def test_layers_are_returned_in_the_given_order():
    backbone = TimmBackbone(tiny_vit())
    both = backbone.projections(images(), [-1, 0])
    for layer, got in zip((2, 0), both, strict=True):
        assert_close(got.k, backbone.projections(images(), [layer])[0].k)
    assert not both[0].k.equal(both[1].k)


def test_images_are_resized_and_normalised():
    model = tiny_vit("clip")
    given = watch(model.patch_embed, "input")
    mean = torch.tensor(model.pretrained_cfg["mean"]).view(3, 1, 1)
    std = torch.tensor(model.pretrained_cfg["std"]).view(3, 1, 1)
    assert mean[0] != 0.485  # CLIP's own
    x = images(1, 50, 89)
    # In patches of 16: 50 is 3.1, 89 is 5.6, and 32 * 89 / 50 is 3.6.
    sizes = {None: (48, 96), 32: (32, 64), (64, 16): (64, 16)}
    for size, wanted in sizes.items():
        TimmBackbone(model, size=size).features(x)
        resized = interpolate(x, wanted, mode="bilinear", antialias=True)
        assert_close(given.pop(), (resized - mean) / std)
    x = images(1, 48, 64)
    TimmBackbone(model).features(x)
    assert_close(given.pop(), (x - mean) / std)


@pytest.mark.parametrize("family", ["dino", "registers", "eva02"])
def test_reference_positions_replace_timms(family):
    model, x = tiny_vit(family, img_size=56), images(1, 56, 112)
    backbone = TimmBackbone(model, positions="reference")
    tokens = watch(model.blocks[0], "input")
    theirs = TimmBackbone(model).features(x)
    ours, table = backbone.features(x), model.pos_embed[0]
    prefix = 0 if model.no_embed_class else backbone.prefix
    placed = resize_positions(table, backbone.grid(x), skip="count and square", prefix=prefix)
    grid = (backbone.grid(x)[0], backbone.grid(x)[0])
    back = interpolate(
        table[prefix:].mT.reshape(1, 64, *grid),
        backbone.grid(x),
        mode="bicubic",
        align_corners=False,
        antialias=True,
    )
    timms = torch.cat([table[:prefix], back[0].flatten(1).mT])
    # Only the positions differ between the tokens that enter the first block.
    difference = (tokens[1] - tokens[0])[0][-len(placed) :]
    assert difference.abs().max() > 0.01
    assert_close(difference, placed - timms, atol=1e-5, rtol=0)
    assert not ours.allclose(theirs, atol=1e-3)


def test_reference_positions_change_nothing_at_the_native_size():
    model = tiny_vit(img_size=56)
    x = images(1, 56, 56)
    rule = TimmBackbone(model, positions="reference").features(x)
    assert_close(rule, TimmBackbone(model).features(x), atol=0, rtol=0)


def test_a_fixed_size_model_takes_only_its_size():
    model = tiny_vit(img_size=56, dynamic_img_size=False)
    native = TimmBackbone(model, size=(56, 56), positions="reference").features(images())
    assert native.shape == (2, 64, 7, 7)
    with pytest.raises(ValueError, match=r"`images` must have the size 56 x 56 .* got 64 x 96"):
        TimmBackbone(model).features(images())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype_of_images_and_model(dtype):
    wanted = TimmBackbone(tiny_vit()).features(images())
    got = TimmBackbone(tiny_vit()).features(images().to(dtype))
    assert got.dtype == torch.float32
    assert_close(got, wanted, atol=0.2, rtol=0)
    got = TimmBackbone(tiny_vit().to(dtype)).features(images())
    assert got.dtype == torch.float32
    assert_close(got, wanted, atol=0.5, rtol=0)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_convolutional_models_give_features_of_any_stage(name):
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    backbone = TimmBackbone(model)
    x = images(1, 70, 100)
    with torch.no_grad():
        normed = (x - backbone.mean) / backbone.std
        last = model.forward_features(normed)
    assert backbone.features(x).shape[2:] == last.shape[2:]
    assert min(last.shape[2:]) > 1
    assert len({backbone.features(x, layer).shape[1:] for layer in (-1, -2)}) == 2
    with pytest.raises(ValueError, match=r"vision transformer .* got .* with none"):
        backbone.keys(x)


def test_attention_with_more_than_a_softmax_is_refused():
    model = timm.create_model("vit_relpos_small_patch16_224", pretrained=False, depth=1).eval()
    with pytest.raises(ValueError, match=r"plain softmax attention .* RelPosAttention"):
        TimmBackbone(model, size=(224, 224)).keys(images())


def test_a_block_that_skips_attention_raises():
    model = tiny_vit()
    model.blocks[1].attn.forward = lambda x, **_: x
    with pytest.raises(RuntimeError, match=r"block 1 ran without .*\['k', 'q'\]"):
        TimmBackbone(model).keys(images(), layer=1)


@pytest.mark.parametrize("form", ["{}", "local-dir:{}", "path"])
def test_a_local_folder_loads(tmp_path, form):
    model = timm_folder(tmp_path)
    got = TimmBackbone(tmp_path if form == "path" else form.format(tmp_path))
    assert_close(got.features(images()), TimmBackbone(model).features(images()))
    assert not got.model.training


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "model.safetensors"])
def test_a_file_of_weights_loads_into_a_named_model(tmp_path, name, monkeypatch):
    create = timm.create_model
    smaller = lambda *args, **more: create(*args, **(TINY | more))  # noqa: E731
    monkeypatch.setattr(timm, "create_model", smaller)
    model = tiny_vit("registers", img_size=518)
    state = {"head.bias": torch.zeros(3)} | model.state_dict()  # a classifier is ignored
    if name == "w.pt":
        torch.save(state, tmp_path / name)
    else:
        safetensors.torch.save_file(state, tmp_path / name)
    path = tmp_path if name == "model.safetensors" else tmp_path / name
    got = load_timm(FAMILIES["registers"], weights=path, dtype=torch.float64)
    assert next(got.parameters()).dtype == torch.float64
    for key, value in got.state_dict().items():
        assert_close(value.float(), state[key])


def test_mismatched_weights_in_a_folder_raise(tmp_path):
    timm_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"depth": 2}, r"got 1\d unexpected \['blocks.2.*\] and 0 missing"),
        ({"depth": 4}, r"and 1\d missing \['blocks.3"),
        ({"embed_dim": 32}, "got size mismatch for"),
    ):
        text = json.dumps(config | {"model_args": config["model_args"] | change})
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_timm(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="must hold the weights of this VisionTransformer; got"):
        load_timm(tmp_path)


def test_pickles_that_hold_more_than_weights_are_refused(tmp_path):
    timm_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"x": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin` must hold the weights"):
        load_timm(tmp_path)


def test_without_a_network_one_sentence_gives_the_fixes(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in (FAMILIES["dino"], "hf-hub:timm/vit_base_patch8_224.dino"):
        with pytest.raises(FileNotFoundError) as caught:
            load_timm(name)
        message = str(caught.value)
        assert message.startswith(
            "the weights `timm/vit_base_patch8_224.dino` must be available; got"
        )
        assert f"`{huggingface_hub.constants.HF_HUB_CACHE}`" in message
        assert "(not asked: HF_HUB_OFFLINE is set); run `hf download timm/vit" in message
        assert "or pass `weights`, a weight file" in message


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        ("vit_bas_patch8_224.dino", {}, ValueError, r"got .* Did you mean .*dino"),
        ("vit_base_patch8_224.dinos", {}, ValueError, r"\[.*224.dino'.*\]; got 'vit_base_patch8_2"),
        ("/nowhere", {}, FileNotFoundError, "`model` must be an existing folder; got `/nowhere`"),
        ("local-dir:no", {}, FileNotFoundError, "`model` must be an existing folder; got `no`"),
        ("resnet18", {"weights": "/no"}, FileNotFoundError, r"`weights` must .* got `/no`"),
        ("resnet18", {"weights": "{}"}, FileNotFoundError, r"must hold `model.safe.*got \['a'\]"),
        ("{}", {}, FileNotFoundError, r"must hold `config.json`; got \['a'\]"),
        (None, {"weights": "w"}, ValueError, "`weights` must be None with .* got 'w'"),
        (None, {"device": "cpu"}, ValueError, "`device` must be None with a ready model"),
        (None, {"positions": "dino"}, ValueError, "`positions` must be one of"),
        (None, {"size": 20}, ValueError, "`size` must be a positive multiple of the patch size 8"),
        (None, {"size": (16, 20)}, ValueError, r"multiple .* got \(16, 20\)"),
        (None, {"size": (16, 16, 16)}, ValueError, r"a pair .* got \(16, 16, 16\)"),
        (None, {"size": 0}, ValueError, "got 0"),
    ],
)  # fmt: skip
def test_bad_options(tmp_path, model, options, error, message):
    (tmp_path / "a").write_text("")
    options = {k: v.format(tmp_path) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(error, match=message):
        TimmBackbone(model.format(tmp_path) if model else tiny_vit(), **options)


def test_a_config_of_another_library_is_refused(tmp_path):
    for text, message in (
        ("{}", r"must have an entry `architecture`; got \[\]"),
        ("x", "must be a JSON file"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_timm(tmp_path)


def test_reference_positions_need_a_table():
    with pytest.raises(ValueError, match=r"`positions` must be 'timm' .* Eva has none"):
        TimmBackbone(tiny_vit("dinov3"), positions="reference")


@pytest.mark.parametrize(
    ("x", "layer", "error", "message"),
    [
        (torch.rand(3, 8, 8), -1, ValueError, r"`images` must be a batch or a list"),
        (torch.ones(1, 3, 8, 8).int(), -1, TypeError, "`images` must be uint8 or floating-point"),
        (torch.full((1, 3, 8, 8), 200.0), -1, ValueError, r"in \[0, 1\] .* 200. .* divide by 255"),
        (torch.full((1, 3, 8, 8), torch.nan), -1, ValueError, "`images` must be finite"),
        (torch.rand(1, 3, 8, 8), 3, ValueError, r"`layers` must be in \[-3, 2\]; got 3"),
        (torch.rand(1, 3, 8, 8), -4, ValueError, "`layers` must be at least -3; got -4"),
        (torch.rand(1, 3, 8, 8), 1.0, TypeError, "`layers` must be a whole number; got 1.0"),
    ],
)
def test_bad_images_and_layers(x, layer, error, message):
    backbone = TimmBackbone(tiny_vit())
    for method in (backbone.features, backbone.keys):
        with pytest.raises(error, match=message):
            method(x, layer)


def test_no_layers_raise():
    with pytest.raises(ValueError, match="at least one layer"):
        TimmBackbone(tiny_vit()).projections(images(), [])
