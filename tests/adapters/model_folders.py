"""Folders of tiny models as the libraries write them, and what makes one hostile."""

import json
from pathlib import Path

import diffusers
import transformers
from safetensors.torch import save_file
from timm.models import save_for_hf

from adapters.tiny_clip import CONFIG, tiny_clip
from adapters.tiny_models import TINY, randomise, tiny_groupvit, tiny_unet, tiny_vae, tiny_vit

ENDS = ("<|startoftext|>", "<|endoftext|>")


def open_clip_folder(folder):
    pixels = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = {"model_cfg": CONFIG, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(tiny_clip().state_dict(), folder / "open_clip_model.safetensors")
    return folder


def timm_folder(folder, **change):
    model = tiny_vit("registers", **change)
    save_for_hf(model, folder, model_args=TINY | change, safe_serialization=True)
    return model


def groupvit_folder(folder):
    tiny_groupvit().save_pretrained(folder)
    return folder


def diffusion_folder(folder):
    tiny_vae().save_pretrained(folder / "vae")
    tiny_unet().save_pretrained(folder / "unet")
    diffusers.DDPMScheduler().save_pretrained(folder / "scheduler")
    config = transformers.CLIPTextConfig(
        vocab_size=5,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=3,
        eos_token_id=4,
        pad_token_id=4,
    )
    randomise(transformers.CLIPTextModel(config)).save_pretrained(folder / "text_encoder")
    save_tokenizer(folder / "tokenizer", ["a</w>", "a", "!", *ENDS])
    return folder


def save_tokenizer(folder, tokens):
    """Write a CLIP tokenizer, from files: the releases of transformers agree on those only."""
    folder.mkdir(exist_ok=True)
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    vocab.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    merges.write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(vocab), str(merges), model_max_length=77, pad_token=ENDS[1]
    )
    tokenizer.save_pretrained(folder)


def add_code(folder, marker):
    """Put a module into a folder, and into each of its own, that writes `marker` if imported."""
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        for name in ("evil", "pipeline", "modeling_evil", "tokenization_evil"):
            text = f"open({str(marker)!r}, 'w').close()\nclass Evil: ...\n"
            (place / f"{name}.py").write_text(text)


def change(path: Path, *where, **entries):
    """Set entries of a JSON file, of the object that the keys `where` lead to."""
    config = json.loads(path.read_text()) if path.is_file() else {}
    inside = config
    for key in where:
        inside = inside.setdefault(key, {})
    inside.update(entries)
    path.write_text(json.dumps(config))
