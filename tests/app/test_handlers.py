"""The responses to events, without gradio and without a browser."""

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.tiny_page import LIMITS, ColourAttention, ColourLogits, about, sources
from ovss_refine import registry
from ovss_refine.app.choices import HYPERPARAMETERS, options_of
from ovss_refine.app.handlers import Handlers
from ovss_refine.app.session import Sessions
from ovss_refine.app.work import FixedAttention, Worker, pick_example, staged
from ovss_refine.attention import Attention
from ovss_refine.config import RefineConfig
from ovss_refine.examples import example_labels, read_example
from ovss_refine.method.modes import MODES
from ovss_refine.refiner import refine
from ovss_refine.segmenter import Segmenter
from ovss_refine.sources import listing

VALUES = [one.default for one in HYPERPARAMETERS]
RGB = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
MODE = "maximum_velocity"
CHOSEN = ("models", "fire, grass", "kk-mean", "dinov2-b14-reg")


@pytest.fixture
def handlers(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", sources)
    monkeypatch.setattr(listing, "_about", about)
    root = tmp_path / "sessions"
    root.mkdir()
    worker = Worker(Segmenter(device="cpu", max_pixels=LIMITS["max_pixels"]))
    return Handlers(worker, Sessions(root), LIMITS["max_bytes"])


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(RGB).save(path)
    return str(path)


def last(changes):
    """Merge all changes, as the page does."""
    page = {}
    for change in changes:
        page |= change
    return page


def run(handlers, key="one", labels="fire, grass", logits="kk-mean", values=VALUES):
    return handlers.run(key, "models", labels, logits, "dinov2-b14-reg", MODE, *values)


def made_of(handlers, key="one"):
    return handlers.sessions.find(key).result.made


@pytest.mark.parametrize("stem", ["coffee", "astronaut"])
def test_an_example_is_refined_as_by_the_library(handlers, stem):
    page = last(handlers.pick("one", stem, "optimal_path", *VALUES))
    assert handlers.sessions.find("one").result is not None, page["status"]
    made = made_of(handlers)
    want = read_example(stem).refine(RefineConfig(mode="optimal_path"))
    assert torch.equal(made.labels, want.labels)
    assert list(made.names) == list(example_labels(stem).names)
    assert stem in page["status"]
    assert page["source"]["value"] == "own"
    page = handlers.offer("one")
    assert page["file_labels"]["value"].endswith(f"{stem}_labels.png")


def test_an_example_is_shown_whatever_the_pixel_limit(tmp_path):
    worker = Worker(Segmenter(device="cpu", max_pixels=10))
    assert worker.refine_example(pick_example("coffee"), {}).labels.shape == (341, 512)


def test_an_upload_is_segmented(handlers, photo):
    page = handlers.drop("one", photo)
    assert page["source"] == {"value": "models", "visible": False}
    assert page["file_all"]["interactive"] is False
    stages = [change["status"] for change in run(handlers) if "status" in change]
    for text in ("Loading", "kk-mean", "0.6 GB", "dinov2-b14-reg", "0.3 GB", "huggingface.co"):
        assert text in stages[0]
    later = [stage for stage in stages if "Loading" not in stage]
    for stage, text in zip(later, ("logits", "attention", "Deciding", "Refining"), strict=False):
        assert text in stage
    made = made_of(handlers)
    pixels = torch.from_numpy(RGB.transpose(2, 0, 1).copy())[None] / 255
    want = refine(
        ColourLogits(["fire", "grass"]).logits(pixels), ColourAttention(), pixels, RefineConfig()
    )
    assert torch.equal(made.labels, want.labels[0])


def test_hyperparameters_reach_the_refinement(handlers, photo):
    handlers.drop("one", photo)
    last(run(handlers))
    first = made_of(handlers)
    values = [0.9 if one.name == "tau" else one.default for one in HYPERPARAMETERS]
    last(run(handlers, values=values))
    second = made_of(handlers)
    assert not torch.equal(first.discrepancy, second.discrepancy)


def test_attention_of_the_same_image_is_computed_once(handlers, photo, monkeypatch):
    calls = []
    original = ColourAttention.attention
    monkeypatch.setattr(
        ColourAttention, "attention", lambda *args: calls.append(1) or original(*args)
    )
    handlers.drop("one", photo)
    last(run(handlers))
    first = made_of(handlers)
    last(run(handlers, labels="fire, grass, sea"))
    last(run(handlers))
    again = made_of(handlers)
    assert calls == [1]
    assert torch.equal(first.labels, again.labels)
    handlers.drop("one", photo)  # may be another image of the same name
    last(run(handlers))
    assert calls == [1, 1]
    last(handlers.pick("one", "coffee", MODE, *VALUES))
    last(run(handlers))
    assert calls == [1, 1, 1]


def test_models_are_kept_from_run_to_run(handlers, photo):
    handlers.drop("one", photo)
    assert set(handlers.worker.to_load("kk-mean", "dinov2-b14-reg")) == {
        "kk-mean",
        "dinov2-b14-reg",
    }
    last(run(handlers))
    assert handlers.worker.to_load("kk-mean", "dinov2-b14-reg") == {}
    assert set(handlers.worker.to_load("sclip", "dinov2-b14-reg")) == {"sclip"}
    stages = [change["status"] for change in run(handlers) if "status" in change]
    assert not any("Loading" in stage for stage in stages)
    stages = [c["status"] for c in run(handlers, labels="a, b") if "status" in c]
    assert "Embedding the labels" in stages[0]


def test_newly_chosen_models_are_kept_and_replace_the_others(handlers, photo):
    handlers.drop("one", photo)
    last(run(handlers))
    last(run(handlers, logits="sclip"))
    assert handlers.worker.to_load("sclip", "dinov2-b14-reg") == {}
    assert set(handlers.worker.to_load("kk-mean", "dinov2-b14-reg")) == {"kk-mean"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": "a, a"}, "no name twice"),
        ({"labels": ""}, "no empty name"),
        ({"logits": "clip"}, "<code>tiny/clip</code> must be available"),
    ],
)
def test_errors_are_reported_and_the_result_stays(handlers, photo, changes, message):
    handlers.drop("one", photo)
    last(run(handlers))
    before = made_of(handlers)
    page = last(run(handlers, **changes))
    assert message in page["status"]
    assert 'role="alert"' in page["status"]
    assert "result" not in page
    assert made_of(handlers) is before
    # The loaded models have not been dropped for unavailable ones.
    assert handlers.worker.to_load("kk-mean", "dinov2-b14-reg") == {}


def test_a_bug_shows_its_traceback_in_the_terminal_alone(handlers, photo, monkeypatch, capsys):
    handlers.drop("one", photo)

    def broken(*_):
        raise ZeroDivisionError("internal detail")

    monkeypatch.setattr(handlers.worker, "segment", broken)
    page = last(run(handlers))
    assert "not with your input. Details are in its terminal." in page["status"]
    assert "internal detail" not in page["status"]
    assert "ZeroDivisionError: internal detail" in capsys.readouterr().err


def test_a_bad_file_leaves_the_image_that_was_there(handlers, photo, tmp_path):
    handlers.drop("one", photo)
    bad = tmp_path / "bad.png"
    bad.write_text("not an image")
    page = handlers.drop("one", str(bad))
    assert "<code>bad.png</code> must be a readable image" in page["status"]
    assert "Drop another image" in page["status"]
    assert page["drop"] == {"value": None}
    assert handlers.sessions.find("one").image.name == "photo"


def tune(handlers, key="one", chosen=CHOSEN, mode=MODE, **changed):
    values = [changed.get(one.name, one.default) for one in HYPERPARAMETERS]
    return last(handlers.tune(key, *chosen, mode, *values))


def check(handlers, key="one", chosen=CHOSEN, **changed):
    values = [changed.get(one.name, one.default) for one in HYPERPARAMETERS]
    return handlers.check(key, *chosen, MODE, *values)


@pytest.fixture
def passes(monkeypatch):
    """The names of the models that have run."""
    found = []

    def count(name, original, *args):
        found.append(name)
        return original(*args)

    for kind, name in ((ColourLogits, "logits"), (ColourAttention, "attention")):
        counted = partial(count, name, getattr(kind, name))
        monkeypatch.setattr(kind, name, lambda *args, counted=counted: counted(*args))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_a_changed_setting_gives_the_result_of_a_new_run_without_a_model(
    handlers, photo, passes, mode
):
    handlers.drop("one", photo)
    last(run(handlers, labels="fire/red, grass, background: sea/sky"))
    first, chosen = (
        made_of(handlers),
        ("models", "fire/red, grass, background: sea/sky", *CHOSEN[2:]),
    )
    assert passes == ["logits", "attention"]
    page = tune(handlers, chosen=chosen, mode=mode, sigma_range=0.3, seed_quantile=0.5)
    again = made_of(handlers)
    assert passes == ["logits", "attention"]
    assert page["stale"] == ""
    assert page["run"] == {"interactive": True}
    pixels = torch.from_numpy(RGB.transpose(2, 0, 1).copy())[None] / 255
    source = ColourLogits(["fire/red", "grass", "background"])
    config = RefineConfig(
        mode=mode,
        **{
            name: value
            for name, value in {"sigma_range": 0.3, "seed_quantile": 0.5}.items()
            if name in options_of(mode, VALUES)
        },
    )
    want = refine(source.logits(pixels), ColourAttention(), pixels, config)
    assert torch.equal(again.labels, want.labels[0])
    assert again.names == first.names == ("fire", "grass", "background")
    assert torch.equal(again.baseline, first.baseline)
    assert again.attention is first.attention
    assert again.logits is first.logits
    assert list(again.seconds) == ["refinement"]


def test_a_changed_setting_of_an_example_gives_the_library_s_result(handlers):
    last(handlers.pick("one", "coffee", MODE, *VALUES))
    page = tune(handlers, chosen=("own", *CHOSEN[1:]), mode="fusion", tau=0.2)
    want = read_example("coffee").refine(RefineConfig(mode="fusion", tau=0.2))
    assert torch.equal(made_of(handlers).labels, want.labels)
    assert page["stale"] == ""
    assert page["file_all"] == {"value": None, "interactive": False}
    files = handlers.offer("one")
    with Image.open(files["file_labels"]["value"]) as labels:
        assert np.array_equal(np.asarray(labels), want.labels.numpy())


def test_a_changed_setting_keeps_the_patch_that_is_looked_at(handlers, photo):
    handlers.drop("one", photo)
    page = last(run(handlers))
    handlers.step("one", 3, 4)
    changed = tune(handlers, tau=0.2)
    assert not {"photo", "patch", "column", "row"} & changed.keys()
    assert Path(page["photo"]["value"]).exists()
    # Another map of attention has another picture.
    assert "patch" in last(handlers.run("one", *CHOSEN[:3], "dino-b8", MODE, *VALUES))


def test_settings_that_change_nothing_are_not_computed_again(handlers, photo):
    handlers.drop("one", photo)
    last(run(handlers))
    before = made_of(handlers)
    assert tune(handlers, epsilon=0.5) == {"stale": ""}  # which this mode does not read
    assert made_of(handlers) is before


def test_a_setting_out_of_range_marks_the_result(handlers, photo):
    handlers.drop("one", photo)
    last(run(handlers))
    before = made_of(handlers)
    for value in ("", 0, 2.0):
        page = tune(handlers, tau=value)
        assert "<code>Reach</code> must be a number from 0.05 to 0.95." in page["stale"]
        assert page.keys() == {"stale"}
        assert check(handlers, tau=value) == page
    assert made_of(handlers) is before


def test_results_for_other_labels_or_models_are_marked(handlers, photo):
    handlers.drop("one", photo)
    assert check(handlers) == {}  # there is none yet
    last(run(handlers))
    assert check(handlers) == {"stale": ""}
    for place, value in ((1, "fire"), (2, "sclip"), (3, "dino-b8")):
        other = [*CHOSEN]
        other[place] = value
        assert "Out of date" in check(handlers, chosen=other)["stale"]
        assert "Out of date" in tune(handlers, chosen=other, tau=0.1 * place)["stale"]
    assert check(handlers, chosen=("own", *CHOSEN[1:])) == {"stale": ""}  # an upload has none
    last(handlers.pick("one", "coffee", MODE, *VALUES))
    assert check(handlers, chosen=("own", "other", *CHOSEN[2:])) == {"stale": ""}
    assert "Out of date" in check(handlers)["stale"]


def test_a_setting_without_a_result_to_change_is_explained(handlers, photo):
    assert "choose an image again" in tune(handlers)["stale"]
    handlers.drop("one", photo)
    assert "Press <code>Segment</code>" in tune(handlers)["stale"]


def test_a_large_photograph_is_reduced_and_says_so(handlers, tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGB", (800, 600), "red").save(path)
    page = handlers.drop("one", str(path))
    assert "632 x 474 pixels, is loaded. It was scaled down from 800 x 600" in page["status"]
    assert "2 classes" in last(run(handlers))["status"]
    assert made_of(handlers).labels.shape == (474, 632)


def test_an_expired_session_is_reported(handlers):
    assert "choose an image again" in last(run(handlers))["status"]
    assert "choose an image again" in handlers.look("one", 3, 4)["status"]
    assert "choose an image again" in handlers.step("one", 1, 1)["status"]


def test_only_pick_and_drop_create_sessions(handlers, photo):
    """A page that was dropped and goes on must not push out one that is valid."""
    handlers.sessions.capacity = 1
    handlers.drop("valid", photo)
    last(run(handlers, key="gone"))
    handlers.look("gone", 1, 1)
    handlers.step("gone", 1, 1)
    tune(handlers, "gone")
    check(handlers, "gone")
    handlers.offer("gone")
    handlers.choose("gone", "own")
    handlers.choose_mode("gone", MODE)
    handlers.describe("gone", "kk-mean", "dinov2-b14-reg")
    handlers.drop("gone", None)
    assert "gone" not in handlers.sessions
    assert "2 classes" in last(run(handlers, key="valid"))["status"]


def test_a_patch_of_a_result_that_made_room_is_explained(handlers, photo):
    handlers.drop("one", photo)
    last(run(handlers))
    handlers.sessions.find("one").forget_result()
    for page in (handlers.look("one", 3, 4), handlers.step("one", 1, 1)):
        assert "press <code>Segment</code>" in page["patch"]
    assert "2 classes" in last(run(handlers))["status"]


@pytest.mark.parametrize(("column", "row"), [(-5, -5), (0, 0), (99, 99)])
def test_a_patch_beyond_the_grid_is_its_nearest(handlers, photo, column, row):
    handlers.drop("one", photo)
    last(run(handlers))
    page = handlers.step("one", column, row)
    assert page["column"]["value"] == min(max(column, 1), 16)
    assert page["row"]["value"] == min(max(row, 1), 12)


def test_fifty_visitors_who_work_in_turn_all_get_their_results(handlers, photo):
    keys = [f"visitor{n}" for n in range(50)]
    for key in keys:
        handlers.drop(key, photo)
    for key in keys:
        assert "2 classes" in last(run(handlers, key=key))["status"]
    assert all(handlers.sessions.find(key).result for key in keys)
    for key in keys:
        handlers.sessions.drop(key)
    assert list(handlers.sessions.root.iterdir()) == []


def test_sessions_share_nothing(handlers, photo):
    handlers.drop("one", photo)
    last(run(handlers))
    assert "choose an image again" in last(run(handlers, key="two"))["status"]
    assert "two" not in handlers.sessions


def test_a_click_selects_the_patch_under_it(handlers, photo):
    handlers.drop("one", photo)
    last(run(handlers))
    for (x, y), (column, row) in {
        (0, 0): (1, 1),
        (63, 47): (16, 12),
        (64, 48): (16, 12),  # the edge, to which a browser may round up
        (5, 20): (2, 6),
    }.items():
        page = handlers.look("one", x, y)
        assert (page["column"]["value"], page["row"]["value"]) == (column, row)
        assert f"column {column}, row {row}" in page["patch"]
    assert handlers.step("one", 3, 4)["patch"] != handlers.step("one", 4, 4)["patch"]


def test_the_drawn_attention_is_that_of_the_chosen_patch(handlers, photo):
    handlers.drop("one", photo)
    last(run(handlers))
    made = made_of(handlers)
    rows = made.attention.weights  # [N, N]
    drawn = []
    original = type(made).attention_overlay

    class Spy:
        image, discrepancy = made.image, made.discrepancy

        def attention_overlay(self, x, y):
            drawn.append(made.attention_map(x, y).flatten())
            return original(made, x, y)

    session = handlers.sessions.find("one")
    session.last = replace(session.last, made=Spy())
    handlers.step("one", 5, 7)
    assert torch.equal(drawn[0], rows[(7 - 1) * 16 + (5 - 1)])


def test_the_result_of_a_replaced_image_is_dropped(handlers, photo, tmp_path):
    handlers.drop("one", photo)
    work = run(handlers)
    next(work)
    other = tmp_path / "other.png"
    Image.fromarray(RGB[::-1].copy()).save(other)
    handlers.drop("one", str(other))
    page = last(work)
    assert page["run"] == {"interactive": True}
    assert not {"status", "result", "file_all"} & page.keys()
    assert handlers.sessions.find("one").result is None


@pytest.mark.parametrize("error", [None, FileNotFoundError("its folder was emptied")])
def test_files_of_a_replaced_image_are_not_offered(handlers, photo, monkeypatch, error):
    last(handlers.pick("one", "coffee", MODE, *VALUES))

    def write(made, stem, folder):
        handlers.drop("one", photo)
        if error:
            raise error
        return {"file_all": folder / "x.zip"}

    monkeypatch.setattr("ovss_refine.app.handlers.write_downloads", write)
    assert handlers.offer("one") == {}


def test_a_file_that_cannot_be_written_is_an_error(handlers, monkeypatch):
    last(handlers.pick("one", "coffee", MODE, *VALUES))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ovss_refine.app.handlers.write_downloads", full)
    page = handlers.offer("one")
    assert "could not read or write a file" in page["status"]
    assert "file_all" not in page


def test_only_the_files_of_the_last_result_are_kept(handlers, photo):
    handlers.drop("one", photo)
    last(run(handlers))
    handlers.offer("one")
    last(handlers.pick("one", "coffee", MODE, *VALUES))
    page = handlers.offer("one")
    names = {path.name for path in handlers.sessions.find("one").folder.iterdir()}
    assert {"coffee_all.zip", "coffee_labels.png"} <= names
    assert not any("photo" in name for name in names)
    handlers.sessions.drop("one")
    assert page["file_all"]["value"].startswith(str(handlers.sessions.root))
    assert list(handlers.sessions.root.iterdir()) == []


def test_stages_are_reported_as_they_begin():
    go = threading.Event()

    def work(on_stage):
        on_stage("logits")
        assert go.wait(10)
        raise ValueError("at last")

    stages = staged(work)
    assert next(stages) == "logits"
    go.set()
    with pytest.raises(ValueError, match="at last"):
        next(stages)


def test_fixed_attention_may_be_factors():
    q, k = (torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    attention = Attention.from_factors(q, k, 0.5, (2, 3))
    held = FixedAttention(attention).attention(torch.zeros(1, 3, 4, 6))
    assert held.shape == (1, 6, 6)
    x = torch.rand(1, 2, 6)
    assert torch.equal(held.left_matmul(x), attention.left_matmul(x))


def test_without_weights_and_network_the_error_says_what_to_do(tmp_path, photo, monkeypatch):
    pytest.importorskip("open_clip", reason="open_clip is not installed ([models])")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    segmenter = Segmenter(device="cpu", models_dir=tmp_path / "models")
    handlers = Handlers(Worker(segmenter), Sessions(tmp_path), LIMITS["max_bytes"])
    handlers.drop("one", photo)
    page = last(run(handlers))
    assert "must be available" in page["status"]
    assert "--models-dir" in page["status"]
    sentence, _, detail = page["status"].partition("<details>")
    assert "missing on the server" in sentence
    assert "--models-dir" not in sentence
    assert "--models-dir" in detail


def test_real_models_work(tmp_path, photo):
    """Tiny models of the real libraries, through the page's default sources."""
    pytest.importorskip("open_clip", reason="open_clip is not installed ([models])")
    pytest.importorskip("timm", reason="timm is not installed ([models])")
    from adapters.tiny_clip import tiny_clip
    from adapters.tiny_models import tiny_vit

    segmenter = Segmenter(
        device="cpu",
        logits_options={"model": tiny_clip(), "short_side": None, "cache_dir": None},
        attention_options={"model": tiny_vit("registers")},
    )
    handlers = Handlers(Worker(segmenter), Sessions(tmp_path), LIMITS["max_bytes"])
    handlers.drop("one", photo)
    page = last(run(handlers, labels="cat/kitten, background: wall/sky"))
    assert "2 classes" in page["status"]
    assert made_of(handlers).names == ("cat", "background")
