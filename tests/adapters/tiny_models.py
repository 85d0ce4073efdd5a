"""Tiny models of the real classes, with random weights large enough to make a difference."""

import diffusers
import timm
import torch
import transformers
from torch import nn

from ovss_refine_adapters.backbones.diffusion import Parts
from ovss_refine_adapters.logits.clip_dinoiser import DinoiserHeads
from ovss_refine_adapters.logits.talk2dino_projection import TextProjection
from ovss_refine_adapters.logits.tcl_masker import TclMasker

FAMILIES = {
    "dino": "vit_base_patch8_224.dino",
    "dinov2": "vit_base_patch14_dinov2.lvd142m",
    "registers": "vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov3": "vit_base_patch16_dinov3.lvd1689m",
    "dinov3 qkvb": "vit_base_patch16_dinov3_qkvb.lvd1689m",
    "clip": "vit_base_patch16_clip_quickgelu_224.openai",
    "siglip": "vit_base_patch16_siglip_256.v2_webli",
    "eva02": "eva02_base_patch14_224.mim_in22k",
    "pe": "vit_pe_spatial_base_patch16_512.fb",
}
PREFIX = {"siglip": 0, "registers": 5, "dinov3": 5, "dinov3 qkvb": 5}  # else one, the class token
TINY = {"depth": 3, "embed_dim": 64, "num_heads": 2}


def randomise(model, std=0.3):
    """Redraw every parameter, including biases, norms and tables."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return model.eval()


def tiny_vit(family="dino", dynamic_img_size=True, **more):
    name = FAMILIES.get(family, family)
    options = TINY | {"dynamic_img_size": dynamic_img_size} | more
    return randomise(timm.create_model(name, pretrained=False, num_classes=0, **options))


def images(B=2, H=64, W=96):
    return torch.rand(B, 3, H, W, generator=torch.Generator().manual_seed(1))


def tiny_projection(patches=64):
    """Talk2DINO's, from the text of `tiny_clip` to the patches of `tiny_vit`."""
    return randomise(TextProjection(24, patches))


def tiny_heads(channels=64):
    """CLIP-DINOiser's, for the width of `tiny_clip`."""
    return randomise(DinoiserHeads(channels, 8), 0.1)


def tiny_masker(channels=64, joint=24):
    """TCL's, for the widths of `tiny_clip`."""
    masker = randomise(TclMasker(channels, joint), 0.1)
    for name, parameter in masker.named_parameters():
        if name.endswith(("ln_1.weight", "ln_2.weight", "norm.weight", "ln.weight", "gate")):
            parameter.data += 0.5  # else little depends on the block and the convolutions
    masker.sim2mask.w.data.fill_(9.0)
    masker.sim2mask.b.data.fill_(-2.0)
    return masker


def tiny_groupvit(seed=6):
    """A GroupViT with a native grid of 4 x 4 patches of 16 pixels, 6 and 3 groups.

    With most seeds some patch is so nearly in two groups that images in half precision move it.
    """
    vision = {
        "image_size": 64,
        "patch_size": 16,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "depths": [1, 1, 1],
        "num_hidden_layers": 3,
        "num_group_tokens": [6, 3, 0],
        "num_output_groups": [6, 3, 3],
        "mlp_ratio": 2,
    }
    text = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = transformers.GroupViTConfig(
        vision_config=vision, text_config=text, projection_dim=24, projection_intermediate_dim=20
    )
    model = transformers.GroupViTModel(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        # So that no group takes every patch.
        norm = "norm" in name and name.endswith("weight")
        wide = ("token", "position", "projection", "assign.q_proj", "assign.k_proj")
        std = 1.0 if any(part in name for part in wide) else 0.3
        nn.init.normal_(parameter, mean=float(norm), std=std, generator=generator)
    model.logit_scale.data.fill_(3.5)
    return model.eval()


def tiny_vae():
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    )
    return randomise(vae, 0.2)


def tiny_unet(version=2, **more):
    """A UNet built like that of version 1.5 (heads by number) or 2 (heads by their width)."""
    options = {
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 24,
        "attention_head_dim": (2, 4) if version == 2 else 4,
        "norm_num_groups": 8,
        "use_linear_projection": version == 2,
    }
    unet = randomise(diffusers.UNet2DConditionModel(**(options | more)), 0.15)
    for name, parameter in unet.named_parameters():
        if "attn1.to_q" in name or "attn1.to_k" in name:
            parameter.data *= 5  # else every map is nearly uniform
    return unet


def tiny_parts(version=2, **more):
    prompt = torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(2))
    scheduler = diffusers.DDPMScheduler()
    return Parts(tiny_vae(), tiny_unet(version, **more), scheduler, prompt)
