"""Attention of Hugging Face models' outputs, against softmax(q k^T) of the models' own weights."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.testing import assert_close

from adapters.tiny_models import images, randomise, tiny_parts, tiny_vit
from ovss_refine import Attention, AttentionSource
from ovss_refine.sources.outputs import from_hugging_face

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
MLP = {"intermediate_size": 48}
RESIZED = {"interpolate_pos_encoding": True}
# For each model: class, configuration, tokens in front of the patches, arguments of a call.
MODELS = {
    "vit": (transformers.ViTModel, transformers.ViTConfig(**TINY, **MLP), 1, RESIZED),
    "deit": (transformers.DeiTModel, transformers.DeiTConfig(**TINY, **MLP), 2, RESIZED),
    "dinov2": (transformers.Dinov2Model, transformers.Dinov2Config(**TINY), 1, {}),
    "dinov2 with registers": (
        transformers.Dinov2WithRegistersModel,
        transformers.Dinov2WithRegistersConfig(**TINY, num_register_tokens=4),
        5,
        {},
    ),
    "clip": (
        transformers.CLIPVisionModel,
        transformers.CLIPVisionConfig(**TINY, **MLP),
        1,
        RESIZED,
    ),
    "siglip": (
        transformers.SiglipVisionModel,
        transformers.SiglipVisionConfig(**TINY, **MLP),
        0,
        RESIZED,
    ),
}


def make(name, attention="eager"):
    kind, config, *_ = MODELS[name]
    return randomise(kind._from_config(config, attn_implementation=attention), 0.8)


def part(block, *names):
    """Return the layer of a block with one of these names, which differ between versions."""
    (found,) = [m for n, m in block.named_modules() if re.search(rf"\b({'|'.join(names)})$", n)]
    return found


def expected(model, hidden, layer, prefix, A=2):
    """Average softmax(q k^T / sqrt(d)) over heads, in float64, from weights and hidden states."""
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    block = blocks[layer]
    norm = part(block, "layernorm_before", "norm1", "layer_norm1")
    x = hidden[layer].double().numpy()  # [B, T, C]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.eps)
    x = x * norm.weight.double().detach().numpy() + norm.bias.double().detach().numpy()
    q, k = (
        x @ one.weight.double().detach().numpy().T + one.bias.double().detach().numpy()
        for one in (part(block, "q_proj", "query"), part(block, "k_proj", "key"))
    )
    B, T, C = q.shape
    total = np.zeros((B, T, T))
    for a in range(A):
        own = slice(a * C // A, (a + 1) * C // A)
        scores = q[..., own] @ k[..., own].transpose(0, 2, 1) / np.sqrt(C // A)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        total += weights / weights.sum(-1, keepdims=True)
    patches = total[:, prefix:, prefix:]
    return torch.from_numpy(patches / patches.sum(-1, keepdims=True)).float()


@pytest.mark.parametrize("name", MODELS)
def test_maps_are_those_of_the_model_s_weights(name):
    model, (*_, prefix, more) = make(name), MODELS[name]
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = model(pixels, output_attentions=True, output_hidden_states=True, **more)
    hidden = outputs.hidden_states
    found = from_hugging_face(outputs, model.config, pixels)
    assert found.grid == (4, 6)
    assert_close(found.weights, expected(model, hidden, 2, prefix), atol=1e-5, rtol=1e-4)
    assert float((found.weights - 1 / 24).abs().max()) > 0.1  # no uniform map would do
    both = from_hugging_face(outputs, model.config, (32, 48), layers=(0, 1))
    mean = (expected(model, hidden, 0, prefix) + expected(model, hidden, 1, prefix)) / 2
    assert_close(both.weights, mean, atol=1e-5, rtol=1e-4)


def test_the_whole_of_clip_by_its_image_encoder():
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    config = transformers.CLIPConfig(
        text_config={**text, "intermediate_size": 16, "eos_token_id": 2},
        vision_config={**TINY, **MLP},
        projection_dim=8,
    )
    model = transformers.CLIPModel._from_config(config, attn_implementation="eager").eval()
    pixels = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        outputs = model(torch.tensor([[1, 2]]), pixels, output_attentions=True)
    image = outputs.vision_model_output
    assert from_hugging_face(image, config, pixels).grid == (4, 4)
    with pytest.raises(ValueError, match=r"image encoder: `outputs\.vision_model_output`"):
        from_hugging_face(outputs, config, pixels)


@pytest.mark.parametrize("name", ["vit", "siglip"])
def test_other_implementations_are_refused_by_name(name):
    model = make(name, "sdpa")
    pixels = torch.rand(1, 3, 32, 32)
    for more in ({}, {"output_attentions": True}):
        outputs = model(pixels, **more)
        with pytest.raises(ValueError, match=r"has 'sdpa'\. .*`attn_implementation=\"eager\"`"):
            from_hugging_face(outputs, model.config, pixels)
    eager = make(name)
    outputs = eager(pixels)
    with pytest.raises(ValueError, match="call it with `output_attentions=True`"):
        from_hugging_face(outputs, eager.config, pixels)


def swin():
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    return transformers.SwinModel, config


def segformer():
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], hidden_sizes=[8, 8, 16, 16]
    )
    return transformers.SegformerModel, config


@pytest.mark.parametrize("make_one", [swin, segformer])
def test_hierarchical_models_are_refused(make_one):
    kind, config = make_one()
    model = kind._from_config(config, attn_implementation="eager").eval()
    pixels = torch.rand(2, 3, 32, 32)
    outputs = model(pixels, output_attentions=True)
    with pytest.raises(ValueError, match=rf"those of {config.model_type} are .*affinity\(features"):
        from_hugging_face(outputs, config, (32, 32))


def test_another_size_is_refused_and_the_right_one_named():
    model = make("dinov2")
    with torch.no_grad():
        outputs = model(torch.rand(1, 3, 32, 32), output_attentions=True)
    with pytest.raises(ValueError, match=r"224 x 224 .* T=17 tokens.*32 x 32 would fit"):
        from_hugging_face(outputs, model.config, (224, 224))
    with pytest.raises(TypeError, match=r"Pass `model\.config`"):
        from_hugging_face(outputs, model, (32, 32))


def test_training_mode_is_refused():
    kind, config, *_ = MODELS["vit"]
    config = transformers.ViTConfig(**TINY, **MLP, attention_probs_dropout_prob=0.5)
    model = kind._from_config(config, attn_implementation="eager").train()
    torch.manual_seed(0)
    outputs = model(torch.rand(1, 3, 32, 32), output_attentions=True)
    with pytest.raises(ValueError, match=r"call `model\.eval\(\)` first"):
        from_hugging_face(outputs, config, (32, 32))


def recipe(part, **names):
    """Run the block of docs/attention.md that has `part`."""
    text = (Path(__file__).parents[3] / "docs" / "attention.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if part in block]
    exec(compile(block, "attention.md", "exec"), names)
    return names["attention"]


def test_recipe_for_hugging_face(tmp_path):
    model = make("dinov2 with registers")
    model.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    found = recipe("AutoModel", name=str(tmp_path), pixel_values=pixels)
    with torch.no_grad():
        hidden = model(pixels, output_hidden_states=True).hidden_states
    assert_close(found.weights, expected(model, hidden, 2, 5), atol=1e-5, rtol=1e-4)


def test_recipe_for_timm():
    attention = recipe("timm_model", timm_model=tiny_vit("registers"))
    assert isinstance(attention, AttentionSource)
    assert attention.attention(images(1, 56, 84)).grid == (4, 6)


def test_recipe_for_diffusers():
    from ovss_refine import load_attention

    made = tiny_parts(2)
    parts = {name: getattr(made, name) for name in ("vae", "unet", "scheduler", "prompt")}
    attention = recipe("Parts(", load_attention=load_attention, **parts)
    found = attention.attention(images(1, 64, 64))
    expected = load_attention("sd2", model=made, resolution=64).attention(images(1, 64, 64))
    assert_close(found.weights, expected.weights)


class Block(torch.nn.Module):
    """Self-attention with a softmax of its own."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads, self.softmax = heads, torch.nn.Softmax(dim=-1)
        self.to_q, self.to_k = torch.nn.Linear(width, width), torch.nn.Linear(width, width)

    def forward(self, x):
        q, k = (
            one(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (self.to_q, self.to_k)
        )
        weights = self.softmax(q @ k.mT / q.shape[-1] ** 0.5)  # [B, A, T, T]
        return x + weights.mean(1) @ x


class OwnModel(torch.nn.Module):
    """Two blocks over a class token and patches of 8 x 8."""

    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 16, 8, 8)
        self.blocks = torch.nn.ModuleList([Block(), Block()])

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x


def test_recipes_for_a_module_of_one_s_own():
    model = randomise(OwnModel(), 0.4)
    pixels = images(2, 32, 48)
    found = recipe("softmax", own_model=model, pixel_values=pixels, torch=torch)
    with torch.no_grad():
        x = model.patches(pixels).flatten(2).mT
        x = model.blocks[0](torch.cat([x.mean(1, keepdim=True), x], dim=1))
        q, k = (one(x).double().numpy() for one in (model.blocks[1].to_q, model.blocks[1].to_k))
    whole, alone = np.zeros((2, 24, 24)), np.zeros((2, 24, 24))
    for a in range(2):
        own = slice(8 * a, 8 * a + 8)
        exp = np.exp(q[..., own] @ k[..., own].transpose(0, 2, 1) / np.sqrt(8))
        whole += (exp / exp.sum(-1, keepdims=True))[:, 1:, 1:]
        alone += exp[:, 1:, 1:] / exp[:, 1:, 1:].sum(-1, keepdims=True) / 2
    wanted = torch.from_numpy(whole / whole.sum(-1, keepdims=True)).float()
    assert found.grid == (4, 6)
    assert_close(found.weights, wanted, atol=1e-5, rtol=1e-4)
    factors = recipe("to_q", own_model=model, pixel_values=pixels, torch=torch, heads=2)
    rows = torch.cat([block for _, block in factors.blocks()], dim=1)
    assert isinstance(factors, Attention)
    assert_close(rows, torch.from_numpy(alone).float(), atol=1e-5, rtol=1e-4)
    assert not any(m._forward_hooks for m in model.modules())
