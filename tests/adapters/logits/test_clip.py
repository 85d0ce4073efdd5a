"""The producers that rewire the last block: formulas, options, windows, batches, conformance."""

import functools

import numpy as np
import open_clip
import pytest
import torch
from torch.testing import assert_close

from adapters.tiny_clip import CLASSES, TEXT, VISION, images, make, tiny_clip
from ovss_refine import Logits, LogitsSource, Refiner, load_logits
from ovss_refine.testing.logits import check_logits_source
from ovss_refine_adapters.backbones.clip_tower import self_similarity
from ovss_refine_adapters.backbones.resize import resize_8bit
from ovss_refine_adapters.logits import clip
from ovss_refine_adapters.logits.clip import LastBlock
from ovss_refine_adapters.logits.windows import slide, upsample

PRODUCERS = {
    "clip": clip.clip,
    "maskclip": clip.maskclip,
    "maskclip b": functools.partial(clip.maskclip, reading="b"),
    "qq": clip.qq,
    "kk": clip.kk,
    "qq-mean": clip.qq_mean,
    "kk-mean": clip.kk_mean,
    "sclip": clip.sclip,
    "clearclip": clip.clearclip,
    "naclip": clip.naclip,
}
# Which of q, k a softmax compares; residual and feed-forward part; mean over the blocks.
TABLE = {
    "clip": (["qk"], True, False),
    "maskclip": (["own"], True, False),
    "maskclip b": (["own"], False, False),
    "qq": (["qq"], False, False),
    "kk": (["kk"], False, False),
    "qq-mean": (["qq"], False, True),
    "kk-mean": (["kk"], False, True),
    "sclip": (["qq", "kk"], True, False),
    "clearclip": (["qq"], False, False),
}


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class Reference:
    """The tiny tower in float64 NumPy, one image and one head at a time, from the formulas."""

    def __init__(self, model):
        self.p = {k: v.double().numpy() for k, v in model.visual.state_dict().items()}
        self.heads = model.visual.transformer.resblocks[0].attn.num_heads

    def norm(self, x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def linear(self, x, name):
        return x @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]

    def stem(self, pixels):
        kernel = self.p["conv1.weight"]
        s = kernel.shape[-1]
        rows = [self.p["class_embedding"]]
        for y in range(pixels.shape[1] // s):
            for x in range(pixels.shape[2] // s):
                patch = pixels[:, y * s : y * s + s, x * s : x * s + s]
                rows.append((kernel * patch).sum(axis=(1, 2, 3)))
        return self.norm(np.stack(rows) + self.p["positional_embedding"], "ln_pre")

    def qkv(self, i, x):
        b = f"transformer.resblocks.{i}"
        z = self.norm(x, f"{b}.ln_1")
        joint = z @ self.p[f"{b}.attn.in_proj_weight"].T + self.p[f"{b}.attn.in_proj_bias"]
        parts = [np.split(part, self.heads, axis=-1) for part in np.split(joint, 3, axis=-1)]
        return dict(zip("qkv", parts, strict=True))

    def maps(self, i, x, pairs):
        """One map for each head: the sum over `pairs` of softmax(a b^T / sqrt(d))."""
        parts = self.qkv(i, x)
        if pairs == ["own"]:
            return [np.eye(len(x))] * self.heads
        return [
            sum(
                softmax(parts[a][h] @ parts[b][h].T / np.sqrt(parts[a][h].shape[1]))
                for a, b in pairs
            )
            for h in range(self.heads)
        ]

    def block(self, i, x, maps, residual, feed_forward):
        b = f"transformer.resblocks.{i}"
        v = self.qkv(i, x)["v"]
        joined = np.concatenate([m @ one for m, one in zip(maps, v, strict=True)], axis=-1)
        y = self.linear(joined, f"{b}.attn.out_proj") + (x if residual else 0)
        if not feed_forward:
            return y
        inner = self.linear(self.norm(y, f"{b}.ln_2"), f"{b}.mlp.c_fc")
        return y + self.linear(inner / (1 + np.exp(-1.702 * inner)), f"{b}.mlp.c_proj")

    def features(self, pixels, pairs, kept, over_blocks):
        x, stack = self.stem(pixels), []
        for i in range(3):
            stack.append(self.maps(i, x, pairs))
            if i < 2:
                x = self.block(i, x, self.maps(i, x, ["qk"]), True, True)
        maps = stack[-1]
        if over_blocks:
            maps = [np.mean([block[h] for block in stack], axis=0) for h in range(self.heads)]
        out = self.norm(self.block(2, x, maps, kept, kept), "ln_post") @ self.p["proj"]
        return out[1:]


@pytest.mark.parametrize("name", ["qq-mean", "kk-mean"])
def test_projections_that_blocks_share_change_nothing(name):
    """As the mean over blocks is computed where every block is run whole, beside its maps."""
    source, x = make(PRODUCERS[name]), images()
    tower, maps = source.tower, []
    with torch.no_grad():
        pixels = source.prepare(x)
        tokens = tower.stem(pixels)
        for i in range(3):
            q, k, v = tower.qkv(i, tokens)
            same = q if name == "qq-mean" else k
            maps.append(self_similarity(same, same))
            last, tokens = tokens, tower.block(i, tokens)
        v = tower.qkv(2, last)[2]
        features = tower.head(tower.project(2, torch.stack(maps).mean(dim=0) @ v))[:, 1:]
        wanted = torch.nn.functional.normalize(features, dim=-1) @ source.text.T
    got = source.logits(x).values.flatten(2).mT
    assert_close(got, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", TABLE)
def test_formula(name):
    model = tiny_clip()
    pixels = images(1, 32, 32)
    pairs, kept, over_blocks = TABLE[name]
    wanted = Reference(model).features(pixels[0].double().numpy(), pairs, kept, over_blocks)
    with torch.no_grad():
        got = make(PRODUCERS[name], model=model).features(pixels)[0].flatten(1).mT
    # Float32 against float64, for features of order one.
    assert_close(got.double(), torch.from_numpy(wanted), atol=2e-5, rtol=0)


def test_producers_differ():
    """Otherwise the test above would prove less than it seems to."""
    values = [make(producer).logits(images(1)).values for producer in PRODUCERS.values()]
    equal = [
        (a, b)
        for i, a in enumerate(PRODUCERS)
        for j, b in enumerate(PRODUCERS)
        if i < j and float((values[i] - values[j]).abs().max()) < 1e-3
    ]
    assert equal == [("qq", "clearclip")]


@pytest.mark.parametrize("name", PRODUCERS)
@pytest.mark.parametrize("window", [None, 32])
def test_conformance(name, window):
    options = {"window": window, "stride": 24, "short_side": None if window is None else 40}
    check_logits_source(lambda: make(PRODUCERS[name], **options))


def test_logits():
    source = make(clip.naclip, logit_scale=50.0)
    assert isinstance(source, LogitsSource)
    out = source.logits(images(2, 48, 80))
    assert isinstance(out, Logits)
    assert out.values.shape == (2, 4, 6, 10)
    assert out.scale == 50.0
    assert out.prompt_index.tolist() == [0, 0, 1, 2]
    assert out.names == ("cat", "dog", "grass")
    assert float(out.values.abs().max()) <= 1 + 1e-6


def test_refiner_takes_the_logits():
    logits = make(clip.kk_mean).logits(images(1, 48, 80))
    attention = torch.full((1, 60, 60), 1 / 60)
    labels = Refiner()(logits, attention, images(1, 48, 80)).labels
    assert labels.shape == (1, 48, 80)
    assert int(labels.max()) < 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # name, (short side, window, stride, scale, padded windows)
        ("clip", (336, 224, 112, 40.0, 1)),
        ("maskclip", (448, 448, 224, 100.0, 1)),
        ("maskclip b", (448, 448, 224, 50.0, 1)),
        ("sclip", (336, 224, 112, 40.0, 1)),
        ("clearclip", (448, 448, 224, 50.0, 8)),
        ("naclip", (336, 224, 112, 40.0, 1)),
        ("kk-mean", (336, None, 112, 40.0, 1)),
    ],
)
def test_published_constants(name, expected):
    source = PRODUCERS[name](CLASSES, model=tiny_clip(), templates="single", cache_dir=None)
    options = source.options
    got = (options.short_side, options.window, options.stride, options.logit_scale)
    assert (*got, source.window_multiple) == expected


def test_published_gaussian():
    assert make(clip.naclip).last_block == LastBlock(similarity="kk", gaussian_std=5.0)
    wide = make(clip.naclip, gaussian_std=50.0).logits(images(1)).values
    assert float((wide - make(clip.naclip).logits(images(1)).values).abs().max()) > 1e-4


def test_gaussian_by_its_formula():
    got = clip.gaussian((2, 3), 1.5)
    assert got[0].tolist() == got[:, 0].tolist() == [0] * 7
    for p in range(6):
        for r in range(6):
            squared = (p // 3 - r // 3) ** 2 + (p % 3 - r % 3) ** 2
            assert got[1 + p, 1 + r] == pytest.approx(np.exp(-squared / 4.5), abs=1e-6)


@pytest.mark.parametrize("name", ["sclip", "clearclip"])
def test_windows_are_averaged(name):
    """By hand: pad if needed, compute each window's cosines, upsample, crop, sum, divide."""
    source = make(PRODUCERS[name], window=36, stride=20)
    batch = images(1, 50, 70)
    pixels = source.prepare(batch)
    total, count = torch.zeros(4, 50, 70), torch.zeros(50, 70)
    margin = 2 if name == "clearclip" else 0  # 36 to 40 pixels
    for top in (0, 14):
        for left in (0, 20, 34):
            part = pixels[..., top : top + 36, left : left + 36]
            part = torch.nn.functional.pad(part, [margin] * 4)
            with torch.no_grad():
                cosines = source.cosines(part, None)
            up = upsample(cosines, part.shape[-2:])[0]
            up = up[:, margin : margin + 36, margin : margin + 36]
            total[:, top : top + 36, left : left + 36] += up
            count[top : top + 36, left : left + 36] += 1
    assert_close(source.logits(batch).values[0], total / count)


def test_a_window_larger_than_the_image_gives_the_whole_image():
    whole = make(clip.sclip).logits(images(2, 48, 80)).values
    window = make(clip.sclip, window=96, stride=96).logits(images(2, 48, 80)).values
    assert_close(window, upsample(whole, (48, 80)))


def test_images_are_resized_and_normalised():
    """Grey levels of the resized 8-bit image, minus rounded mean, over rounded deviation."""
    batch = images(1, 48, 80)
    pixels = make(clip.clip, short_side=24).prepare(batch)
    mean = torch.tensor([122.771, 116.746, 104.094]).view(3, 1, 1)
    std = torch.tensor([68.501, 66.632, 70.323]).view(3, 1, 1)
    assert_close(pixels, (resize_8bit(batch, (24, 40)) * 255 - mean) / std, atol=1e-5, rtol=0)


def test_without_faithful_images_are_resized_with_antialiasing():
    batch = images(1, 48, 80)
    pixels = make(clip.clip, short_side=24, faithful=False).prepare(batch)
    small = torch.nn.functional.interpolate(batch, (24, 40), mode="bilinear", antialias=True)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    assert_close(pixels, (small - mean) / std, atol=1e-5, rtol=0)


def test_statistics_come_from_the_model():
    model = tiny_clip()
    model.visual.preprocess_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.25, 0.125)}
    pixels = make(clip.clip, model=model).prepare(torch.ones(1, 3, 8, 8))
    assert_close(pixels[0, :, 0, 0], torch.tensor([1.0, 2.0, 4.0]), atol=1e-4, rtol=0)


def test_given_text_features():
    rows = torch.randn(4, 24)
    source = make(clip.clip, text_features=rows)
    assert_close(source.text, torch.nn.functional.normalize(rows, dim=1))
    unit = torch.nn.functional.normalize(source.features(source.prepare(images(1))), dim=1)
    wanted = (unit[0, :, 2, 3] @ source.text.T).detach()
    assert_close(source.logits(images(1)).values[0, :, 2, 3], wanted)


def test_text_is_cached_in_the_given_folder(tmp_path, monkeypatch):
    make(clip.clip, cache_dir=tmp_path / "here")
    assert len(list((tmp_path / "here").iterdir())) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    make(clip.clip, cache_dir="default")
    assert len(list((tmp_path / "home" / "ovss_refine").iterdir())) == 1


@pytest.mark.parametrize("name", ["clip", "qq-mean", "kk-mean"])
def test_by_name(name):
    model = tiny_clip()
    source = make(functools.partial(load_logits, name), model=model)
    wanted = make(PRODUCERS[name], model=model)
    assert_close(source.logits(images(1)).values, wanted.logits(images(1)).values)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stirde": 8}, TypeError, r"unexpected keyword argument 'stirde'"),
        ({"window": 32, "stride": 33}, ValueError, r"`stride` must be at most `window` = 32"),
        ({"window": 7, "stride": 7}, ValueError, r"at least one patch of 8 x 8 pixels; got 7 x 7"),
        ({"window": 0}, ValueError, r"`window` must be at least 1; got 0"),
        ({"stride": 0}, ValueError, r"`stride` must be at least 1; got 0"),
        ({"short_side": 1.5}, TypeError, r"`short_side` must be a whole number; got 1.5"),
        ({"logit_scale": 0}, ValueError, r"`logit_scale` must be a finite number > 0; got 0"),
        ({"text_features": torch.ones(3, 24)}, ValueError, r"`text_features` must have.*K=4"),
        ({"templates": "x"}, ValueError, r"`templates` must be 'imagenet'"),
        ({"classes": ["a", "a"]}, ValueError, r"classes must have no name twice"),
        ({"reading": "c"}, ValueError, r"`reading` must be one of \['a', 'b'\]; got 'c'"),
        ({"model": torch.nn.Linear(1, 1)}, ValueError, r"`model.visual` must be a VisionTransf"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        make(clip.maskclip, **options)


def test_bad_images():
    source = make(clip.clip)
    with pytest.raises(ValueError, match=r"at least one patch of 8 x 8 pixels; got 40 x 7"):
        source.logits(images(1, 40, 7))
    with pytest.raises(ValueError, match=r"`images` must be a batch or a list"):
        source.logits(images(1)[0])
    with pytest.raises(ValueError, match=r"`images` must be finite and in \[0, 1\]"):
        source.logits(images(1) * 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "vv"}, r"`similarity` must be one of \['qk', .*; got 'vv'"),
        ({"similarity": "kk", "gaussian_std": 0.0}, r"`gaussian_std` must be a finite number > 0"),
        ({"similarity": "own", "gaussian_std": 1.0}, r"`gaussian_std` must be None with"),
        (
            {"similarity": "kk", "gaussian_std": 1.0, "over_blocks": True},
            r"`gaussian_std` must be None with",
        ),
    ],
)
def test_bad_last_block(options, message):
    with pytest.raises(ValueError, match=message):
        LastBlock(**options)


def test_training_mode_and_gradients_change_nothing():
    model = tiny_clip(patch_dropout=0.5)
    wanted = make(clip.sclip, model=model).logits(images(1)).values
    source = make(clip.sclip, model=model.train())
    assert_close(source.logits(images(1).requires_grad_()).values, wanted)
    assert model.visual.training


def test_slide_keeps_constants():
    """Windows of one value average to it, wherever they overlap."""
    out = slide(
        torch.zeros(2, 3, 37, 53), lambda p: p.new_full((2, 5, 2, 3), 0.7), window=20, stride=7
    )
    assert_close(out, torch.full((2, 5, 37, 53), 0.7))


@pytest.mark.parametrize("name", PRODUCERS)
def test_model_in_half_precision(name):
    """As open_clip makes it: linear layers in bfloat16, norms in float32. Logits stay close."""
    model = open_clip.CLIP(
        24,
        open_clip.CLIPVisionCfg(**VISION),
        open_clip.CLIPTextCfg(**TEXT),
        quick_gelu=True,
        cast_dtype=torch.bfloat16,
    ).eval()
    model.load_state_dict(tiny_clip().state_dict())
    open_clip.model.convert_weights_to_lp(model, dtype=torch.bfloat16)
    assert model.visual.conv1.weight.dtype == torch.bfloat16
    text = make(clip.clip).text
    values = make(PRODUCERS[name], model=model, text_features=text).logits(images(1)).values
    wanted = make(PRODUCERS[name], text_features=text).logits(images(1)).values
    assert values.dtype == torch.float32
    # Eight bits of mantissa, a few layers.
    assert_close(values, wanted, atol=0.05, rtol=0)
