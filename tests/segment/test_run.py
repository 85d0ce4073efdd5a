"""What `segment` does with a folder of images: streaming, skipping, stopping, resuming."""

import csv
import os
import re
import signal
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fake_segmenter import FakeSegmenter, grades
from ovss_refine import RefineConfig
from ovss_refine.images.read import read_image
from ovss_refine.labels import parse_labels
from ovss_refine.segment import run as segment
from ovss_refine.segment.request import Outputs, SegmentRequest
from ovss_refine.segment.run import run_segment

LABELS = parse_labels("sky, dog/puppy, background: wall/floor")
PLAIN = Outputs(rle=False)
SIZES = [(12, 9), (8, 10), (12, 9), (12, 9), (8, 10), (12, 9), (5, 5)]


def make(root, count=7):
    """Images p0, p1 ... of several sizes in a folder."""
    (root / "photos").mkdir()
    for index in range(count):
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 256, (*SIZES[index % len(SIZES)], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "photos" / f"p{index}.png")


def request(root, **more):
    given = {"images": (str(root / "photos"),), "labels": LABELS, "out": root / "out"}
    return SegmentRequest(**(given | {"outputs": PLAIN} | more))


def labels_of(out, name):
    with Image.open(out / f"{name}_labels.png") as image:
        return np.asarray(image)


def check_labels(root, names, channel=0, kind="labels"):
    for name in names:
        pixels = read_image(root / "photos" / f"{name}.png")[..., channel]
        with Image.open(root / "out" / f"{name}_{kind}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), grades(pixels, 3))


def tree(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def rows(out):
    with (out / "areas.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_every_image_gets_its_own_labels_in_order(tmp_path, capsys, batch_size):
    make(tmp_path)
    fake = FakeSegmenter(sizes={"theirs": "0.6 GB", "ours": "-"})
    assert run_segment(request(tmp_path, batch_size=batch_size), fake) == 0
    check_labels(tmp_path, [f"p{i}" for i in range(7)])
    shapes = [(*size, 3) for size in SIZES]
    assert fake.calls == [shapes[i : i + batch_size] for i in range(0, 7, batch_size)]
    assert fake.events.count("load") == 1
    shown = capsys.readouterr()
    assert "loading theirs (0.6 GB), ours (-); downloading what is not cached\n" in shown.err
    said = re.findall(r"(?m)^(p\d): (.*); 1\.25 s$", shown.out)
    assert [name for name, _ in said] == [f"p{i}" for i in range(7)]
    counts = np.bincount(labels_of(tmp_path / "out", "p0").ravel(), minlength=3)
    order = np.argsort(-counts, kind="stable")
    assert said[0][1] == ", ".join(f"{LABELS.names[i]} {counts[i] / 108:.1%}" for i in order)
    assert shown.out.endswith(f"results: {tmp_path / 'out'} (7 of 7 images)\n")


def test_areas_are_in_a_table_and_printed(tmp_path, capsys):
    make(tmp_path, 2)
    assert run_segment(request(tmp_path, outputs=Outputs(baseline=True)), FakeSegmenter()) == 0
    table = rows(tmp_path / "out")
    for name in ("p0", "p1"):
        for kind, file in (("refined", "labels"), ("baseline", "baseline")):
            with Image.open(tmp_path / "out" / f"{name}_{file}.png") as image:
                counts = np.bincount(np.asarray(image).ravel())
            own = [row for row in table if (row["name"], row["labels"]) == (name, kind)]
            assert {int(r["index"]): int(r["pixels"]) for r in own} == dict(enumerate(counts))
            assert sum(float(r["share"]) for r in own) == pytest.approx(1, abs=1e-5)
            assert {r["class"] for r in own} == set(LABELS.names)
    check_labels(tmp_path, ["p0", "p1"], 1, "baseline")
    total = sum(int(r["pixels"]) for r in table if r["labels"] == "refined")
    dog = {
        kind: sum(int(r["pixels"]) for r in table if (r["labels"], r["index"]) == (kind, "1"))
        for kind in ("refined", "baseline")
    }
    line = rf"dog +2 +{dog['refined']} +{dog['refined'] / total:.1%} +{dog['baseline'] / total:.1%}"
    shown = capsys.readouterr().out
    assert re.search(rf"(?m)^class +images +pixels +share  baseline$[^$]*^{line}$", shown)


def test_the_printed_table_is_of_this_run_largest_first(tmp_path, capsys):
    make(tmp_path, 3)
    every = [str(tmp_path / "photos" / f"p{i}.png") for i in range(3)]
    assert run_segment(request(tmp_path, images=tuple(every)), FakeSegmenter()) == 0
    capsys.readouterr()
    some = request(tmp_path, images=tuple(every[1:]))  # finished by now, and still in the table
    assert run_segment(some, FakeSegmenter()) == 0
    shown = re.findall(r"(?m)^(\w+) +2 +(\d+) +(\d+\.\d)%$", capsys.readouterr().out)
    pixels = sum(np.bincount(labels_of(tmp_path / "out", f"p{i}").ravel()) for i in (1, 2))
    order = np.argsort(-pixels, kind="stable")
    assert len(set(pixels)) == 3  # so that an order exists
    assert shown == [
        (LABELS.names[i], str(pixels[i]), f"{pixels[i] / pixels.sum():.1%}"[:-1]) for i in order
    ]


def test_memory_holds_one_batch_and_nothing_is_read_ahead(tmp_path, monkeypatch):
    make(tmp_path, 60)
    fake, alive, most, reads = FakeSegmenter(), [0], [0], []

    def read(path, **more):
        assert len(reads) - sum(map(len, fake.calls)) < 4  # a batch at most is waiting
        image = read_image(path, **more).copy()
        reads.append(path)
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        weakref.finalize(image, lambda: alive.__setitem__(0, alive[0] - 1))
        return image

    monkeypatch.setattr(segment, "read_image", read)
    assert run_segment(request(tmp_path, batch_size=4), fake) == 0
    assert (len(reads), most[0], alive[0]) == (60, 4, 0)


def test_the_check_of_memory_can_fail(tmp_path, monkeypatch):
    kept, segmented = [], FakeSegmenter.segment
    keep = lambda self, image, *more: kept.append(image) or segmented(self, image, *more)  # noqa: E731
    monkeypatch.setattr(FakeSegmenter, "segment", keep)
    with pytest.raises(AssertionError):
        test_memory_holds_one_batch_and_nothing_is_read_ahead(tmp_path, monkeypatch)


def test_broken_files_are_listed_and_the_rest_is_done(tmp_path, capsys):
    make(tmp_path)
    photos = tmp_path / "photos"
    (photos / "p1.png").write_text("not an image")
    (photos / "p3.png").write_bytes((photos / "p3.png").read_bytes()[:200])
    (photos / "p5.png").write_bytes(b"")
    (photos / "p6.png").unlink()
    (photos / "p6.png").symlink_to(photos / "gone.png")
    assert run_segment(request(tmp_path, batch_size=2), FakeSegmenter()) == 1
    check_labels(tmp_path, ["p0", "p2", "p4"])
    assert len(tree(tmp_path / "out")) == 3 * 2 + 3
    shown = capsys.readouterr()
    assert "(3 of 7 images)" in shown.out
    failed = [line for line in shown.err.splitlines() if line.startswith("failed: ")]
    assert [re.search(r"p\d", line)[0] for line in failed] == ["p1", "p3", "p5", "p6"]
    assert "No such file" in failed.pop()  # a link to nowhere is not passed over
    says = r"failed: `.*p\d\.png` must be a readable image; got "
    assert all(re.match(says, line) for line in failed)


def test_an_image_deleted_during_the_run_is_a_failure(tmp_path, capsys):
    make(tmp_path, 2)

    class Deleting(FakeSegmenter):
        def prepare(self, labels=None, on_stage=None):
            (tmp_path / "photos" / "p1.png").unlink()

    assert run_segment(request(tmp_path), Deleting()) == 1
    assert re.search(r"failed: .*p1\.png", capsys.readouterr().err)
    check_labels(tmp_path, ["p0"])


def test_no_model_is_loaded_if_no_image_can_be_read(tmp_path):
    make(tmp_path, 2)
    for path in (tmp_path / "photos").iterdir():
        path.write_bytes(b"")
    fake = FakeSegmenter()
    assert run_segment(request(tmp_path), fake) == 1
    assert fake.events == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [ValueError("too thin"), RuntimeError("out of memory")])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_failed_batch_is_repeated_one_by_one(tmp_path, capsys, error, batch_size):
    make(tmp_path)
    fake = FakeSegmenter(lambda image: error if len(image) == 5 else None)
    assert run_segment(request(tmp_path, batch_size=batch_size), fake) == 1
    check_labels(tmp_path, [f"p{i}" for i in range(6)])
    assert f"failed: `{tmp_path / 'photos' / 'p6.png'}`: {error}\n" in capsys.readouterr().err
    assert not (tmp_path / "out" / "p6_labels.png").exists()


@pytest.mark.parametrize("error", [FileNotFoundError("no weights"), ValueError("too long a label")])
def test_an_error_while_loading_ends_the_run(tmp_path, error):
    make(tmp_path, 2)

    class Failing(FakeSegmenter):
        def prepare(self, labels=None, on_stage=None):
            raise error

    with pytest.raises(type(error), match=str(error)):
        run_segment(request(tmp_path), Failing())
    assert not (tmp_path / "out").exists()


def test_finished_images_are_skipped(tmp_path, capsys):
    make(tmp_path)
    assert run_segment(request(tmp_path), FakeSegmenter()) == 0
    before = tree(tmp_path / "out")
    fake = FakeSegmenter()
    capsys.readouterr()
    assert run_segment(request(tmp_path), fake) == 0
    assert fake.events == []
    shown = capsys.readouterr().out
    assert shown.startswith("7 of 7 images were finished before\nclass ")
    (tmp_path / "out" / "p2_overlay.png").unlink()
    assert run_segment(request(tmp_path, batch_size=9), fake) == 0
    assert fake.calls == [[(12, 9, 3)]]
    after = tree(tmp_path / "out")
    assert set(after) == set(before)
    assert {name for name in after if after[name] != before[name]} <= {
        *("segment.json", "records.0.jsonl", "areas.csv"),
    }
    assert len(rows(tmp_path / "out")) == 7 * 3
    fake = FakeSegmenter()
    assert run_segment(request(tmp_path, outputs=Outputs(rle=False, masks=True)), fake) == 0
    assert len(fake.calls) == 7  # none had masks
    fake = FakeSegmenter()
    assert run_segment(request(tmp_path, overwrite=True), fake) == 0
    assert len(fake.calls) == 7


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            {"labels": parse_labels("sky, dog, cat")},
            r"labels was \['sky', 'dog', 'background'\], is",
        ),
        (
            {"labels": parse_labels("sky, dog, background: wall/floor")},
            r"prompts was .*puppy.*, is",
        ),
        ({"logits": "clip"}, "logits was 'kk-mean', is 'clip'"),
        ({"attention": "sd2"}, "attention was 'dinov2-b14-reg', is 'sd2'"),
        ({"logits_options": {"model": "L/14"}}, "logits option model was absent, is 'L/14'"),
        ({"attention_options": {"size": 7}}, "attention option size was absent, is 7"),
        ({"config": RefineConfig(tau=0.4)}, r"tau was 0\.3, is 0\.4"),
        ({"config": RefineConfig(upsampler="guided")}, "upsampler was 'jbu', is 'guided'"),
        ({"config": RefineConfig(background=(0, 0.5))}, r"background was absent, is \[0, 0\.5\]"),
        ({"dtype": "bfloat16"}, r"dtype was absent, is 'bfloat16'"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, more, says):
    make(tmp_path, 2)
    assert run_segment(request(tmp_path), FakeSegmenter()) == 0
    before, fake = tree(tmp_path / "out"), FakeSegmenter()
    with pytest.raises(ValueError, match=f"must be a folder of the same settings; .* {says}"):
        run_segment(request(tmp_path, **more), fake)
    assert (tree(tmp_path / "out"), fake.events) == (before, [])
    assert run_segment(request(tmp_path, **more, overwrite=True), fake) == 0
    assert len(fake.calls) == 2


def test_batch_size_and_files_are_not_settings(tmp_path):
    make(tmp_path, 2)
    assert run_segment(request(tmp_path), FakeSegmenter()) == 0
    more = {"batch_size": 2, "max_pixels": 10**9, "device": "cpu", "models_dir": Path("m")}
    assert run_segment(request(tmp_path, **more), fake := FakeSegmenter()) == 0
    assert fake.events == []


def test_images_of_one_name_in_two_folders(tmp_path):
    make(tmp_path, 2)
    (tmp_path / "photos" / "sub").mkdir()
    Image.new("RGB", (3, 3), "red").save(tmp_path / "photos" / "sub" / "p0.png")
    every = (str(tmp_path / "photos" / "**" / "*.png"),)
    assert run_segment(request(tmp_path, images=every), FakeSegmenter()) == 0
    check_labels(tmp_path, ["p0", "p1", "sub/p0"])
    assert {row["name"] for row in rows(tmp_path / "out")} == {"p0", "p1", "sub/p0"}
    fake = FakeSegmenter()
    with pytest.raises(ValueError, match=r"results of another image of the same name; .* 'p0'"):
        run_segment(request(tmp_path, images=(str(tmp_path / "photos" / "sub"),)), fake)


@pytest.mark.parametrize("out", ["file/out", "file", "/proc/out"])
def test_an_unwritable_folder_is_reported_first(tmp_path, out):
    make(tmp_path, 1)
    (tmp_path / "file").touch()
    fake = FakeSegmenter()
    with pytest.raises(OSError, match="`out` must be a folder"):
        run_segment(request(tmp_path, out=tmp_path / out), fake)
    assert fake.events == []


@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1; got 0"),
        ({"max_pixels": 0}, ValueError, "`max_pixels` must be at least 1; got 0"),
        (
            {"config": RefineConfig(background=(3, 0.5))},
            ValueError,
            "one of the M=3 classes; got 3",
        ),
        ({"config": RefineConfig(keep_scores=True)}, ValueError, "`keep_scores` must not be set"),
    ],
)
def test_bad_requests(tmp_path, more, error, text):
    with pytest.raises(error, match=text):
        request(tmp_path, **more)


def check_whole(root):
    """All files there are can be read, none is a part of one; return the names that are done."""
    files = [path for path in (root / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".part"]
    for path in files:
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
    return (
        {row["name"] for row in rows(root / "out")} if (root / "out/areas.csv").exists() else set()
    )


@pytest.mark.parametrize("place", ["segmenting", "writing", "reading"])
def test_ctrl_c_leaves_whole_results(tmp_path, capsys, monkeypatch, place):
    make(tmp_path)
    count = []

    def interrupt(*_):
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt

    fake = FakeSegmenter(interrupt if place == "segmenting" else lambda image: None)
    if place == "writing":
        write = segment.write_outputs
        halfway = lambda *a: write(*a[:3], PLAIN) if interrupt() is None else None  # noqa: E731
        monkeypatch.setattr(segment, "write_outputs", halfway)
    if place == "reading":
        read = lambda *a, **more: (interrupt(), read_image(*a, **more))[1]  # noqa: E731
        monkeypatch.setattr(segment, "read_image", read)
    with pytest.raises(KeyboardInterrupt):
        run_segment(request(tmp_path), fake)
    assert check_whole(tmp_path) == {"p0", "p1", "p2"}
    says = f"finished results are in {tmp_path / 'out'}; the same command resumes the run"
    assert says in capsys.readouterr().err
    monkeypatch.undo()
    assert run_segment(request(tmp_path), again := FakeSegmenter()) == 0
    assert len(again.calls) == 4
    check_labels(tmp_path, [f"p{i}" for i in range(7)])


# A shell starts background jobs ignoring SIGINT, and so do their children.
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from fake_segmenter import FakeSegmenter
from ovss_refine.segment import run as segment
from ovss_refine.cli import main
class Slow(FakeSegmenter):
    def __init__(self, *args, **more): super().__init__(lambda image: time.sleep(0.01))
segment.Segmenter = Slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("after", [1, 9])
def test_a_signal_stops_a_real_run(tmp_path, forks, after):
    make(tmp_path, 30)
    words = ["segment", tmp_path / "photos", "--labels", str(LABELS), "--out", tmp_path / "out"]

    def interrupt(process):
        while len(list((tmp_path / "out").glob("*_overlay.png"))) < after:
            os.kill(process, 0)  # raises if it has ended
            time.sleep(0.005)
        os.kill(process, signal.SIGINT)

    stopped = forks.run(SLOW, *words, "--no-rle", meanwhile=interrupt)
    assert stopped.returncode == 130
    done = check_whole(tmp_path)
    assert after - 1 <= len(done) < 30
    assert re.search(r"\nfinished results are in .*\novss-refine: stopped", stopped.stderr)
    assert run_segment(request(tmp_path), again := FakeSegmenter()) == 0
    assert len(again.calls) == 30 - len(done)
    check_labels(tmp_path, [f"p{i}" for i in range(30)])


def test_a_name_too_long_for_its_results_does_not_stop_the_run(tmp_path, capsys):
    make(tmp_path, 2)
    (tmp_path / "photos" / "p0.png").rename(tmp_path / "photos" / ("a" * 248 + ".png"))
    assert run_segment(request(tmp_path), FakeSegmenter()) == 1
    check_labels(tmp_path, ["p1"])
    assert "File name too long" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.part"))
