"""The image tower in parts, which compose to the model they come from."""

import pytest
import torch
from torch.testing import assert_close

from adapters.tiny_clip import images, tiny_clip
from ovss_refine_adapters.backbones.clip_tower import Tower, self_similarity, to_map


@pytest.fixture
def model():
    return tiny_clip()


def test_parts_compose_to_the_model(model):
    tower = Tower(model.visual)
    pixels = images(2, 32, 32)
    with torch.no_grad():
        x, kept = tower.blocks(tower.stem(pixels), 0, 2, keep=[0, 1])
        assert_close(kept[1], x)
        assert_close(kept[0], tower.block(0, tower.stem(pixels)))
        q, k, v = tower.qkv(2, x)
        y = x + tower.project(2, self_similarity(q, k) @ v)
        y = y + tower.feed_forward(2, y)
        assert_close(y, tower.block(2, x))
        wanted = model.visual.forward_intermediates(
            pixels, indices=1, normalize_intermediates=True, output_extra_tokens=True
        )
        patches = wanted["image_intermediates"][0].flatten(2).mT @ model.visual.proj
        assert_close(tower.head(y)[:, 1:], patches)
        assert_close(tower.head(y)[:, 0], model.encode_image(pixels))


def test_layer_scale_is_applied():
    model = tiny_clip(ls_init_value=0.1)
    tower = Tower(model.visual)
    with torch.no_grad():
        x = tower.stem(images(1, 32, 32))
        q, k, v = tower.qkv(0, x)
        y = x + tower.project(0, self_similarity(q, k) @ v)
        assert_close(y + tower.feed_forward(0, y), tower.block(0, x))


@pytest.mark.parametrize("names", ["q", "kv", "qv", "vk"])
def test_only_the_named_projections_are_returned(model, names):
    tower = Tower(model.visual)
    with torch.no_grad():
        x = tower.stem(images(2, 32, 32))
        every = dict(zip("qkv", tower.qkv(1, x), strict=True))
        assert not every["q"].allclose(every["k"], atol=0.1)
        for name, got in zip(names, tower.qkv(1, x, names), strict=True):
            assert got.shape == (2, 2, 17, 32)
            assert_close(got, every[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("vision", [{}, {"ls_init_value": 0.1}, {"mlp_ratio": 2.0}])
def test_a_block_of_its_projections_is_the_block(vision):
    tower = Tower(tiny_clip(**vision).visual)
    with torch.no_grad():
        x = tower.stem(images(2, 32, 32))
        q, k, v = tower.qkv(1, x)
        wanted = tower.block(1, x)
        assert wanted.abs().max() > 1
        assert_close(tower.block_of(1, x, q, k, v), wanted, atol=3e-6, rtol=0)
        assert_close(tower.class_token(1, x, k, v), wanted[:, :1], atol=3e-6, rtol=0)
        some = tower.block_of(1, x[:, 3:5], q[:, :, 3:5], k, v)
        assert_close(some, wanted[:, 3:5], atol=3e-6, rtol=0)


def test_a_block_of_its_projections_computes_in_the_dtype_of_the_weights(model):
    tower = Tower(model.to(torch.bfloat16).visual)
    with torch.no_grad():
        x = tower.stem(images(1, 32, 32))
        got = tower.block_of(1, x, *tower.qkv(1, x))
        assert got.dtype == torch.bfloat16
        assert_close(got.float(), tower.block(1, x).float(), atol=0.05, rtol=0.02)


def test_partial_patches_are_dropped(model):
    tower = Tower(model.visual)
    pixels = images(1, 47, 79)
    with torch.no_grad():
        assert tower.grid(47, 79) == (5, 9)
        assert_close(tower.stem(pixels), tower.stem(pixels[..., :40, :72]))


def test_faithful_keeps_the_position_table(model):
    wide = images(1, 16, 64)  # 2 x 8 patches, as many as the native 4 x 4
    with torch.no_grad():
        as_released = Tower(model.visual, faithful=True).stem(wide)
        resized = Tower(model.visual, faithful=False).stem(wide)
        assert float((as_released - resized).abs().max()) > 0.1
        native = images(1, 32, 32)
        assert_close(Tower(model.visual, False).stem(native), Tower(model.visual).stem(native))
        visual = model.visual
        x = visual.conv1(wide).flatten(2).mT + visual.positional_embedding[1:]
        assert_close(as_released[:, 1:], visual.ln_pre(x))


def test_map_is_row_major():
    patches = torch.arange(6.0).view(1, 6, 1)
    assert to_map(patches, (2, 3))[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_image_smaller_than_a_patch(model):
    with pytest.raises(ValueError, match=r"at least one patch of 8 x 8 pixels; got 7 x 64"):
        Tower(model.visual).stem(images(1, 7, 64))


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"timm_model_name": "vit_tiny_patch16_224"}, r"VisionTransformer.*; got TimmModel"),
        ({"attentional_pool": True}, r"no attention pooling"),
        ({"qk_norm": True}, r"plain attention blocks.*CustomResidualAttentionBlock"),
        ({"image_size": (32, 64)}, r"square native grid; got 4 x 8"),
    ],
)
def test_other_towers_are_refused(vision, message):
    with pytest.raises(ValueError, match=message):
        Tower(tiny_clip(**vision).visual)


def test_half_precision_tower_gives_float32(model):
    half = Tower(model.to(torch.bfloat16).visual)
    with torch.no_grad():
        x = half.stem(images(1, 32, 32))
        assert x.dtype == torch.bfloat16
        q, k, v = half.qkv(2, x)
        assert q.dtype == torch.float32
        assert half.head(half.project(2, self_similarity(q, k) @ v)).dtype == torch.float32
