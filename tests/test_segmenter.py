"""The segmenter on sources without models; with models: adapters/test_segmenterlazy.py."""

import itertools
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_array_equal
from PIL import Image

from ovss_refine import Logits, RefineConfig, refine
from ovss_refine.attention import affinity
from ovss_refine.evaluation.rows import Baseline
from ovss_refine.images import batches
from ovss_refine.labels import as_labels
from ovss_refine.segmenter import Segmenter
from ovss_refine.sources import lazy, stages
from ovss_refine.sources.device import Placement

LABELS = "red, green/leaf, background: blue/water"
WEIGHTS = {
    "red": (6.0, 0, 0),
    "green": (0, 6.0, 0),
    "leaf": (0, 5.0, 1.0),
    "blue": (0, 0, 6.0),
    "water": (1.0, 0, 5.0),
}


class Colours:
    """Scores prompts by colour, on a grid of a quarter; fixed classes."""

    def __init__(self, classes=("red", "green/leaf", "blue/water"), scale=2.0, **_):
        self.classes = as_labels(list(classes))
        self.scale = scale

    def logits(self, images):
        prompts = [text.split("/") for text in self.classes.prompts]
        flat = [prompt for row in prompts for prompt in row]
        weights = torch.tensor([WEIGHTS[prompt] for prompt in flat])
        small = F.adaptive_avg_pool2d(images, [max(1, side // 4) for side in images.shape[2:]])
        index = [c for c, row in enumerate(prompts) for _ in row]
        values = torch.einsum("kc,bchw->bkhw", weights, small)
        return Logits(values, self.scale, index, self.classes.names)


class AnyColours(Colours):
    """The same for any classes."""

    def with_classes(self, classes):
        return type(self)(classes, self.scale)


class Similarity:
    """Attends to patches of the same colour."""

    def __init__(self, **options):
        self.options = options

    def attention(self, images):
        sides = [max(1, side // 3) for side in images.shape[2:]]
        return affinity(F.adaptive_avg_pool2d(images, sides) + 0.1, 0.05)


def photo(H=24, W=32, seed=0):
    """Patches of clear colours with noise, [H, W, 3] uint8."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 3, (3, 4)), np.ones((-(-H // 3), -(-W // 4)), int))[:H, :W]
    return (np.eye(3)[coarse] * 140 + rng.integers(0, 90, (H, W, 3))).astype(np.uint8)


def make(logits=None, attention=None, **options):
    return Segmenter(logits or AnyColours(), attention or Similarity(), device="cpu", **options)


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def by_hand(image, config=None):
    pixels = tensor(image)
    logits = Colours().logits(pixels)
    return refine(logits, Similarity().attention(pixels), pixels, config or RefineConfig())


def same(one, two):
    assert torch.equal(one.labels, two.labels)
    torch.testing.assert_close(one.discrepancy, two.discrepancy)


def test_one_image_is_refined_as_by_hand_and_has_names():
    image = photo()
    found, wanted = make()(image, LABELS), by_hand(image)[0]
    same(found, wanted)
    assert torch.equal(found.kept, wanted.kept)
    assert found.names == ("red", "green", "background")
    assert found.labels.unique().tolist() == [0, 1, 2]
    assert_array_equal(found.image, image)
    assert (found.baseline, found.attention) == (None, None)
    assert found.labels.dtype == torch.int64


def test_options_are_passed_to_the_refinement():
    image, config = photo(), RefineConfig(mode="kl", background=(2, 0.6), logit_scale=0.5, radius=1)
    found = make(mode="kl", background=(2, 0.6), logit_scale=0.5, radius=1)(image, LABELS)
    same(found, by_hand(image, config)[0])
    assert not torch.equal(found.labels, by_hand(image)[0].labels)


@pytest.mark.parametrize("form", ["path", "PIL", "float", "tensor", "float tensor"])
def test_every_form_of_an_image_gives_the_same(tmp_path, form):
    image = photo()
    Image.fromarray(image).save(tmp_path / "x.png")
    given = {
        "path": tmp_path / "x.png",
        "PIL": Image.fromarray(image),
        "float": image / 255,
        "tensor": torch.from_numpy(image).permute(2, 0, 1),
        "float tensor": tensor(image)[0],
    }[form]
    found = make()(given, LABELS)
    same(found, make()(image, LABELS))
    assert_array_equal(found.image, image)


def test_several_images_of_several_sizes_come_back_in_order():
    sizes = [(24, 32), (20, 16), (24, 32), (1, 1), (20, 16), (24, 32)]
    images = [photo(*size, seed=seed) for seed, size in enumerate(sizes)]
    found = make()(images, LABELS)
    assert len(found) == 6
    for image, one in zip(images, found, strict=True):
        assert_array_equal(one.image, image)
        same(one, make()(image, LABELS))
    assert make()([], LABELS) == []
    assert len(make()((images[0],), LABELS)) == 1


@pytest.mark.parametrize("form", ["tensor", "array"])
def test_a_batch_of_several_is_a_list(form):
    images = np.stack([photo(seed=seed) for seed in range(2)])
    found = make()(images if form == "array" else torch.cat([*map(tensor, images)]), LABELS)
    assert len(found) == 2
    for seed, one in enumerate(found):
        same(one, make()(photo(seed=seed), LABELS))


def test_batches_are_bounded(monkeypatch):
    seen = []

    class Spy(AnyColours):
        def logits(self, images):
            seen.append(tuple(images.shape))
            return super().logits(images)

    images = [photo(seed=seed) for seed in range(5)] + [photo(8, 8)]
    monkeypatch.setattr(batches, "BATCH_IMAGES", 2)
    make(Spy())(images, LABELS)
    assert [shape[0] for shape in seen] == [2, 2, 1, 1]
    seen.clear()
    monkeypatch.setattr(batches, "BATCH_PIXELS", 24 * 32)
    make(Spy())(images, LABELS)
    assert [shape[0] for shape in seen] == [1] * 6


def test_a_call_does_not_affect_the_next():
    one = make()
    first = one(photo(), LABELS)
    one(photo(seed=1), "green, red")
    one([photo(9, 9)], "blue", baseline=True)
    again = one(photo(), LABELS)
    assert torch.equal(first.labels, again.labels)
    assert torch.equal(first.discrepancy, again.discrepancy)


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_the_baseline_equals_that_of_the_evaluation(scale, monkeypatch):
    images = [photo(seed=seed) for seed in range(3)]
    pixels = torch.cat([tensor(image) for image in images])
    wanted = Baseline(logit_scale=scale).label(Colours().logits(pixels), None, pixels)
    for band in (1, 700, 1 << 24):  # one row, some rows, all rows at once
        monkeypatch.setattr("ovss_refine.baseline.bands.BAND", band)
        found = make(logit_scale=scale)(images, LABELS, baseline=True)
        for one, labels in zip(found, wanted, strict=True):
            assert torch.equal(one.baseline, labels)
            assert not torch.equal(one.baseline, one.labels)


@pytest.mark.parametrize(("size", "to"), [((5, 7), (31, 40)), ((9, 12), (4, 5)), ((1, 1), (3, 3))])
def test_rows_are_upsampled_as_torch_does(size, to):
    from ovss_refine.baseline.bands import _upsampled

    values = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(values, to, mode="bilinear")
    for start, stop in ((0, to[0]), (1, 3), (to[0] - 1, to[0])):
        torch.testing.assert_close(_upsampled(values, to, start, stop), whole[:, :, start:stop])


def test_attention_is_kept_on_request():
    images = [photo(seed=seed) for seed in range(2)]
    for image, found in zip(images, make()(images, LABELS, keep_attention=True), strict=True):
        wanted = Similarity().attention(tensor(image))
        assert found.attention.grid == wanted.grid == (8, 10)
        torch.testing.assert_close(found.attention.weights, wanted.weights[0])
        row = found.attention_map(31, 23)
        torch.testing.assert_close(row.flatten(), wanted.weights[0, -1])


@pytest.mark.parametrize("mode", ["maximum_velocity", "kl"])
def test_kept_logits_and_attention_refine_an_image_again(mode):
    images = [photo(seed=seed) for seed in range(2)]
    first = make()(images, LABELS, keep_attention=True, keep_logits=True)
    wanted = make(mode=mode, seed_quantile=0.4)(images, LABELS)
    for image, found, want in zip(images, first, wanted, strict=True):
        assert found.logits.names == found.names
        again = refine(
            found.logits, found.attention, image, RefineConfig(mode=mode, seed_quantile=0.4)
        )
        assert torch.equal(again.labels, want.labels)
    assert make()(images, LABELS)[0].logits is None


def test_stages_are_announced_in_order_and_timed():
    told = []
    found = make()(photo(), LABELS, baseline=True, on_stage=told.append)
    assert told == ["loading", "logits", "attention", "baseline", "refinement"]
    assert list(found.seconds) == told[1:]
    assert min(found.seconds.values()) > 0
    told.clear()
    again = make()
    again(photo(), LABELS)
    again([photo(), photo(9, 9)], LABELS, on_stage=told.append)
    assert told == ["logits", "attention", "refinement"] * 2  # two sizes, nothing to load


def test_seconds_of_a_batch_are_shared_equally(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(stages.time, "perf_counter", lambda: next(ticks))
    found = make()([photo(), photo(9, 9), photo(seed=1)], LABELS)  # a stage takes a tick
    assert [one.seconds["logits"] for one in found] == [0.5, 1.0, 0.5]
    assert [one.seconds["refinement"] for one in found] == [0.5, 1.0, 0.5]


def test_a_ready_source_with_fixed_classes_has_its_own_labels():
    fixed = make(Colours())
    assert fixed(photo(), None).names == ("red", "green", "blue")
    for labels in ("red, green/leaf, blue/water", LABELS, ["a: red", "b: green", "c: blue"]):
        same(fixed(photo(), labels), make()(photo(), LABELS))
    assert fixed(photo(), LABELS).names == ("red", "green", "background")
    for labels in ("red, green", "green, red, blue"):
        with pytest.raises(
            ValueError, match=r"must be the classes of `logits`, \['red', 'green', "
        ):
            fixed(photo(), labels)


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (photo()[..., :2], LABELS, ValueError, r"`images` must be an array \[H, W, 3\]"),
        ([photo(), photo()[0]], LABELS, ValueError, r"`images\[1\]` must be an array"),
        (
            photo(11, 1),
            LABELS,
            ValueError,
            "`images` must be at most 10 times as long as wide; got 1 x 11",
        ),
        (photo(40, 32), LABELS, ValueError, "at most 1,000 pixels; got 32 x 40 = 1,280"),
        ({"x": 1}, LABELS, TypeError, "must be a path, .* got dict"),
        ("missing.png", LABELS, FileNotFoundError, "missing.png"),
        (photo(), "red, red", ValueError, "no name twice; got 'red' twice"),
        (photo(), "", ValueError, "no empty name"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(images, labels, error, message):
    class Untouched(AnyColours):
        def with_classes(self, classes):
            raise AssertionError("asked")

    with pytest.raises(error, match=message):
        make(Untouched(), max_pixels=1000)(images, labels)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "best"}, ValueError, "`mode` must be one of"),
        ({"modes": "kl"}, TypeError, "modes"),
        ({"keep_scores": True}, ValueError, "`keep_scores` must be False"),
        ({"max_pixels": 0}, ValueError, "`max_pixels` must be at least 1; got 0"),
        (
            {"device": "gpu"},
            ValueError,
            "`device` must be 'auto' or one that torch can use; got 'gpu'",
        ),
        ({"models_dir": __file__}, ValueError, "`models_dir` must be a folder; got the file"),
        ({"logits": "kk-men"}, ValueError, "got 'kk-men'. Did you mean 'kk-mean'"),
        ({"attention": "dino"}, ValueError, "`attention` must be one of"),
        ({"logits": Similarity()}, TypeError, "`logits` must be the name .* got Similarity"),
        ({"attention": 3}, TypeError, "or have a method `attention`; got int"),
        ({"logits_options": {"classes": "x"}}, TypeError, "must not have `classes`"),
        (
            {"logits": Colours(), "logits_options": {"scale": 1}},
            TypeError,
            "`logits_options` must be empty with a ready source",
        ),
    ],
)
def test_wrong_options_are_refused_at_once(options, error, message):
    with pytest.raises(error, match=message):
        Segmenter(**options)


class Registry:
    """Stands in for the entry points: counts what is loaded."""

    def __init__(self, **factories):
        self.factories = factories
        self.loaded = []

    def find(self, kind, name):
        def factory(**options):
            self.loaded.append((kind, name, options))
            return self.factories[kind](**options)

        return type("Point", (), {"load": lambda _: factory})()


@pytest.fixture
def registered(monkeypatch):
    def register(logits=AnyColours, attention=Similarity):
        registry = Registry(logits=logits, attention=attention)
        monkeypatch.setattr(lazy, "find", registry.find)
        monkeypatch.setattr(lazy, "facts", lambda kind, name: {"download": f"{name}: 1 GB"})
        return registry

    return register


def by_name(**options):
    return Segmenter("one", "two", device="cpu", **options)


def test_named_sources_are_loaded_at_first_use_once(registered):
    registry, found = registered(), []
    segment = by_name(logits_options={"scale": 2.0}, attention_options={"layer": 3})
    assert registry.loaded == []
    assert segment.to_load() == {"one": "one: 1 GB", "two": "two: 1 GB"}
    found = [segment(photo(), labels) for labels in (LABELS, "green, red", LABELS)]
    assert registry.loaded == [
        ("logits", "one", {"classes": as_labels(LABELS), "scale": 2.0}),
        ("attention", "two", {"layer": 3}),
    ]
    assert segment.to_load() == {}
    same(found[0], make()(photo(), LABELS))
    same(found[1], make()(photo(), "green, red"))
    same(found[2], found[0])
    assert found[1].names == ("green", "red")


def test_a_source_without_with_classes_is_made_anew_for_other_labels(registered):
    registry = registered(logits=Colours)
    segment = by_name()
    for labels in (LABELS, LABELS, "green, red", LABELS):
        same(segment(photo(), labels), make()(photo(), labels))
    classes = [list(options["classes"]) for kind, _, options in registry.loaded if kind == "logits"]
    full = ["red", "green/leaf", "blue/water"]
    assert classes == [full, ["green", "red"], full]  # the second call reuses the first


def test_the_number_of_kept_labels_is_bounded(registered):
    made = []

    class Spy(AnyColours):
        def with_classes(self, classes):
            made.append(tuple(classes))
            return super().with_classes(classes)

    registered(logits=Spy)
    segment, names = by_name(), list(WEIGHTS)
    lists = [[one, two] for one in names for two in names if one < two]
    assert len(lists) == 10 > lazy.KEPT_LABELS
    for labels in (*lists, lists[-1], lists[0]):
        same(segment(photo(), labels), make()(photo(), labels))
    assert len(made) == len(lists)  # the first pair is loaded, then made anew
    assert made[-1] == tuple(lists[0])


def test_a_source_by_name_needs_labels(registered):
    registered()
    with pytest.raises(ValueError, match="`labels` must be given for 'one'; got None"):
        by_name()(photo(), None)


def test_prepare_loads_what_a_call_would(registered):
    registry, told = registered(), []
    segment = by_name()
    segment.prepare(on_stage=told.append)
    assert [kind for kind, *_ in registry.loaded] == ["attention"]
    assert segment.to_load() == {"one": "one: 1 GB"}
    segment.prepare(LABELS, on_stage=told.append)
    assert told == ["loading", "loading"]
    segment(photo(), LABELS, on_stage=told.append)
    assert told[2:] == ["logits", "attention", "refinement"]
    assert len(registry.loaded) == 2


@pytest.mark.parametrize("option", ["model", "pretrained", "weights", "proxy"])
def test_sizes_of_other_weights_are_not_known(registered, option):
    registered()
    segment = by_name(attention_options={option: "mine"})
    assert segment.to_load() == {"one": "one: 1 GB", "two": "not stated"}
    assert make().to_load() == {}


def test_sources_that_take_a_device_are_given_one(registered, monkeypatch):
    def fixed(*, classes, device=None):
        made.append(device)
        return AnyColours(classes)

    def without(*, layer=0):
        made.append(layer)
        return Similarity()

    made, factories = [], {"logits": fixed, "attention": without}
    point = lambda kind: type("Point", (), {"load": lambda _: factories[kind]})()  # noqa: E731
    monkeypatch.setattr(lazy, "find", lambda kind, name: point(kind))
    monkeypatch.setattr(lazy, "facts", lambda kind, name: lazy.UNKNOWN)
    for device, options in (("cpu", {}), ("meta", {}), ("meta", {"device": "cpu"})):
        source = lazy.LazySource("logits", "one", options, Placement(torch.device(device)), None)
        source.logits(as_labels(LABELS), lambda: None)
    other = lazy.LazySource("attention", "two", {"layer": 1}, Placement(torch.device("meta")), None)
    other.attention(lambda: None)
    assert made == [None, "meta", "cpu", 1]


def test_other_options_share_thelazy(registered):
    registry = registered()
    first = by_name(logits_options={"scale": 2.0})
    one = first(photo(), LABELS)
    other = first.with_options(mode="kl", logits_options={"scale": 2.0}, max_pixels=None)
    assert other.to_load() == {}
    two = other(photo(), LABELS)
    assert len(registry.loaded) == 2
    same(two, by_hand(photo(), RefineConfig(mode="kl"))[0])
    assert not torch.equal(one.discrepancy, two.discrepancy)
    assert first.config.mode == "maximum_velocity"  # and the first is what it was
    assert other.with_options(attention="three").to_load() == {"three": "three: 1 GB"}
    assert other.with_options(logits="four").to_load() == {"four": "four: 1 GB"}
    assert len(other.with_options(models_dir="/somewhere").to_load()) == 2
    assert other.with_options(logits_options={"scale": 3.0}).to_load() == {"one": "one: 1 GB"}
    with pytest.raises(TypeError, match="modes"):
        first.with_options(modes="kl")


def test_the_repr_shows_the_arguments():
    shown = repr(Segmenter(mode="kl", radius=1))
    assert "logits='kk-mean', attention='dinov2-b14-reg', mode='kl'" in shown
    assert "radius=1" in shown


class OneAtATime:
    """Notes whether another thread was in the body at the same time."""

    def __init__(self):
        self.busy, self.overlaps = threading.Lock(), []

    def __enter__(self):
        self.mine = self.busy.acquire(blocking=False)
        self.overlaps.append(not self.mine)
        threading.Event().wait(0.02)

    def __exit__(self, *_):
        if self.mine:
            self.busy.release()


def together(work, jobs):
    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_load_once_and_use_a_source_one_at_a_time(registered):
    scoring, attending = OneAtATime(), OneAtATime()

    class Scores(AnyColours):
        def logits(self, images):
            with scoring:
                return super().logits(images)

    class Attends(Similarity):
        def attention(self, images):
            with attending:
                return super().attention(images)

    registry = registered(Scores, Attends)
    segment, found = by_name(), {}

    def work(job):
        found[job] = segment(photo(seed=job[0]), job[1])

    together(work, [(seed, labels) for seed in range(4) for labels in (LABELS, "green, red")])
    assert sorted(kind for kind, *_ in registry.loaded) == ["attention", "logits"]
    assert scoring.overlaps == attending.overlaps == [False] * 8
    for (seed, labels), one in found.items():
        same(one, make()(photo(seed=seed), labels))
    assert len(found) == 8


def test_an_overlap_would_be_detected():
    watched = OneAtATime()

    def work(_):
        with watched:
            pass

    together(work, range(3))
    assert True in watched.overlaps
