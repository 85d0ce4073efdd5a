"""Every family of timm's models: a map that equals the model's own, or a refusal by name."""

import copy

import pytest
import timm
from torch.testing import assert_close

from adapters.tiny_models import TINY, images, randomise
from ovss_refine.testing import check_attention_source
from ovss_refine_adapters.attention.vit import ViTAttention
from ovss_refine_adapters.backbones.timm import TimmBackbone

GEMMA = {"head_dim": 32, "intermediate_size": 64, "position_embedding_size": 64}
# One name of each kind of vision transformer with plain attention: the module of timm, a difference
# in the blocks, the tokens or the positions. With what makes it tiny.
FAMILIES = {
    "aimv2_large_patch14_224": {},
    "beit3_base_patch16_224": {},
    "deepseek_vit_412m": {},
    "deepseek_vit_412m_enc": {},
    "deit3_base_patch16_224": {},
    "deit_base_distilled_patch16_224": {},
    "eva02_base_patch14_224": {},
    "eva02_enormous_patch14_clip_224": {},
    "eva_giant_patch14_clip_224": {},
    "flexivit_base": {},
    "gemma4_vit_570m": GEMMA,
    "naflexvit_base_patch16_gap": {},
    "naflexvit_base_patch16_radio_v3": {},
    "qwen3_vit_88m": {},
    "qwen3_vit_88m_enc": {},
    "vit_base_mci_224": {"embed_dim": 768},
    "vit_base_patch14_reg1_tipsv2": {},
    "vit_base_patch16_clip_quickgelu_224": {},
    "vit_base_patch16_dinov3": {},
    "vit_base_patch16_rope_mixed_ape_224": {},
    "vit_base_patch16_rpn_224": {},
    "vit_base_patch16_radio_v3": {},
    "vit_base_patch16_sapiens2": {"num_kv_heads": (2, 2, 1)},
    "vit_base_patch16_siglip_gap_256": {},
    "vit_base_patch16_xp_224": {},
    "vit_base_r50_s16_224": {},
    "vit_medium_patch16_rope_reg1_gap_256": {},
    "vit_pe_core_base_patch16_224": {},
    "vit_pwee_patch16_reg1_gap_256": {},
    "vit_so150m2_patch16_reg1_gap_256": {},
    "vit_tiny_r_s16_p8_224": {},
    "vitamin_small_224": {"embed_dim": 384},
}


def tiny(name):
    options = TINY | FAMILIES[name]
    try:
        model = timm.create_model(name, num_classes=0, dynamic_img_size=True, **options)
    except TypeError as error:  # takes any size
        if "swiglu_align_to" in str(error):
            pytest.skip(f"timm {timm.__version__} cannot make {name}")
        model = timm.create_model(name, num_classes=0, **options)
    return randomise(model, 0.3)


def reference(model, x):
    """The last block's softmax, as the module computes it in float64 without fused attention."""
    model = copy.deepcopy(model).double()
    seen = []
    block = (model.blocks if hasattr(model, "blocks") else model.encoder.blocks)[-1]
    attn = getattr(block, "attn", block)
    attn.fused_attn = False
    attn.attn_drop.register_forward_hook(lambda _m, _a, output: seen.append(output))
    backbone = TimmBackbone(model)
    backbone.features(x)
    own = seen[0].mean(1)[:, backbone.prefix :, backbone.prefix :]  # heads, then prefix tokens
    return own / own.sum(-1, keepdim=True)


def installed(name):
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    return name


@pytest.mark.parametrize("name", FAMILIES)
def test_the_map_is_the_models_own(name):
    model, x = tiny(installed(name)), images(2, 96, 160)
    source = ViTAttention(model)
    got = source.attention(x)
    assert got.grid == tuple(source.backbone.features(x).shape[2:])
    assert got.grid[0] < got.grid[1]
    wanted = reference(model, x)
    assert wanted.std() * wanted.shape[-1] > 0.01  # not uniform, which would pass trivially
    # Of the largest entry: the model itself runs in float32, and its random weights are large.
    assert_close(got.weights.double(), wanted, atol=1e-4 * float(wanted.max()), rtol=0)
    for b in range(2):
        assert_close(source.attention(x[b : b + 1]).weights[0], got.weights[b])


@pytest.mark.parametrize(
    "name", ["deepseek_vit_412m", "gemma4_vit_570m", "vit_base_patch16_xp_224", "vitamin_small_224"]
)
@pytest.mark.parametrize("factors", [False, True])
def test_conformance_of_the_unusual(name, factors):
    check_attention_source(lambda: ViTAttention(tiny(installed(name)), factors=factors))


# Kinds of model without one softmax of q k^T over all patches, and what the refusal names.
REFUSED = {
    "beit_base_patch16_224": ("Beit with Attention", TINY),
    "cait_xxs24_224": ("Cait with TalkingHeadAttn", TINY),
    "coat_lite_tiny": ("CoaT with FactorAttnConvRelPosEnc", {}),
    "convit_tiny": ("ConVit with MHSA", {}),
    "convnext_atto": ("ConvNeXt with none", {}),
    "crossvit_tiny_240": ("CrossVit with Attention and CrossAttention and CrossAttentionBlock", {}),
    "davit_tiny": ("DaVit with ChannelAttention and WindowAttention", {}),
    "efficientvit_b0": ("EfficientVit with none", {}),
    "hiera_tiny_224": ("Hiera with MaskUnitAttention", {}),
    "levit_128s": ("LevitDistilled with Attention and AttentionDownsample", {}),
    "maxvit_rmlp_pico_rw_256": ("MaxxVit with AttentionCl and PartitionAttentionCl", {}),
    "mixer_s32_224": ("MlpMixer with none", {}),
    "mobilevit_xxs": ("ByobNet with Attention", {}),
    "mvitv2_tiny": ("MultiScaleVit with MultiScaleAttention", {}),
    "pit_ti_224": ("PoolingVisionTransformer with Attention", {}),
    "pvt_v2_b0": ("PyramidVisionTransformerV2 with Attention", {}),
    "resnet18": ("ResNet with none", {}),
    "sam2_hiera_tiny": ("HieraDet with MultiScaleAttention", {}),
    "samvit_base_patch16": ("VisionTransformerSAM with Attention", TINY),
    "swin_tiny_patch4_window7_224": ("SwinTransformer with WindowAttention", {}),
    "swinv2_cr_tiny_224": ("SwinTransformerV2Cr with WindowMultiHeadAttention", {}),
    "tnt_s_patch16_224": ("TNT with Attention", {"depth": 1}),
    "twins_svt_small": ("Twins with ", {}),
    "vit_base_patch16_18x2_224": ("VisionTransformer with Attention and ParallelThingsBlock", TINY),
    "vit_dlittle_patch16_reg1_gap_256": ("VisionTransformer with DiffAttention", TINY),
    "vit_dpwee_patch16_reg1_gap_256": ("VisionTransformer with DiffParallelScalingBlock", TINY),
    "vit_relpos_small_patch16_224": ("VisionTransformerRelPos with RelPosAttention", TINY),
    "volo_d1_224": ("VOLO with Attention and ", {}),
    "xcit_nano_12_p16_224": ("Xcit with ", {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_by_name_with_a_remedy(name):
    found, options = REFUSED[installed(name)]
    model = timm.create_model(name, num_classes=0, **options)
    with pytest.raises(ValueError, match="`model` must be a ") as refusal:
        ViTAttention(model)
    if not hasattr(model, "forward_intermediates"):  # in older versions
        found = f"got {type(model).__name__}. Pass "
    assert found in str(refusal.value)
    assert ('kind="affinity"' if " with " in found else "Affinity") in str(refusal.value)


def test_the_remedy_works_for_a_hierarchical_model():
    model = timm.create_model("pvt_v2_b0", num_classes=0).eval()
    got = ViTAttention(model, kind="affinity").attention(images(1, 64, 128))
    assert got.grid == (2, 4)
