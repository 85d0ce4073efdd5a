"""Tiny text-promptable models of transformers, with random weights large enough to differ."""

import torch
import transformers
from torch import nn

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 16,
}


def drawn(model, std=0.3, seed=0):
    """Redraw every parameter; norms around one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        norm = "norm" in name and name.endswith("weight")
        # So that prompts differ: random text towers embed all texts alike.
        wide = "token_embedding" in name or "film" in name or "text_projection" in name
        nn.init.normal_(parameter, float(norm), 1.0 if wide else std, generator=generator)
    return model.eval()


def tiny_clipseg():
    config = transformers.CLIPSegConfig(
        text_config=TEXT | {"eos_token_id": 49407},
        vision_config=VISION | {"image_size": 64},
        projection_dim=24,
        extract_layers=[0, 1, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    return drawn(transformers.CLIPSegForImageSegmentation(config))


def tiny_owl(kind):
    config_class, model_class = {
        "owlvit": (transformers.OwlViTConfig, transformers.OwlViTForObjectDetection),
        "owlv2": (transformers.Owlv2Config, transformers.Owlv2ForObjectDetection),
    }[kind]
    config = config_class(
        text_config=TEXT | {"max_position_embeddings": 16},
        vision_config=VISION | {"image_size": 64},
        projection_dim=16,
    )
    return drawn(model_class(config))


def tiny_sam3():
    backbone = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "pretrain_image_size": 28,
        "patch_size": 14,
        "window_size": 2,
        "global_attn_indexes": [1],
    }
    width = {"hidden_size": 16, "num_attention_heads": 2}
    feed_forward = {"num_layers": 1, "intermediate_size": 24, "dropout": 0.0}
    config = transformers.Sam3Config(
        vision_config={
            "backbone_config": backbone | {"model_type": "sam3_vit_model"},
            "fpn_hidden_size": 16,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={
            **TEXT,
            "vocab_size": 49408,
            "projection_dim": 8,
            "max_position_embeddings": 32,
            "eos_token_id": 49407,
        },
        geometry_encoder_config=width | feed_forward,
        detr_encoder_config=width | feed_forward,
        detr_decoder_config=width | feed_forward | {"num_queries": 3},
        mask_decoder_config=width | {"num_upsampling_stages": 2},
    )
    return drawn(transformers.Sam3Model(config))


def tiny_tipsv2():
    text = TEXT | {"vocab_size": 300, "max_position_embeddings": 64}
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    config = transformers.Tipsv2Config(text_config=text, vision_config=vision)
    model = drawn(transformers.Tipsv2Model(config))
    model.temperature.data.fill_(0.05)
    return model


def tips_processor():
    """A tokenizer of letters, with the images' own pixels."""
    tokens = ["<pad>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz."]
    tokenizer = transformers.Tipsv2Tokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[])
    images = transformers.Tipsv2ImageProcessor()
    return transformers.Tipsv2Processor(images, tokenizer)


MAKE = {
    "clipseg": tiny_clipseg,
    "owlvit": lambda: tiny_owl("owlvit"),
    "owlv2": lambda: tiny_owl("owlv2"),
    "sam3": tiny_sam3,
    "tipsv2": tiny_tipsv2,
}
