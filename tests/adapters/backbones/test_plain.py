"""Models that are compiled, wrapped, hooked or used in threads give the maps of the plain model."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from adapters.tiny_clip import make, tiny_clip
from adapters.tiny_models import images, tiny_parts, tiny_vit
from ovss_refine.testing.models import InjectedError, difference, snapshot
from ovss_refine_adapters.attention.clip import CLIPAttention
from ovss_refine_adapters.attention.stable_diffusion import StableDiffusionAttention
from ovss_refine_adapters.attention.vit import ViTAttention
from ovss_refine_adapters.backbones.plain import plain, undisturbed
from ovss_refine_adapters.logits.clip import clearclip

X = images(1)


class Backend:
    """A compiler that runs what it is given, and counts."""

    count = 0

    def __call__(self, graph, _inputs):
        self.count += 1
        return graph.forward


@pytest.fixture
def backend():
    torch._dynamo.reset()
    yield Backend()
    torch._dynamo.reset()


def whole(model, backend):
    return torch.compile(model, backend=backend)


def in_place(model, backend):
    model.compile(backend=backend)
    return model


def forward_alone(model, backend):
    model.forward = torch.compile(model.forward, backend=backend)
    return model


def all_methods(model, backend):
    for name in ("forward", "forward_features", "forward_intermediates"):
        setattr(model, name, torch.compile(getattr(model, name), backend=backend))
    return model


def each(kind, way):
    """Compile, in some way, every module in the model of the kind."""

    def compiled(model, backend):
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child).__name__ in kind:
                    setattr(parent, name, way(child, backend))
        return model

    compiled.__name__ = f"{way.__name__} {kind[0]}"
    return compiled


BLOCKS = ("Block", "ResidualAttentionBlock", "BasicTransformerBlock")
ATTENTION = ("Attention", "MultiheadAttention")
WAYS = [
    whole,
    in_place,
    forward_alone,
    *(each(kind, way) for kind in (BLOCKS, ATTENTION) for way in (whole, in_place, forward_alone)),
    each(("Identity", "LayerNorm"), in_place),
    each(("Sequential", "Transformer"), whole),
]


FEW = [whole, in_place, each(BLOCKS, whole), each(BLOCKS, in_place), each(ATTENTION, whole)]


@contextmanager
def left_alone(model):
    before = snapshot(model)
    yield
    assert difference(before, model) == ""


@pytest.mark.parametrize("way", [*WAYS, all_methods], ids=lambda way: way.__name__)
def test_a_compiled_vit_gives_the_same_map(way, backend):
    wanted = ViTAttention(tiny_vit(), layers=[0, -1]).attention(X).weights
    model = way(tiny_vit(), backend)
    normal = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        output = model(normal)
        compiled = backend.count
        source = ViTAttention(model, layers=[0, -1])
        with left_alone(model):
            assert_close(source.attention(X).weights, wanted)
        # What was compiled is still used, and was neither compiled again nor replaced.
        assert_close(model(normal), output)
    assert compiled > 0
    assert backend.count == compiled


@pytest.mark.parametrize("way", FEW, ids=lambda way: way.__name__)
def test_a_compiled_clip_gives_the_same_map_and_logits(way, backend):
    wanted = CLIPAttention(tiny_clip()).attention(X).weights
    logits = make(clearclip).logits(X).values
    model = way(tiny_clip(), backend)
    with torch.no_grad():
        model.encode_image(torch.rand(1, 3, 32, 32))
    source, producer = CLIPAttention(model), make(clearclip, model=model)
    with left_alone(model):
        assert_close(source.attention(X).weights, wanted)
        assert_close(producer.logits(X).values, logits)


@pytest.mark.parametrize("way", [whole, FEW[3], FEW[4]], ids=lambda way: way.__name__)
def test_a_compiled_unet_gives_the_same_map(way, backend):
    wanted = StableDiffusionAttention(tiny_parts(), resolution=64).attention(X).weights
    parts = tiny_parts()
    parts = replace(parts, vae=way(parts.vae, backend), unet=way(parts.unet, backend))
    if way is not whole:  # which takes long
        with torch.no_grad():
            parts.unet(torch.rand(1, 4, 8, 8), 0, encoder_hidden_states=parts.prompt)
    with left_alone(parts.unet), left_alone(parts.vae):
        got = StableDiffusionAttention(parts, resolution=64).attention(X).weights
        assert_close(got, wanted)


@pytest.mark.parametrize("way", [whole, each(BLOCKS, whole), each(ATTENTION, in_place)])
def test_an_exception_leaves_a_compiled_model_as_it_was(way, backend):
    model = way(tiny_vit().train(), backend)
    source = ViTAttention(model)

    def fail(*_):
        raise InjectedError

    handle = source.backbone.model.norm.register_forward_hook(fail)
    source.attention(X)  # attention does not need the final norm
    handle.remove()
    plain(plain(model).blocks[1]).mlp.register_forward_hook(fail)  # the last one's does not run
    with left_alone(model), pytest.raises(InjectedError):
        source.attention(X)


def wrapped_inside(model):
    model.blocks[2] = nn.DataParallel(model.blocks[2])
    return model


def checkpointed(model):
    model.set_grad_checkpointing()
    return model


def checkpoint_wrapped(model):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    for i, block in enumerate(model.blocks):
        model.blocks[i] = checkpoint_wrapper(block)
    return model


def hooked(model):
    for part in model.modules():
        part.register_forward_pre_hook(lambda _module, _args: None)
        part.register_forward_hook(lambda _module, _args, _output: None, always_call=True)
    return model


def unfused(model):
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


def dropping(model):
    for part in model.train().modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    return model


class DistributedDataParallel(nn.Module):
    """Known by its name, as a real one needs a process group."""

    def __init__(self, module):
        super().__init__()
        self.module = module


class LikePeft(nn.Module):
    """Hands what it does not know on to the model inside, as the wrappers of PEFT do."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model, name)


@pytest.mark.parametrize(
    "change",
    [
        nn.DataParallel,
        DistributedDataParallel,
        wrapped_inside,
        checkpointed,
        checkpoint_wrapped,
        hooked,
        unfused,
        dropping,
        LikePeft,
    ],
    ids=lambda change: change.__name__,
)
def test_a_wrapped_vit_gives_the_same_map(change):
    wanted = ViTAttention(tiny_vit()).attention(X).weights
    model = change(tiny_vit())
    with left_alone(model):
        assert_close(ViTAttention(model).attention(X).weights, wanted)


class LoRA(nn.Module):
    """A linear layer with an addition of low rank."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        size = layer.out_features, layer.in_features
        self.update = nn.Parameter(0.3 * torch.rand(size))

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + x @ self.update.T


def merged(layer):
    plain = nn.Linear(layer.base_layer.in_features, layer.base_layer.out_features)
    plain.weight.data = layer.base_layer.weight.data + layer.update.data
    plain.bias.data = layer.base_layer.bias.data
    return plain


def test_an_adapter_inside_counts():
    torch.manual_seed(0)
    model = tiny_vit()
    before = ViTAttention(model).attention(X).weights
    for block in model.blocks:
        block.attn.qkv = LoRA(block.attn.qkv)
    got = ViTAttention(LikePeft(model)).attention(X).weights
    for block in model.blocks:
        block.attn.qkv = merged(block.attn.qkv)
    assert_close(got, ViTAttention(model).attention(X).weights, atol=1e-5, rtol=0)
    assert (got - before).abs().max() > 1e-3


class LoRAAttention(nn.Module):
    """What PEFT puts in place of a MultiheadAttention: it has the names of the one inside."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.num_heads = layer.num_heads
        self.out_proj = layer.out_proj

    @property
    def in_proj_weight(self):
        return self.base_layer.in_proj_weight

    @property
    def in_proj_bias(self):
        return self.base_layer.in_proj_bias


def patched(attn):
    own = attn.forward
    attn.forward = lambda *args, **options: own(*args, **options)
    return attn


@pytest.mark.parametrize(
    ("change", "got"), [(LoRAAttention, "LoRAAttention"), (patched, "MultiheadAttention")]
)
def test_an_attention_of_another_kind_in_clip_is_refused(change, got):
    model = tiny_clip()
    block = model.visual.transformer.resblocks[1]
    block.attn = change(block.attn)
    message = f"PyTorch's MultiheadAttention .* got {got} with another `forward`. Merge adapters"
    with pytest.raises(ValueError, match=message):
        CLIPAttention(model)


def test_a_parametrized_attention_in_clip_counts():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    model, wanted = tiny_clip(), tiny_clip()
    attn = model.visual.transformer.resblocks[2].attn
    nn.utils.parametrize.register_parametrization(attn, "in_proj_weight", Doubled())
    wanted.visual.transformer.resblocks[2].attn.in_proj_weight.data *= 2
    got = CLIPAttention(model).attention(X).weights
    assert_close(got, CLIPAttention(wanted).attention(X).weights)


class FullyShardedDataParallel(DistributedDataParallel):
    """Likewise."""


class FSDPModule:
    pass


def fully_shard(model):
    kind = type(model)
    model.__class__ = type(f"FSDP{kind.__name__}", (FSDPModule, kind), {})
    return model


def inner_sharded(model):
    model.blocks[0] = fully_shard(model.blocks[0])
    return model


def traced(model):
    return torch.jit.trace(model, torch.rand(1, 3, 224, 224))


def inner_scripted(model):
    model.blocks[0].mlp = torch.jit.script(model.blocks[0].mlp)
    return model


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (FullyShardedDataParallel, "got FullyShardedDataParallel, which holds a share of the wei"),
        (fully_shard, "got FSDPVisionTransformer, which holds a share of the weights"),
        (inner_sharded, "got FSDPBlock, which holds a share of the weights"),
        (traced, r"got TopLevelTracedModule, .* Pass the model that was scripted or traced"),
        (inner_scripted, "got RecursiveScriptModule, which runs as TorchScript"),
    ],
)
def test_what_cannot_be_looked_into_is_refused(change, says):
    with pytest.raises(ValueError, match=f"`model` must be a plain PyTorch model; {says}"):
        ViTAttention(change(tiny_vit()))
    if change in (FullyShardedDataParallel, fully_shard):
        says = says.replace("VisionTransformer", "CLIP")
        with pytest.raises(ValueError, match=says):
            CLIPAttention(change(tiny_clip()))
        says = says.replace("CLIP", "UNet2DConditionModel")
        parts = tiny_parts()
        with pytest.raises(ValueError, match=says):
            StableDiffusionAttention(replace(parts, unet=change(parts.unet)), resolution=64)


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match=r"`model` must have its weights loaded; got .* meta"):
        ViTAttention(tiny_vit().to("meta"))


def test_a_model_of_another_library_is_refused():
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    for model in (ViTModel(config), nn.Sequential(tiny_vit())):
        name = type(model).__name__
        with pytest.raises(ValueError, match=f"`model` must be a model of timm .* got {name}"):
            ViTAttention(model)


def test_threads_that_share_a_model_get_their_own_maps():
    model, unet = tiny_vit().train(), tiny_parts()
    model.blocks[0].compile()
    given = [images(1, 32 + 16 * (i % 3), 64) * (i + 1) / 8 for i in range(8)]
    for source in (ViTAttention(model), StableDiffusionAttention(unet, resolution=32)):
        wanted = [source.attention(x).weights for x in given]
        with ThreadPoolExecutor(8) as pool, left_alone(model), left_alone(unet.unet):
            got = list(pool.map(lambda x, run=source: run.attention(x).weights, 2 * given))
        assert_close(got, 2 * wanted)


def test_autocast_is_off_on_the_devices_of_all_models():
    class Elsewhere(nn.Module):
        def parameters(self):
            return iter([SimpleNamespace(device=torch.device("cuda"))])

    with torch.autocast("cpu", torch.bfloat16), undisturbed(Elsewhere(), nn.Linear(1, 1)):
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_grad_enabled()


def test_autocast_inside_a_unet_does_not_reach_its_map():
    options = {"block_weights": {"down_0": 1}, "resolution": 64}
    wanted = StableDiffusionAttention(tiny_parts(), **options).attention(X).weights
    parts = tiny_parts()
    attention = parts.unet.down_blocks[0].attentions[0].transformer_blocks[0]
    attention.forward = torch.autocast("cpu", torch.bfloat16)(attention.forward)
    got = StableDiffusionAttention(parts, **options).attention(X).weights
    assert_close(got, wanted, atol=0, rtol=1e-6)
