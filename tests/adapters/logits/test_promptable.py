"""Promptable models of transformers: the models' own outputs, sizes, text, folders, conformance."""

import functools
import json
import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from open_clip import SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from adapters.tiny_clip import CLASSES, images
from adapters.tiny_promptable import MAKE, tips_processor
from ovss_refine import load_logits
from ovss_refine.registry import MissingWeightsError
from ovss_refine.testing import check_logits_source
from ovss_refine_adapters.backbones import promptable
from ovss_refine_adapters.logits.promptable import PromptableLogits, without_padding

PROMPTS = ["cat", "kitten", "dog", "grass"]  # of CLASSES
ON_CLIP = [kind for kind in MAKE if kind != "tipsv2"]


@functools.cache
def model(kind):
    if not hasattr(transformers, promptable.FAMILIES[kind][0]):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    return MAKE[kind]()


def make(kind, classes=CLASSES, **options):
    plain = {"model": model(kind), "cache_dir": None}
    if kind == "tipsv2":
        plain |= {"size": 56, "processor": tips_processor()}
    if kind == "clipseg":
        plain |= {"size": 64}
    return PromptableLogits(classes, **(plain | options))


def resized(x, size):
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)


def normalised(x, mean, std):
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def tokens(texts, context):
    return SimpleTokenizer(context_length=context)(texts)


def own_clipseg(x, prompt):
    """The maps of the whole model, one prompt at a time, [B, h, w]."""
    ids = tokens([f"a photo of a {prompt}."], 77).expand(len(x), -1)
    pixels = normalised(resized(x, (64, 64)), *IMAGENET)
    return model("clipseg")(input_ids=ids, pixel_values=pixels).logits


def own_owl(kind, x, prompt):
    ids = tokens([f"a photo of a {prompt}."] * len(x), 16)
    pixels = normalised(resized(x, (64, 64)), *CLIP)
    logits = model(kind)(input_ids=ids, pixel_values=pixels).logits  # [B, N, 1]
    return logits[..., 0].view(len(x), 4, 4)


def own_sam3(x, prompt):
    ids = tokens([prompt], 32).expand(len(x), -1)
    mask = ids != 0
    pixels = normalised(resized(x, (56, 56)), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    out = model("sam3")(pixel_values=pixels, input_ids=ids, attention_mask=mask.long())
    return out.semantic_seg[:, 0]


OWN = {
    "clipseg": own_clipseg,
    "owlvit": functools.partial(own_owl, "owlvit"),
    "owlv2": functools.partial(own_owl, "owlv2"),
    "sam3": own_sam3,
}


@pytest.mark.parametrize("kind", ON_CLIP)
def test_logits_are_those_of_the_whole_model(kind):
    size = (64, 64) if kind == "owlv2" else (48, 80)  # padding has its own test
    x = images(2, *size)
    logits = make(kind).logits(x)
    assert (logits.scale, logits.names) == (1, ("cat", "dog", "grass"))
    with torch.no_grad():
        wanted = torch.stack([OWN[kind](x, prompt) for prompt in PROMPTS], dim=1)
    assert_close(logits.values, wanted, atol=2e-5, rtol=1e-5)
    assert (logits.values[:, 0] - logits.values[:, 2]).abs().max() > 2e-3


def test_tipsv2_is_the_cosine_over_the_temperature():
    x, tips = images(2, 50, 100), model("tipsv2")
    got = make("tipsv2").logits(x).values
    assert got.shape[2:] == (4, 8)  # the shorter side is 56 pixels
    processor = tips_processor()
    texts = [f"a photo of a {prompt}." for prompt in PROMPTS]
    for k, text in enumerate(texts):
        with torch.no_grad():
            ids = processor(text=[text], return_tensors="pt")  # not padded
            out = tips(pixel_values=resized(x, (56, 112)), **ids)
            tokens = out.vision_model_output.last_hidden_state[:, 2:]  # a class token, a register
            cosines = F.cosine_similarity(tokens, out.text_embeds, dim=-1)
        assert_close(got[:, k], (cosines / 0.05).view(2, 4, 8), atol=1e-4, rtol=1e-4)


def test_owlv2_pads_to_a_square_and_cuts_the_padding_off():
    x = images(1, 32, 64)
    square = torch.zeros(1, 3, 64, 64)
    square[:, :, :32] = x
    whole = make("owlv2").logits(square).values
    got = make("owlv2").logits(x).values
    assert_close(got, whole[:, :, :2])
    tall = make("owlv2").logits(x.mT.contiguous()).values
    assert tall.shape[2:] == (4, 2)


def test_the_cut_is_where_the_image_ends_inside_a_cell():
    g = 10
    ramp = (torch.arange(g) + 0.5) / g  # where a cell's centre is in the square
    maps = torch.stack([ramp[:, None].expand(g, g), ramp.expand(g, g)])[None]
    got = without_padding(maps, (33, 100))
    assert got.shape == (1, 2, 3, 10)
    assert_close(got[0, 0, :, 0], 0.33 * (torch.arange(3) + 0.5) / 3)
    assert_close(got[0, 1, 0], ramp)


@pytest.mark.parametrize("kind", ON_CLIP)
def test_background_is_a_constant_probability(kind):
    x = images(1, 48, 80)
    logits = make(kind, ["background", *CLASSES], background=0.9).logits(x)
    assert logits.names == ("background", "cat", "dog", "grass")
    assert_close(logits.values[:, 1:], make(kind).logits(x).values)
    assert_close(logits.values[:, 0].unique(), torch.tensor([math.log(9)]))


def test_background_must_be_a_probability_of_log_odds():
    with pytest.raises(ValueError, match=r"`background` must be None .* not log-odds; got 0\.5"):
        make("tipsv2", ["background", "a"], background=0.5)
    with pytest.raises(ValueError, match="`background` must be"):
        make("clipseg", ["background", "a"], background=1)
    with pytest.raises(ValueError, match="`classes` must begin with the background"):
        make("clipseg", background=0.5)


def test_templates():
    two = ["a photo of a {}.", "the {}"]
    source = make("clipseg", templates=two)
    each = [make("clipseg", templates=[t]).text for t in two]
    assert_close(source.text, (each[0] + each[1]) / 2)
    unit = [F.normalize(make("owlv2", templates=[t]).text, dim=-1) for t in two]
    assert_close(make("owlv2", templates=two).text, F.normalize(unit[0] + unit[1], dim=-1))
    with pytest.raises(ValueError, match="`templates` must be a single one for Sam3Model; got 2"):
        make("sam3", templates=two)


def test_windows_are_parts_of_the_resized_image():
    source = make("clipseg", short_side=64, window=64, stride=64)
    x = images(1, 64, 128)
    got = source.logits(x).values
    halves = [make("clipseg").logits(part.contiguous()).values for part in x.split(64, dim=3)]
    assert_close(got, torch.cat(halves, dim=3), atol=1e-5, rtol=1e-4)


def test_other_classes_on_the_same_model():
    source = make("sam3")
    other = source.with_classes(["lamp", "desk/table"])
    assert other.family is source.family
    x = images(1, 48, 80)
    assert torch.equal(
        other.logits(x).values, make("sam3", ["lamp", "desk/table"]).logits(x).values
    )
    assert source.logits(x).names == ("cat", "dog", "grass")


class Fake:
    """A processor whose tokens and pixels differ from CLIP's."""

    class image_processor:
        do_normalize = True
        image_mean, image_std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]

    @staticmethod
    def tokenizer(texts, padding=False, max_length=0, return_tensors=None):
        rows = [[49406, *map(ord, text), 49407] for text in texts]
        if padding == "max_length" and return_tensors == "pt":
            rows = torch.tensor([row + [49407] * (max_length - len(row)) for row in rows])
        return transformers.BatchEncoding({"input_ids": rows})


def test_a_processor_brings_its_tokens_and_pixels():
    source, x = make("sam3", processor=Fake), images(1, 56, 56)
    ids = torch.tensor([[49406, *map(ord, "dog"), 49407]])  # not padded
    with torch.no_grad():
        pixels = normalised(x, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
        wanted = model("sam3")(pixel_values=pixels, input_ids=ids).semantic_seg
    assert_close(source.logits(x).values[:, 2:3], wanted, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"must fit in the model's 32 tokens .* got 42 for 'aaa"):
        make("sam3", ["a" * 40, "b"], processor=Fake)


def test_other_tokens_than_clips_need_a_processor():
    with pytest.raises(ValueError, match=r"`processor` must be given .* Tipsv2Model with 300"):
        make("tipsv2", processor=None)


@pytest.mark.parametrize("kind", ["clipseg", "owlv2", "sam3", "tipsv2"])
def test_model_from_a_folder(tmp_path, kind):
    model(kind).save_pretrained(tmp_path)
    x = images(1, 48, 80)
    got = make(kind, model=f"local-dir:{tmp_path}").logits(x).values
    assert_close(got, make(kind).logits(x).values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", MAKE)
def test_half_precision(tmp_path, kind, dtype):
    model(kind).save_pretrained(tmp_path)
    x = images(1, 48, 80)
    source = make(kind, model=tmp_path, dtype=dtype)
    assert {p.dtype for p in source.family.model.parameters()} == {getattr(torch, dtype)}
    values, wanted = source.logits(x).values, make(kind).logits(x).values
    assert values.dtype == torch.float32
    assert 0 < (values - wanted).abs().mean() / wanted.std() < 0.1
    with pytest.raises(ValueError, match=r"`dtype` must be None with .*ready"):
        make(kind, dtype=dtype)


def test_sam3_from_the_folder_of_its_release(tmp_path):
    """There it is a part of a model of video, with other parts' weights beside its own."""
    model("sam3").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    release = {"model_type": "sam3_video", "detector_config": config}
    (tmp_path / "config.json").write_text(json.dumps(release))
    weights = load_file(tmp_path / "model.safetensors")
    weights = {f"detector_model.{name}": value for name, value in weights.items()}
    save_file(weights | {"tracker_model.x": torch.ones(2)}, tmp_path / "model.safetensors")
    x = images(1, 48, 80)
    assert_close(make("sam3", model=tmp_path).logits(x).values, make("sam3").logits(x).values)


def test_wrong_folders_are_refused(tmp_path):
    model("clipseg").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    before = json.loads(config.read_text())
    config.write_text(json.dumps(before | {"model_type": "clip"}))
    known = "clipseg or owlvit or owlv2 or sam3 or sam3_video or tipsv2; got "
    with pytest.raises(ValueError, match=f"{known}'clip'"):
        make("clipseg", model=tmp_path)
    config.write_text(json.dumps(before | {"model_type": ["clipseg"]}))
    with pytest.raises(ValueError, match=known):
        make("clipseg", model=tmp_path)
    config.write_text(json.dumps(before | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(ValueError, match="which may run code that came with the weights"):
        make("clipseg", model=tmp_path)
    config.write_text(json.dumps(before))
    (tmp_path / "model.safetensors").unlink()
    torch.save(model("clipseg").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"must hold `model\.safetensors`; got .*bin"):
        make("clipseg", model=tmp_path)


def test_a_type_that_transformers_does_not_have_yet(tmp_path, monkeypatch):
    model("sam3").save_pretrained(tmp_path)
    monkeypatch.setitem(promptable.FAMILIES, "sam3", ("Sam4Model", promptable.Sam3))
    with pytest.raises(ValueError, match=r"transformers .* has; got 'sam3', which a later version"):
        PromptableLogits(CLASSES, model=tmp_path, cache_dir=None)


def test_missing_weights_are_one_sentence(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingWeightsError, match="`CIDAS/clipseg-rd64-refined` must be"):
        PromptableLogits(CLASSES, model="CIDAS/clipseg-rd64-refined")


def test_wrong_models_and_options_are_refused():
    other = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    with pytest.raises(ValueError, match=r"must be a CLIPSegFor.* or Tipsv2Model; got CLIPText"):
        make("clipseg", model=other)
    with pytest.raises(ValueError, match=r"`model` must be a name on the hub.*; got None"):
        make("clipseg", model=None)
    with pytest.raises(ValueError, match="`size` must be a positive multiple of the patch size 16"):
        make("clipseg", size=60)
    with pytest.raises(ValueError, match=r"`size` must be None or 56 for Sam3Model, .* got 84"):
        make("sam3", size=84)


@pytest.mark.parametrize(("kind", "grid"), [("clipseg", (96, 96)), ("owlv2", (4, 6))])
def test_other_sizes(kind, grid):
    x = images(1, 48, 80)
    got = make(kind, size=96).logits(x).values
    assert got.shape[2:] == grid
    assert make(kind).logits(x).values.shape[2:] != grid


@pytest.mark.parametrize("kind", MAKE)
def test_conformance(kind):
    check_logits_source(functools.partial(make, kind))


def test_conformance_with_windows_and_background():
    options = {"short_side": 64, "window": 64, "stride": 32, "background": 0.5}
    check_logits_source(functools.partial(make, "owlv2", ["background", *CLASSES], **options))


def test_it_is_registered():
    options = {"model": model("clipseg"), "size": 64, "cache_dir": None}
    source = load_logits("transformers", classes=CLASSES, **options)
    assert isinstance(source, PromptableLogits)
