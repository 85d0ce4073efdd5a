"""Models of transformers that give a map for a text: how each is prompted, and what it returns.

Sources: T. Lüddecke and A. Ecker, "Image Segmentation Using Text and Image Prompts", CVPR 2022
(CLIPSeg); M. Minderer et al., "Simple Open-Vocabulary Object Detection with Vision Transformers",
ECCV 2022 (OWL-ViT), and "Scaling Open-Vocabulary Object Detection", NeurIPS 2023 (OWLv2);
N. Carion et al., "SAM 3: Segment Anything with Concepts", 2025; B. Cao et al., "TIPSv2: Advancing
Vision-Language Pretraining with Enhanced Patch-Text Alignment", CVPR 2026.

Axes: B images, K prompts, n texts of L tokens, D numbers of an embedded text, (h, w) grid.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovss_refine_adapters.text import Templates

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NONE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
# Prompts that CLIPSeg's decoder is run for at once.
CHUNK = 16

Fit = Literal["stretch", "pad", "keep"]


class Promptable(ABC):
    """A family of models: how it takes images and texts.

    Attributes:
        pixels: mean and standard deviation of the pixels.
        fit: how images become the model's: stretched to a square, padded to one at the right and
            the bottom, or of any shape.
        any_size: whether the model takes other sizes than its configuration's.
        log_odds: whether a value is log(p / (1 - p)) of a probability of its own.
        templates: default of the option.
        average: whether texts of several templates can be averaged.
        unit: whether embedded texts are unit vectors.

    Args:
        model: of the family's class.
    """

    pixels: ClassVar[tuple[tuple[float, ...], tuple[float, ...]]] = CLIP
    fit: ClassVar[Fit] = "stretch"
    any_size: ClassVar[bool] = True
    log_odds: ClassVar[bool] = True
    templates: ClassVar[Templates] = "single"
    average: ClassVar[bool] = True
    unit: ClassVar[bool] = True

    def __init__(self, model: Any) -> None:
        """Keep the model."""
        self.model = model

    @property
    def side(self) -> int:
        """Default side of the model's images, or shorter side if they keep their shape."""
        return int(self.model.config.vision_config.image_size)

    @property
    def multiple(self) -> int:
        """What both sides of the model's images must be a multiple of."""
        return int(self.model.config.vision_config.patch_size)

    @property
    @abstractmethod
    def text_parts(self) -> Mapping[str, nn.Module]:
        """The modules that `encode` runs."""

    @abstractmethod
    def encode(self, tokens: Tensor) -> Tensor:
        """Embed [n, L] token ids: [n, D], not of unit length."""

    @abstractmethod
    def maps(self, pixels: Tensor, text: Tensor) -> Tensor:
        """Return a map of each prompt, [B, K, h, w].

        Args:
            pixels: [B, 3, H, W] normalised, of the model's size and dtype.
            text: [K, D] embedded prompts.
        """


class ClipSeg(Promptable):
    """A decoder on three blocks of CLIP, modulated by the prompt: log-odds of pixels."""

    pixels = IMAGENET
    unit = False

    @property
    def side(self) -> int:
        """That of the released evaluation; the configuration has CLIP's."""
        return 22 * self.multiple

    @property
    def text_parts(self) -> Mapping[str, nn.Module]:
        """CLIP's text side."""
        return {x: getattr(self.model.clip, x) for x in ("text_model", "text_projection")}

    def encode(self, tokens: Tensor) -> Tensor:
        """Project CLIP's pooled text."""
        clip = self.model.clip
        embedded: Tensor = clip.text_projection(clip.text_model(input_ids=tokens).pooler_output)
        return embedded

    def maps(self, pixels: Tensor, text: Tensor) -> Tensor:
        """Run the decoder for some prompts at a time."""
        seen = self.model.clip.vision_model(
            pixel_values=pixels, output_hidden_states=True, interpolate_pos_encoding=True
        ).hidden_states
        # The first is what enters the first block.
        blocks = [seen[i + 1] for i in self.model.config.extract_layers]
        chunks = [self._decode(blocks, chunk) for chunk in torch.split(text, CHUNK)]
        return torch.cat(chunks, dim=1)

    def _decode(self, blocks: list[Tensor], text: Tensor) -> Tensor:
        B, K = len(blocks[0]), len(text)
        repeated = tuple(x.repeat_interleave(K, dim=0) for x in blocks)
        logits: Tensor = self.model.decoder(repeated, text.repeat(B, 1)).logits  # [B * K, H, W]
        return logits.view(B, K, *logits.shape[-2:])


class OwlVit(Promptable):
    """A detector on CLIP: log-odds that the object at a patch is of the class."""

    inner: ClassVar[str] = "owlvit"

    @property
    def text_parts(self) -> Mapping[str, nn.Module]:
        """CLIP's text side."""
        inner = getattr(self.model, self.inner)
        return {x: getattr(inner, x) for x in ("text_model", "text_projection")}

    def encode(self, tokens: Tensor) -> Tensor:
        """Project CLIP's pooled text."""
        inner = getattr(self.model, self.inner)
        embedded: Tensor = inner.text_projection(inner.text_model(input_ids=tokens).pooler_output)
        return embedded

    def maps(self, pixels: Tensor, text: Tensor) -> Tensor:
        """Compare the detector's class embedding of each patch with the prompts."""
        features = self.model.image_embedder(pixel_values=pixels, interpolate_pos_encoding=True)[
            0
        ]  # [B, h, w, width]
        B, h, w, _ = features.shape
        queries = text[None].expand(B, -1, -1)
        logits: Tensor = self.model.class_predictor(features.flatten(1, 2), queries)[0]  # [B, N, K]
        return logits.mT.reshape(B, -1, h, w)


class Owlv2(OwlVit):
    """As OWL-ViT, on images that are padded to squares."""

    inner = "owlv2"
    fit = "pad"


class Sam3(Promptable):
    """The semantic output of SAM 3: log-odds that a pixel is of the concept."""

    pixels = HALF
    any_size = False
    templates = ("{}",)
    average = False
    unit = False

    @property
    def multiple(self) -> int:
        """The patch of the image encoder."""
        return int(self.model.config.vision_config.backbone_config.patch_size)

    @property
    def text_parts(self) -> Mapping[str, nn.Module]:
        """The text encoder and its projection."""
        return {x: getattr(self.model, x) for x in ("text_encoder", "text_projection")}

    def encode(self, tokens: Tensor) -> Tensor:
        """Embed every token, and say which belong to the text: [n, L * (C + 1)]."""
        ends = (tokens == self.model.config.text_config.eos_token_id).long()
        mask = ends.cumsum(dim=1) - ends == 0  # [n, L], true up to the first end
        features = self.model.get_text_features(
            input_ids=tokens, attention_mask=mask.long(), return_dict=True
        ).pooler_output  # [n, L, C]
        return torch.cat([features, mask[..., None].to(features.dtype)], dim=-1).flatten(1)

    def maps(self, pixels: Tensor, text: Tensor) -> Tensor:
        """Run all but the image encoder once for each prompt."""
        B = len(pixels)
        seen = self.model.vision_encoder(pixels)
        found = []
        width = self.model.config.detr_encoder_config.hidden_size + 1
        for row in text.view(len(text), -1, width):  # [L, C + 1]
            prompt = row.expand(B, -1, -1)
            embedded = SimpleNamespace(pooler_output=prompt[..., :-1])
            out = self.model(
                vision_embeds=seen, text_embeds=embedded, attention_mask=(prompt[..., -1] > 0.5)
            )
            found.append(out.semantic_seg)  # [B, 1, h, w]
        return torch.cat(found, dim=1)


class Tipsv2(Promptable):
    """Patches and texts of one space: cosines, divided by the learnt temperature."""

    pixels = NONE
    fit = "keep"
    log_odds = False

    @property
    def text_parts(self) -> Mapping[str, nn.Module]:
        """The text side."""
        return {"text_model": self.model.text_model}

    def encode(self, tokens: Tensor) -> Tensor:
        """Average over the tokens that are not padding."""
        mask = (tokens != self.model.config.text_config.pad_token_id).long()
        pooled: Tensor = self.model.text_model(input_ids=tokens, attention_mask=mask).pooler_output
        return pooled

    def maps(self, pixels: Tensor, text: Tensor) -> Tensor:
        """Compare patches, without class and register tokens, with the prompts."""
        config = self.model.config.vision_config
        tokens = self.model.vision_model(pixel_values=pixels).last_hidden_state
        patches = F.normalize(tokens[:, 1 + config.num_register_tokens :].float(), dim=-1)
        grid = (pixels.shape[2] // self.multiple, pixels.shape[3] // self.multiple)
        cosines: Tensor = text.float() @ patches.mT  # [B, K, N]
        maps = cosines.view(*cosines.shape[:2], *grid)
        return maps / float(self.model.temperature.detach())


# By `model_type`, the class of transformers, and how it is prompted.
FAMILIES: Mapping[str, tuple[str, type[Promptable]]] = {
    "clipseg": ("CLIPSegForImageSegmentation", ClipSeg),
    "owlvit": ("OwlViTForObjectDetection", OwlVit),
    "owlv2": ("Owlv2ForObjectDetection", Owlv2),
    "sam3": ("Sam3Model", Sam3),
    "sam3_video": ("Sam3Model", Sam3),  # the release, of which this is a part
    "tipsv2": ("Tipsv2Model", Tipsv2),
}


class TextSide(nn.Module):
    """The text side of a model, with the method that `text_features` calls.

    Args:
        family: the model; its parts are shared.
    """

    def __init__(self, family: Promptable) -> None:
        """Take the parts."""
        super().__init__()
        self.encode_text = family.encode
        for name, part in family.text_parts.items():
            self.add_module(name, part)
