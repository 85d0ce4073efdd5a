"""Hugging Face's outputs to label maps: its meaning, every way to give the input, errors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from ovss_refine import Attention, Refiner
from ovss_refine.attention import affinity
from ovss_refine.postprocess import semantic_logits

B, K, GRID = 2, 4, (5, 6)
SIZES = [(40, 50), (33, 21)]


@pytest.fixture
def logits():
    return 4 * torch.randn(B, K, 9, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def outputs(logits):
    return SimpleNamespace(logits=logits)


@pytest.fixture
def attn():
    return affinity(torch.randn(B, 8, *GRID, generator=torch.Generator().manual_seed(1)), 0.3)


@pytest.fixture
def images():
    """Tensors of different sizes, uint8."""
    rng = np.random.default_rng(2)
    return [torch.from_numpy(rng.integers(0, 256, (3, *size), np.uint8)) for size in SIZES]


def post_process(*args, **kwargs):
    return Refiner().post_process_semantic_segmentation(*args, **kwargs)


def one_by_one(logits, attn, images):
    return [
        Refiner()(logits[b], Attention(attn.weights[b], GRID), images[b]).labels for b in range(B)
    ]


def assert_same(maps, expected):
    assert isinstance(maps, list)
    assert [(x.shape, x.dtype) for x in maps] == [(x.shape, torch.int64) for x in expected]
    for one, other in zip(maps, expected, strict=True):
        assert_close(one, other)


def test_without_sizes_each_map_has_its_images(outputs, attn, images):
    maps = post_process(outputs, attn=attn, images=images)
    assert [tuple(x.shape) for x in maps] == SIZES
    assert_same(maps, one_by_one(outputs.logits, attn, images))
    assert all(len(x.unique()) > 1 for x in maps)  # or it would show nothing


@pytest.mark.parametrize(
    "sizes",
    [
        [(64, 30), (20, 90)],
        [[64, 30], [20, 90]],
        torch.tensor([[64, 30], [20, 90]]),
        np.array([[64, 30], [20, 90]]),
        [torch.tensor([64, 30]), torch.tensor([20, 90])],
    ],
    ids=["tuples", "lists", "tensor", "array", "tensors"],
)
def test_the_image_is_resized_not_the_labels(outputs, attn, images, sizes):
    maps = post_process(outputs, sizes, attn=attn, images=images)
    resized = [
        torch.nn.functional.interpolate(
            x[None].float() / 255, size, mode="bilinear", antialias=True
        )[0].clamp(0, 1)
        for x, size in zip(images, [(64, 30), (20, 90)], strict=True)
    ]
    assert_same(maps, one_by_one(outputs.logits, attn, resized))


def test_the_images_own_size_as_target(outputs, attn, images):
    maps = post_process(outputs, SIZES, attn=attn, images=images)
    assert_same(maps, one_by_one(outputs.logits, attn, images))


def test_images_in_every_form(outputs, attn, images, tmp_path):
    expected = post_process(outputs, attn=attn, images=images)
    arrays = [x.permute(1, 2, 0).numpy() for x in images]
    pil = [Image.fromarray(x) for x in arrays]
    paths = [tmp_path / "0.png", str(tmp_path / "1.png")]
    for image, path in zip(pil, paths, strict=True):
        image.save(path)
    for given in (arrays, pil, [x.convert("RGBA") for x in pil], tuple(images), paths):
        assert_same(post_process(outputs, attn=attn, images=given), expected)
    for given in ([x / 255 for x in images], [x / 255 for x in arrays], [pil[0], images[1]]):
        assert_same(post_process(outputs, attn=attn, images=given), expected)


def test_one_image_needs_no_list(outputs, attn, images):
    one, alone = SimpleNamespace(logits=outputs.logits[:1]), Attention(attn.weights[:1], GRID)
    expected = post_process(one, attn=alone, images=images[:1])
    for given in (images[0], images[0][None], Image.fromarray(images[0].permute(1, 2, 0).numpy())):
        assert_same(post_process(one, attn=alone, images=given), expected)


def test_images_are_upright(outputs, attn, images):
    expected = post_process(outputs, attn=attn, images=images)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the left of upright
    rotated = Image.fromarray(np.rot90(images[0].permute(1, 2, 0).numpy()).copy())
    rotated.info["exif"] = exif.tobytes()
    assert_same(post_process(outputs, attn=attn, images=[rotated, images[1]]), expected)


def test_grey_images(outputs, attn):
    grey = [Image.new("L", (20, 10), 90), Image.new("L", (20, 10), 130)]
    maps = post_process(outputs, attn=attn, images=grey)
    assert_same(maps, post_process(outputs, attn=attn, images=[x.convert("RGB") for x in grey]))


def test_images_in_one_tensor(outputs, attn):
    images = torch.rand(B, 3, 30, 40)
    whole = Refiner()(outputs.logits, attn, images).labels
    assert_same(post_process(outputs, attn=attn, images=images), list(whole))


class Source:
    """Attention that depends on the image it is shown."""

    def attention(self, images):
        pooled = torch.nn.functional.adaptive_avg_pool2d(images, GRID)
        return affinity(pooled - 0.5, 0.2)


def test_attention_of_every_kind(outputs, attn, images):
    expected = post_process(outputs, attn=attn, images=images)
    weights = attn.weights
    singles = [Attention(w, GRID) for w in weights]
    batches = [Attention(w[None], GRID) for w in weights]
    same_grid = SimpleNamespace(logits=torch.nn.functional.interpolate(outputs.logits, GRID))
    bare = post_process(same_grid, attn=attn, images=images)
    for given in (singles, batches, tuple(batches)):
        assert_same(post_process(outputs, attn=given, images=images), expected)
    for given in (weights, list(weights)):
        assert_same(post_process(same_grid, attn=given, images=images), bare)


def test_heads(outputs, attn, images):
    same_grid = SimpleNamespace(logits=torch.nn.functional.interpolate(outputs.logits, GRID))
    other = affinity(torch.randn(B, 8, *GRID, generator=torch.Generator().manual_seed(5)), 0.3)
    heads = torch.stack([attn.weights, other.weights], dim=1)
    mean = Attention((attn.weights + other.weights) / 2, GRID)
    maps = post_process(same_grid, attn=heads, images=images)
    assert_same(maps, post_process(same_grid, attn=mean, images=images))


def test_factors(outputs, images):
    q = torch.randn(B, 2, 30, 8, generator=torch.Generator().manual_seed(3))
    factors = Attention.from_factors(q, q, 0.5, GRID)
    maps = post_process(outputs, attn=factors, images=images)
    dense = Attention((0.5 * q @ q.mT).softmax(-1), GRID)
    assert_same(maps, post_process(outputs, attn=dense, images=images))
    alone = Attention.from_factors(q[0], q[0], 0.5, GRID)
    one = SimpleNamespace(logits=outputs.logits[:1])
    assert_same(post_process(one, attn=alone, images=images[:1]), maps[:1])


def test_one_image_needs_no_batch_axis(outputs, attn, images):
    one = SimpleNamespace(logits=outputs.logits[:1])
    alone = Attention(attn.weights[0], GRID)
    expected = post_process(outputs, attn=attn, images=images)[:1]
    assert_same(post_process(one, attn=alone, images=images[:1]), expected)


def test_a_source_sees_each_image_at_its_target_size(outputs, images):
    maps = post_process(outputs, attn=Source(), images=images)
    expected = [
        Refiner()(outputs.logits[b : b + 1], Source(), images[b][None]).labels[0] for b in range(B)
    ]
    assert_same(maps, expected)


def test_the_logits_themselves(outputs, attn, images):
    maps = post_process(outputs.logits, attn=attn, images=images)
    assert_same(maps, post_process(outputs, attn=attn, images=images))


def test_half_precision_logits(outputs, attn, images):
    half = SimpleNamespace(logits=outputs.logits.half())
    maps = post_process(half, attn=attn, images=images)
    assert_same(maps, one_by_one(half.logits, attn, images))


def queries(Q=7):
    generator = torch.Generator().manual_seed(4)
    classes = 3 * torch.randn(B, Q, K + 1, generator=generator)
    return classes, 4 * torch.randn(B, Q, 9, 8, generator=generator)


def written_out(classes, masks):
    """Scores by loops over queries and classes."""
    scores = torch.zeros(B, K, 9, 8, dtype=torch.float64)
    for q in range(classes.shape[1]):
        p = classes[:, q].double().softmax(-1)
        for k in range(K):
            scores[:, k] += p[:, k, None, None] * masks[:, q].double().sigmoid()
    return scores


def test_masks_with_classes(attn, images):
    classes, masks = queries()
    scores = written_out(classes, masks)
    universal = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    detr = SimpleNamespace(logits=classes, pred_masks=masks)
    for outputs in (universal, detr):
        logits = semantic_logits(outputs)
        shares = scores / scores.sum(1, keepdim=True)
        assert_close(logits.softmax(1).double(), shares, atol=1e-6, rtol=0)
    maps = post_process(universal, attn=attn, images=images)
    assert_same(maps, one_by_one(scores.log().float(), attn, images))


def test_a_class_that_no_query_votes_for():
    classes, masks = queries()
    classes[..., 0] = -300  # its probability is zero in float32
    logits = semantic_logits(SimpleNamespace(logits=classes, pred_masks=masks))
    assert logits.isfinite().all()
    assert logits.softmax(1)[:, 0].max() < 1e-30


def test_agrees_with_hugging_face():
    """The scores' best class is that of the library's own method, for both families."""
    pytest.importorskip("torchvision", reason="needs the extra `models`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `models`")
    torch.manual_seed(0)
    config = transformers.MaskFormerConfig(
        backbone_config=transformers.SwinConfig(
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        decoder_config=transformers.DetrConfig(
            d_model=16,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=16,
            num_queries=6,
        ),
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=5,
    )
    pixels = torch.rand(2, 3, 64, 96)
    masks = transformers.MaskFormerForInstanceSegmentation(config).eval()
    scores = transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=16, num_labels=5
        )
    ).eval()
    masks.class_predictor.weight.data *= 30  # or no patch is sure of anything
    scores.decode_head.classifier.weight.data *= 1000
    for model, processor in (
        (masks, transformers.MaskFormerImageProcessor()),
        (scores, transformers.SegformerImageProcessor()),
    ):
        with torch.no_grad():
            outputs = model(pixels)
        theirs = processor.post_process_semantic_segmentation(outputs)
        assert_close(semantic_logits(outputs).argmax(1), torch.stack(list(theirs)))
        features = torch.randn(2, 8, *GRID)
        sizes = [(30, 20), (25, 40)]
        maps = post_process(outputs, sizes, attn=affinity(features, 0.3), images=pixels)
        resized = processor.post_process_semantic_segmentation(outputs, sizes)
        assert [(x.shape, x.dtype) for x in maps] == [(x.shape, x.dtype) for x in resized]


class TestErrors:
    def refuse(self, match, outputs, attn, images, sizes=None, error=ValueError):
        with pytest.raises(error, match=match):
            post_process(outputs, sizes, attn=attn, images=images)

    def test_outputs(self, attn, images):
        for outputs in ({"out": torch.zeros(2, 3, 4, 4)}, (torch.zeros(2, 3, 4, 4),)):
            self.refuse("`outputs` must have `logits`, or", outputs, attn, images, error=TypeError)
        match = r"`outputs.logits` must have shape \[B, K, h, w\]; got \[2, 7, 5\]"
        self.refuse(match, SimpleNamespace(logits=torch.zeros(2, 7, 5)), attn, images)

    def test_queries(self, attn, images):
        classes, masks = queries()
        outputs = SimpleNamespace(class_queries_logits=classes[:, 1:], masks_queries_logits=masks)
        match = (
            r"`outputs.class_queries_logits` must have shape \[B=2, Q=7, K\+1\]; got \[2, 6, 5\]"
        )
        self.refuse(match, outputs, attn, images)

    def test_images(self, outputs, attn, images):
        self.refuse(
            "`images` must be the B=2 images of `outputs`; got 1", outputs, attn, images[:1]
        )
        match = r"`images\[1\]` must be a tensor \[3, H, W\]; got \[1, 9, 9\]"
        self.refuse(match, outputs, attn, [images[0], torch.rand(1, 9, 9)])
        match = r"`images\[0\]` must be an array \[H, W, 3\]; got \[3, 9, 9\]. Pass `images\[0\].tr"
        self.refuse(match, outputs, attn, [np.zeros((3, 9, 9), np.uint8), images[1]])
        match = r"`images\[0\]` must be a path, a PIL image, an array .*; got int"
        self.refuse(match, outputs, attn, [3, images[1]], error=TypeError)
        normalised = [torch.randn(3, 9, 9), images[1]]
        self.refuse("undo the model's normalisation", outputs, attn, normalised)

    @pytest.mark.parametrize(
        "sizes",
        [
            [(4, 5)],
            [(4, 5), (4,)],
            [(4, 5), (4, 0)],
            [(4, 5), (4, -1)],
            [(4.0, 5.0), (4.0, 5.0)],
            [(4, 5, 3)] * 2,
            (4, 5),
            torch.ones(2),
        ],
    )
    def test_target_sizes(self, outputs, attn, images, sizes):
        match = r"`target_sizes` must be B=2 pairs \(H, W\) of whole numbers >= 1, .*; got "
        self.refuse(match, outputs, attn, images, sizes)

    def test_attention(self, outputs, attn, images):
        match = "`attn` must hold a map for each of the B=2 images of `outputs`; got 1"
        for wrong in (Attention(attn.weights[0], GRID), Attention(attn.weights[:1], GRID)):
            self.refuse(match, outputs, wrong, images)
        self.refuse(match, outputs, [attn.weights[0]], images)
        layers = (attn.weights[:, None],) * B  # what a model's `attentions` hold: not images
        self.refuse("`attn` must have shape", outputs, layers, images)
