"""The report of `reproduce`, from fictitious evaluations: costs, machines, columns."""

import csv
import io
import json
import sys

import pytest

torch = pytest.importorskip("torch")

from ovss_refine.evaluation.dataset import load_dataset  # noqa: E402
from ovss_refine.folders.records import Records  # noqa: E402
from ovss_refine.reproduce.cells import Cell, make_run, read_seconds  # noqa: E402
from ovss_refine.reproduce.entries import Outcome  # noqa: E402
from ovss_refine.reproduce.inputs import Found  # noqa: E402
from ovss_refine.reproduce.report import make_report, write_sheet  # noqa: E402
from ovss_refine.reproduce.tables import load_tables  # noqa: E402
from ovss_refine.sources.device import Placement  # noqa: E402

SECONDS = {
    "sources": 1.5,
    "logits": 0.5,
    "attention": 1.0,
    "baseline": 0.125,
    "upsampling": 0.25,
    "propagation": 2.0,
    "anchored": 2.0,
    "optimal_path_timed": 3.0,
    "optimal_path_bilinear": 2.5,
    "maximum_velocity_timed": 4.0,
    "maximum_velocity_bilinear": 4.5,  # more than with edges: two measurements
}


def report(table, folder, machines=("a machine",), measured=True):
    """Return the text and the CSV of a table on voc21; every evaluation has the same results."""
    made = make(table, folder, machines, measured)
    write_sheet(folder / "sheet.csv", [made])
    return made.text, list(csv.DictReader(io.StringIO((folder / "sheet.csv").read_text())))


def make(table, folder, machines=("a machine",), measured=True):
    table = load_tables().tables[table]
    found = Found(load_dataset("voc21"))
    cells, folders = [], {}
    for row in table.rows:
        runs = []
        if not row.missing:
            runs = [make_run(row, found, limit=32, place=Placement(torch.device("cpu")))]
            folders[runs[0].key] = folder
        cells.append(
            Cell(table=table, row=row, dataset="voc21", official=1449, published=None, runs=runs)
        )
    if not measured:
        folders = {}
    rows = {row.show: {"miou": 30.0} for row in table.rows if not row.missing}
    results = {"images": 32, "skipped": {}, "rows": rows}
    outcome = Outcome(
        folders=folders,
        machines=dict(zip(folders, [[name] for name in machines] * len(folders), strict=False)),
        results=dict.fromkeys(folders, results),
        lacks={},
        failures={},
        to_do={},
    )
    return make_report(folder, table, cells, outcome)


@pytest.fixture
def folder(tmp_path):
    records = Records(tmp_path)
    records.append({"id": "a", "counts": {}, "seconds": SECONDS, "batch": 2})
    records.close()
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": {}, "starts": []}))
    return tmp_path


def test_costs_are_those_of_the_parts_that_a_row_needs(folder):
    _, lines = report("cost", folder)
    of = {}
    for line in lines:
        if line["quantity"] != "mIoU":
            of.setdefault(line["method"], {})[line["quantity"]] = line["ours"]
    assert of["CLIP"]["seconds"] == "0.625"
    # The evaluation measures Stable Diffusion's attention, which these rows do not use.
    assert of["kk-mean, not refined"]["seconds"] == "0.625"
    assert of["kk-mean, upsampling alone"]["seconds"] == "0.75"
    assert of["kk-mean, upsampling alone"]["attention"] == ""
    assert of["kk-mean + sd2, propagation"]["seconds"] == "3.5"
    assert of["Ours O.P."]["seconds"] == "4.5"
    assert (of["Ours O.P."]["distribution"], of["Ours O.P."]["JBU"]) == ("2.5", "0.5")
    assert (of["Ours M.V."]["distribution"], of["Ours M.V."]["JBU"]) == ("4.5", "0.0")
    assert of["Ours M.V."]["seconds"] == "5.5"


def test_costs_are_listed_with_the_miou(folder):
    text, lines = report("cost", folder)
    of = {line["method"]: line for line in lines if line["quantity"] == "mIoU"}
    assert (of["Ours M.V."]["published"], of["Ours M.V."]["ours"]) == ("67.8", "30.0")
    assert "67.8 / 30.0* / -37.8" in text
    assert "\\* voc21 32 of 1449 images: not comparable with the published values." in text
    assert "seconds, and mIoU in percent" in text
    assert "0.57 / 5.50 / +4.93" in text  # no star: seconds do not depend on the number of images
    assert (
        "- GFLOPs and parameters are not measured here; `benchmarks/sources.py` in the repository "
        "counts those of the attention sources\n"
    ) in text


def test_the_machines_that_measured_are_named(folder):
    text, _ = report("main", folder, machines=("one", "two"))
    assert "mIoU in percent; measured on one and on two." in text
    text, _ = report("main", folder, measured=False)
    assert "measured on" not in text


def test_rows_without_a_measurement_name_no_evaluation(folder):
    _, lines = report("cost", folder)
    assert {line["evaluation"] for line in lines if line["method"] == "Ours M.V."} == {folder.name}
    _, lines = report("main", folder, measured=False)
    assert {line["evaluation"] for line in lines} == {""}


@pytest.mark.parametrize("installed", [True, False])
def test_curves_are_plotted_if_matplotlib_is_installed(folder, monkeypatch, installed):
    if installed:
        pytest.importorskip("matplotlib", reason="plots need matplotlib")
    else:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    made, out = make("nms", folder), folder / "out"
    made.write(out)
    names = {"nms.md", "nms.csv"} | ({"nms.png"} if installed else set())
    assert {path.name for path in out.iterdir()} == names
    fix = "`matplotlib` is not installed; run `pip install 'ovss-refine[plots]'`."
    assert made.text.endswith(f"\n\nThe plot is left out: {fix}") == (not installed)
    files = ".md, .csv and .png" if installed else ".md and .csv"
    assert f"In `{folder}`: nms{files}; the evaluations in" in made.text
    numbers = {
        name: sorted(x for x, _ in points)
        for panel in made.curves
        for name, points in panel.lines.items()
    }
    rows = load_tables().tables["nms"].rows
    assert numbers == {name: sorted(r.x for r in rows if r.method == name) for name in numbers}


def test_tables_without_curves_have_no_plot(folder):
    made = make("main", folder)
    assert made.curves == []
    assert "plot" not in made.text
    assert make("nms", folder, measured=False).curves == []


def test_seconds_are_medians_of_the_images_after_the_first(tmp_path):
    records = Records(tmp_path)
    # Killed after the fourth image; a new process resumes with the fifth.
    for number, (batch, seconds) in enumerate(
        [(0, 50), (1, 40), (2, 1), (3, 9), (0, 60), (1, 70), (2, 2)]
    ):
        made = {"counts": {}, "seconds": {"logits": seconds}, "batch": batch}
        records.append({"id": str(number), **made})
    records.append({"id": "bad", "failure": "damaged"})
    records.close()
    assert read_seconds(tmp_path) == {"logits": 2}


def test_seconds_of_the_first_images_count_if_there_are_no_others(tmp_path):
    records = Records(tmp_path)
    records.append({"id": "a", "counts": {}, "seconds": {"logits": 5}, "batch": 0})
    records.close()
    assert read_seconds(tmp_path) == {"logits": 5}


def test_a_dtype_is_a_setting_of_a_run():
    (row, *_) = load_tables().tables["logits"].rows
    found, cpu = Found(load_dataset("voc21")), torch.device("cpu")
    one, two = (
        make_run(row, found, limit=32, place=Placement(cpu, dtype)) for dtype in (None, "float16")
    )
    assert "dtype" not in one.asked  # so that the folders of earlier versions are found
    assert two.asked == one.asked | {"dtype": "float16"}
    assert two.key != one.key
