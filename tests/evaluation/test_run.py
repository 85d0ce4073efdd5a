"""Whole evaluations on miniature data: results, errors, resuming, bad input."""

import argparse
import importlib
import json
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from evaluation.trees import CLASSES, LAYOUTS, read_labels, write_arrays, write_tree
from ovss_refine import Attention, Refiner, joint_bilateral_upsample
from ovss_refine.attention import affinity
from ovss_refine.cli import main
from ovss_refine.evaluation import ROWS, engine
from ovss_refine.evaluation.totals import add_up
from ovss_refine.folders.records import read_all

DATA = Path(__file__).parents[3] / "shared" / "data"


def arguments(root, name, *more, out="out"):
    """Return the arguments of an evaluation on a miniature data set with arrays beside it."""
    source = f"npz:{root / 'arrays'}"
    fixed = ["--dataset", name, "--root", str(root), "--logits", source, "--attention", source]
    return ["evaluate", *fixed, "--out", str(root / out), *more]


def make(root, name, count=3):
    ids = write_tree(root, name, count)
    write_arrays(root / "arrays", ids, CLASSES[name])
    return ids


def numbers(out):
    """Return everything in the results except the times."""
    found = json.loads((out / "results.json").read_text())
    for row in found["rows"].values():
        del row["seconds_per_image"]
    del found["sources_seconds_per_image"]
    with np.load(out / "confusion.npz") as counts:
        return found, {name: counts[name].tolist() for name in counts}


def expected_counts(root, name, ids, row):
    """Count without the code of the evaluation: arrays, refiner, histogram of pairs."""
    M = CLASSES[name]
    total = np.zeros((M, M), dtype=int)
    for id in ids:
        arrays = np.load(root / "arrays" / f"{id}.npz")
        logits = torch.from_numpy(arrays["logits"])
        attention = affinity(torch.from_numpy(arrays["features"]), 0.05)
        with Image.open(root / LAYOUTS[name][0].format(id)) as opened:
            image = torch.from_numpy(np.array(opened)).permute(2, 0, 1)
        if row == "baseline":
            large = F.interpolate(logits[None], image.shape[1:], mode="bilinear")[0]
            labels = (large.double().softmax(0)).argmax(0)
        elif row == "upsampling":
            low = logits.softmax(0)[None]
            labels = joint_bilateral_upsample(low, image[None])[0].argmax(0)
        else:
            refiners = {"refined": Refiner, "paper": Refiner.paper}
            refiner = refiners[row]() if row in refiners else Refiner(row)
            labels = refiner(logits, attention, image).labels
        truth = read_labels(root, name, id)
        for t, p in zip(truth.ravel(), labels.numpy().ravel(), strict=True):
            if t != 255:
                total[t, p] += 1
        arrays.close()
    return total


@pytest.mark.parametrize("name", CLASSES)
def test_every_data_set_and_row(tmp_path, name, capsys):
    ids = make(tmp_path, name, count=2)
    assert main(arguments(tmp_path, name)) == 0
    assert f"| {name}, 2 images |" in capsys.readouterr().out
    found, counts = numbers(tmp_path / "out")
    assert tuple(found["rows"]) == ROWS
    for row in ROWS:
        wanted = expected_counts(tmp_path, name, ids, row)
        assert wanted.sum() == np.sum(counts[row])
        # Ties, and rounding of 8 bits to [0, 1], may change a pixel; a wrong rule changes many.
        assert np.abs(wanted - counts[row]).sum() <= 0.005 * wanted.sum()


def test_rows_and_limit(tmp_path, capsys):
    make(tmp_path, "folder", count=4)
    assert main(arguments(tmp_path, "folder", "--rows", "refined", "--limit", "3")) == 0
    found, counts = numbers(tmp_path / "out")
    assert (found["images"], list(found["rows"]), list(counts)) == (3, ["refined"], ["refined"])
    assert "baseline" not in capsys.readouterr().out


def test_a_calibrated_scale(tmp_path):
    make(tmp_path, "folder", count=2)
    asked = ("--logit-scale", "auto", "--rows", "upsampling", "refined", "paper")
    for _ in range(2):  # the second time it finds its results
        assert main(arguments(tmp_path, "folder", *asked)) == 0
    scaled = (*asked, "--logits-option", "scale=0.01")
    assert main(arguments(tmp_path, "folder", *scaled, out="scaled")) == 0
    assert numbers(tmp_path / "out") == numbers(tmp_path / "scaled")
    assert main(arguments(tmp_path, "folder", *asked[2:], out="fixed")) == 0
    assert numbers(tmp_path / "out") != numbers(tmp_path / "fixed")


def test_batches_and_workers_do_not_change_the_numbers(tmp_path):
    make(tmp_path, "folder", count=7)
    assert main(arguments(tmp_path, "folder")) == 0
    more = ("--batch-size", "3", "--workers", "4")
    assert main(arguments(tmp_path, "folder", *more, out="batched")) == 0
    assert numbers(tmp_path / "out") == numbers(tmp_path / "batched")


def test_a_background_that_the_data_set_lacks(tmp_path, capsys):
    ids = write_tree(tmp_path, "voc20", 2)
    write_arrays(tmp_path / "arrays", ids, 21)
    assert main(arguments(tmp_path, "voc20")) == 2
    shown = capsys.readouterr().err
    assert "must have the M=20 classes of voc20; got 21" in shown
    assert "--drop-background" in shown
    assert main(arguments(tmp_path, "voc20", "--drop-background", out="dropped")) == 0
    for id in ids:
        path = tmp_path / "arrays" / f"{id}.npz"
        arrays = dict(np.load(path))
        np.savez(path, logits=arrays["logits"][1:], features=arrays["features"])
    assert main(arguments(tmp_path, "voc20", out="by-hand")) == 0
    assert numbers(tmp_path / "dropped") == numbers(tmp_path / "by-hand")


def test_a_finished_run_is_not_repeated_and_a_stopped_one_is_resumed(tmp_path, monkeypatch):
    ids = make(tmp_path, "folder", count=5)
    assert main(arguments(tmp_path, "folder", out="whole")) == 0
    measured, real = [], engine._measure

    def measure(job, batch, device):
        measured.append(batch.samples[0].id)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return real(job, batch, device)

    monkeypatch.setattr(engine, "_measure", measure)
    assert main(arguments(tmp_path, "folder")) == 130
    assert not (tmp_path / "out/results.json").exists()
    assert main(arguments(tmp_path, "folder")) == 0
    assert measured == [*sorted(ids)[:3], *sorted(ids)[2:]]
    assert numbers(tmp_path / "out") == numbers(tmp_path / "whole")
    assert main(arguments(tmp_path, "folder")) == 0
    assert len(measured) == 6
    starts = json.loads((tmp_path / "out/manifest.json").read_text())["starts"]
    assert len(starts) == 3


def test_records_number_the_batches_of_each_start(tmp_path):
    make(tmp_path, "folder", count=5)
    for limit in ("3", None):
        more = ("--limit", limit) if limit else ()
        if limit is None:  # the same settings except the limit, so that it is resumed
            path = tmp_path / "out/manifest.json"
            noted = json.loads(path.read_text())
            noted["settings"] |= later(tmp_path)
            path.write_text(json.dumps(noted))
        assert main(arguments(tmp_path, "folder", *more)) == 0
    assert [record["batch"] for record in read_all(tmp_path / "out")] == [0, 1, 2, 0, 1]


def later(root):
    """Return the settings of a run over everything."""
    assert main(arguments(root, "folder", out="whole")) == 0
    return json.loads((root / "whole/manifest.json").read_text())["settings"]


def test_other_settings_are_refused(tmp_path, capsys):
    make(tmp_path, "folder")
    assert main(arguments(tmp_path, "folder")) == 0
    before = numbers(tmp_path / "out")
    for more, message in (
        (("--tau", "0.5"), "refinement tau was 0.3, is 0.5"),
        (("--mode", "kl"), "refinement mode was 'maximum_velocity', is 'kl'"),
        (("--limit", "2"), "limit was absent, is 2"),
        (("--attention-option", "temperature=0.2"), "attention option temperature was absent"),
    ):
        assert main(arguments(tmp_path, "folder", *more)) == 2
        assert message in capsys.readouterr().err
    write_arrays(tmp_path / "arrays", [min(p.stem for p in (tmp_path / "arrays").iterdir())], 5)
    assert main(arguments(tmp_path, "folder")) == 2
    assert "logits files was" in capsys.readouterr().err
    assert numbers(tmp_path / "out") == before


def test_options_that_do_not_change_the_results_may_differ(tmp_path):
    make(tmp_path, "folder")
    assert main(arguments(tmp_path, "folder")) == 0
    more = ("--workers", "1", "--batch-size", "2", "--on-error", "skip", "--pictures", "1")
    assert main(arguments(tmp_path, "folder", *more)) == 0


def test_the_default_folder_is_named_after_the_settings(tmp_path, monkeypatch, capsys):
    make(tmp_path, "folder")
    monkeypatch.chdir(tmp_path)
    base = arguments(tmp_path, "folder")[:-2]
    for more in ([], ["--tau", "0.4"], []):
        assert main([*base, *more]) == 0
    folders = re.findall(r"class by class: (\S+)/results\.md", capsys.readouterr().out)
    assert folders[0] == folders[2] != folders[1]
    assert folders[0].startswith("ovss-refine-results/folder-")


def test_the_manifest_has_the_settings(tmp_path):
    make(tmp_path, "ade20k")
    assert main(arguments(tmp_path, "ade20k", "--tau", "0.25")) == 0
    content = json.loads((tmp_path / "out/manifest.json").read_text())
    settings, (start,) = content["settings"], content["starts"]
    assert settings["refinement tau"] == 0.25
    assert settings["dataset name"] == "ade20k"
    assert len(settings["dataset names"]) == 150
    assert settings["dataset images"] == 3
    assert len(settings["dataset files"]) == 16
    assert settings["rows"] == list(ROWS)
    assert start["root"] == str(tmp_path)
    assert start["versions"]["torch"] == torch.__version__.split("+")[0]
    assert start["command"]


def test_the_first_images_are_drawn(tmp_path):
    make(tmp_path, "cityscapes", count=4)
    assert main(arguments(tmp_path, "cityscapes", "--pictures", "2")) == 0
    names = sorted(path.name for path in (tmp_path / "out/pictures").iterdir())
    assert names == ["a_a_000000.png", "a_a_000002.png"]


def spoil(root, ids, name="folder"):
    """Damage three files as a disk or a download might."""
    image, mask = LAYOUTS[name][:2]
    cut = root / image.format(ids[0])
    cut.write_bytes(cut.read_bytes()[:300])
    Image.new("L", (5, 4)).save(root / mask.format(ids[1]))
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(root / mask.format(ids[2]))


def test_damaged_files_stop_the_run_by_name(tmp_path, capsys):
    ids = make(tmp_path, "folder", count=5)
    spoil(tmp_path, ids)
    faults = {
        ids[0]: "must be a readable image",
        ids[1]: "must have the size of its image, 32 x 24; got 5 x 4",
        ids[2]: "must have values from 0 to 4, or 255; got [77]",
    }
    for at, id in enumerate(sorted(faults)):  # in the order of the images; repaired afterwards
        assert main(arguments(tmp_path, "folder", out=f"out{at}")) == 2
        error = capsys.readouterr().err
        assert f"{id}: `" in error
        assert faults[id] in error
        assert "Pass --on-error skip" in error
        Image.new("RGB", (32, 24)).save(tmp_path / "images" / f"{id}.jpg")
        Image.new("L", (32, 24)).save(tmp_path / "masks" / f"{id}.png")
    assert main(arguments(tmp_path, "folder")) == 0


def test_damaged_files_are_skipped_on_request(tmp_path, capsys):
    ids = make(tmp_path, "folder", count=6)
    spoil(tmp_path, ids)
    (tmp_path / "masks" / f"{ids[3]}.png").unlink()
    assert main(arguments(tmp_path, "folder", "--on-error", "skip")) == 0
    assert "folder, 2 images, 4 skipped" in capsys.readouterr().out
    found, counts = numbers(tmp_path / "out")
    assert sorted(found["skipped"]) == sorted(ids[:4])
    assert "must be the mask of an image" in found["skipped"][ids[3]]
    wanted = expected_counts(tmp_path, "folder", ids[4:], "refined")
    assert np.abs(wanted - counts["refined"]).sum() <= 0.005 * wanted.sum()
    before = len(list(read_all(tmp_path / "out")))
    assert main(arguments(tmp_path, "folder", "--on-error", "skip")) == 0  # they are retried
    assert len(list(read_all(tmp_path / "out"))) == before + 4
    assert numbers(tmp_path / "out") == (found, counts)


def test_a_stopped_run_can_be_resumed_with_skip(tmp_path):
    ids = make(tmp_path, "folder", count=4)
    cut = tmp_path / "images" / f"{sorted(ids)[2]}.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    assert main(arguments(tmp_path, "folder", "--workers", "1")) == 2
    assert len(add_up(tmp_path / "out", ROWS, 5).done) == 2
    assert main(arguments(tmp_path, "folder", "--on-error", "skip")) == 0
    assert numbers(tmp_path / "out")[0]["images"] == 3


def test_missing_images_and_masks_are_reported_before_any_work(tmp_path, capsys):
    ids = make(tmp_path, "folder", count=4)
    (tmp_path / "masks" / f"{ids[3]}.png").unlink()
    (tmp_path / "images" / f"{ids[1]}.jpg").unlink()
    assert main(arguments(tmp_path, "folder")) == 2
    error = capsys.readouterr().err
    assert "an image and a mask for each of 4 images; 2 are missing" in error
    assert "dataset check folder" in error
    assert not (tmp_path / "out").exists()


def test_missing_and_damaged_arrays(tmp_path, capsys):
    ids = make(tmp_path, "folder")
    line = arguments(tmp_path, "folder")
    line[line.index("--attention") + 1] = f"npz:{write_arrays(tmp_path / 'maps', ids, 5)}"
    path = tmp_path / "maps" / f"{ids[1]}.npz"
    path.write_bytes(path.read_bytes()[:200])
    assert main(line) == 2
    assert f"{ids[1]}: `{path}` must be a readable .npz file" in capsys.readouterr().err
    (tmp_path / "arrays" / f"{ids[1]}.npz").unlink()
    assert main(arguments(tmp_path, "folder", "--on-error", "skip", out="skip")) == 0
    assert list(numbers(tmp_path / "skip")[0]["skipped"]) == [ids[1]]


def test_no_readable_image_is_an_error(tmp_path, capsys):
    for id in make(tmp_path, "folder"):
        (tmp_path / "masks" / f"{id}.png").write_bytes(b"")
    assert main(arguments(tmp_path, "folder", "--on-error", "skip")) == 2
    assert "must have an image that can be read; all 3 failed" in capsys.readouterr().err


def test_logits_with_the_classes_last_are_named(tmp_path, capsys):
    ids = make(tmp_path, "folder")
    path = tmp_path / "arrays" / f"{ids[0]}.npz"
    arrays = dict(np.load(path))
    arrays["logits"] = np.random.default_rng(0).normal(size=(6, 9, 5)).astype(np.float32)
    np.savez(path, **arrays)
    assert main(arguments(tmp_path, "folder")) == 2
    assert (
        "got 6. The last axis has as many: pass [K, h, w], of an array" in capsys.readouterr().err
    )


def test_a_wrong_number_of_classes_stops_the_run_even_with_skip(tmp_path, capsys):
    ids = write_tree(tmp_path, "folder")
    write_arrays(tmp_path / "arrays", ids, 4)
    assert main(arguments(tmp_path, "folder", "--on-error", "skip")) == 2
    error = capsys.readouterr().err
    assert "must have the M=5 classes of folder; got 4" in error
    assert "--drop-background" not in error
    assert not (tmp_path / "out").exists()  # nothing was measured


def test_a_run_is_resumed_after_a_full_disk(tmp_path, capsys, monkeypatch):
    """The kernel limits the size of files, so that records fail after a few images."""
    monkeypatch.setattr("sys.argv", ["ovss-refine"])  # the manifest has it, and must fit
    make(tmp_path, "folder", count=8)
    assert main(arguments(tmp_path, "folder", out="whole")) == 0
    size = (tmp_path / "whole/records.0.jsonl").stat().st_size
    assert size > 5000  # beyond the manifest's
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        assert main(arguments(tmp_path, "folder")) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be written" in capsys.readouterr().err
    done = add_up(tmp_path / "out", ROWS, 5).done
    assert 1 <= len(done) < 8
    assert main(arguments(tmp_path, "folder")) == 0
    assert numbers(tmp_path / "out") == numbers(tmp_path / "whole")


class NoModel:
    """What the benchmark asks of a vision transformer, where only the arrays' logits count."""

    index = None

    def __call__(self, image):
        return {"features": image[:, :2, :2]}

    def cosines(self, features):
        return features


@pytest.mark.parametrize(("name", "dataset"), [("voc_real", "voc21"), ("camvid_real", "folder")])
def test_real_photographs_give_the_numbers_of_the_benchmark(tmp_path, monkeypatch, name, dataset):
    """`benchmarks/real_data.py` has its own code to read, count and divide."""
    root = DATA / name
    if not root.is_dir():
        pytest.skip(f"the photographs in {root} are missing")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    benchmark = importlib.import_module("real_data")
    folder = benchmark.open_folder(root, 2, "all")
    pairs = {
        "baseline": ("-", "bilinear"),
        "upsampling": ("-", "upsampling alone"),
        "refined": ("own", "default"),
        "paper": ("own", "paper, maximum velocity"),
        "propagation": ("own", "propagation, k = 3"),
        "anchored": ("own", "anchored, k = 3"),
    }
    theirs = {}
    asked = argparse.Namespace(
        logits=["strong", "weak"], attention=["own"], rows=list(benchmark.ROWS), upsampler="jbu"
    )
    for stem in folder.ids:
        measured = benchmark.measure_image(folder, folder.read(stem), NoModel(), {}, asked)
        for attention, logits, row, counts, _ in measured:
            key = logits, (attention, row)
            theirs[key] = theirs.get(key, 0) + counts
    for strength, key in (("strong", "logits"), ("weak", "logits_weak")):
        source = f"npz:{root / 'arrays'}"
        line = ["evaluate", "--dataset", dataset, "--root", str(root), "--limit", "2"]
        line += ["--logits", source, "--logits-option", f"key={key}"]
        line += ["--attention", source, "--attention-option", f"temperature={folder.temperature}"]
        assert main([*line, "--out", str(tmp_path / key)]) == 0
        found = json.loads((tmp_path / key / "results.json").read_text())["rows"]
        for ours, same in pairs.items():
            counts = theirs[strength, same]
            accuracy = 100 * counts.diagonal().sum() / counts.sum()
            assert found[ours]["accuracy"] == pytest.approx(float(accuracy), abs=0.02), ours
            miou = benchmark.mean_iou(counts, range(folder.M))
            assert found[ours]["miou"] == pytest.approx(float(miou), abs=0.02), ours


def test_real_photographs_without_background(tmp_path):
    root = DATA / "voc_real"
    if not root.is_dir():
        pytest.skip(f"the photographs in {root} are missing")
    source = f"npz:{root / 'arrays'}"
    line = ["evaluate", "--dataset", "voc20", "--root", str(root), "--limit", "4"]
    line += ["--logits", source, "--attention", source, "--drop-background"]
    assert main([*line, "--rows", "baseline", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/results.json").read_text())["rows"]["baseline"]
    total = np.zeros((20, 20))
    for id in (root / "VOC2012/ImageSets/Segmentation/val.txt").read_text().split()[:4]:
        with Image.open(root / f"VOC2012/SegmentationClass/{id}.png") as mask:
            raw = np.asarray(mask).astype(int)
        with np.load(root / "arrays" / f"{id}.npz") as arrays:
            logits = torch.from_numpy(arrays["logits"][1:]).float()
        labels = F.interpolate(logits[None], raw.shape, mode="bilinear")[0].argmax(0).numpy()
        known = (raw > 0) & (raw < 255)
        np.add.at(total, ((raw - 1)[known], labels[known]), 1)
    hits, union = total.diagonal(), total.sum(0) + total.sum(1) - total.diagonal()
    wanted = 100 * np.mean(hits[union > 0] / union[union > 0])
    assert found["miou"] == pytest.approx(wanted, abs=0.02)


def write_maps(root, ids, M, grids, named, seed=0):
    """Write random logits on the first of `grids`, and attention on the others in turn."""
    rng = np.random.default_rng(seed)
    for i, id in enumerate(ids):
        gh, gw = grids[1:][i % len(grids[1:])]
        weights = rng.random((gh * gw, gh * gw))
        weights /= weights.sum(1, keepdims=True)
        arrays = {"logits": 3 * rng.normal(size=(M, *grids[0])), "attention": weights}
        path = root / "arrays" / f"{id}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **arrays, **({"grid": (gh, gw)} if named else {}))


@pytest.mark.parametrize(
    ("grids", "named"),
    [
        ([(3, 4), (3, 4)], False),  # the logits' own grid
        ([(2, 2), (3, 4)], True),
        ([(3, 4), (3, 4), (2, 8), (4, 4), (5, 2)], True),
        ([(3, 3), (5, 5)], False),  # square logits, square attention
    ],
)
def test_attention_on_any_grid(tmp_path, grids, named):
    """The same files give the same labels in Python, by `refine` and by `evaluate`."""
    ids = write_tree(tmp_path, "folder", 4)
    write_maps(tmp_path, ids, 5, grids, named)
    batch = ("--batch-size", "2")
    assert main(arguments(tmp_path, "folder", "--rows", "refined", *batch)) == 0
    _, counts = numbers(tmp_path / "out")
    arrays = str(tmp_path / "arrays")
    files = ["--logits", arrays, "--attention", arrays, "--out", str(tmp_path / "labels")]
    assert main(["refine", "--image", str(tmp_path / "images"), *files]) == 0
    total = np.zeros((5, 5), dtype=int)
    for i, id in enumerate(ids):
        with np.load(tmp_path / "arrays" / f"{id}.npz") as one:
            attention = Attention(one["attention"], grids[1:][i % len(grids[1:])])
            image = tmp_path / "images" / f"{id}.jpg"
            labels = Refiner()(one["logits"], attention, image).labels.numpy()
        with Image.open(tmp_path / "labels" / f"{id}_labels.png") as drawn:
            np.testing.assert_array_equal(labels, np.asarray(drawn))
        truth = read_labels(tmp_path, "folder", id)
        np.add.at(total, (truth[truth != 255], labels[truth != 255]), 1)
    assert np.abs(total - counts["refined"]).sum() <= 0.005 * total.sum()


@pytest.mark.parametrize(
    ("N", "message"),
    [
        (
            13,
            r"got N=13, like a map with 1 class .* `attn = attn\[\.\.\., 1:, 1:\]; attn = ",
        ),
        (16, r"got N=16, like a map with 4 class or register tokens"),
        (64, r"or a square number .*; got N=64\. .*add `grid` = \[gh, gw\] to an \.npz file"),
        (30, r"or a square number .*; got N=30\. .*add `grid` = \[gh, gw\] to an \.npz file"),
    ],
)
def test_attention_on_an_unknown_grid_is_refused(tmp_path, capsys, N, message):
    """The commands refuse what `refine` refuses, with the name of the image."""
    (id,) = write_tree(tmp_path, "folder", 1)
    write_maps(tmp_path, [id], 5, [(3, 4), (1, N)], named=False)
    assert main(arguments(tmp_path, "folder")) == 2
    assert re.search(f"error: {id}: .*{message}", capsys.readouterr().err)
    image, arrays = tmp_path / "images" / f"{id}.jpg", str(tmp_path / "arrays" / f"{id}.npz")
    files = ["--image", str(image), "--logits", arrays, "--attention", arrays]
    assert main(["refine", *files, "--out", str(tmp_path / "labels")]) == 2
    assert re.search(f"error: {id}.jpg: .*{message}", capsys.readouterr().err)
