"""docs/scaling.md: its code on a local Ray gives the results of one process; its numbers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from doc_pages import ROOT, read
from ovss_refine import Segmenter
from ovss_refine.evaluation import evaluate
from tiny_sources import LABELS, Colours, Likeness

SCRIPT = Path(__file__).with_name("on_ray.py")
COUNT = 7


@pytest.fixture
def data(tmp_path):
    """An odd number of images, one of them with an EXIF orientation, a damaged one, and pairs."""
    for folder in ("photos", "set/images", "set/masks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "set/names.txt").write_text(LABELS.replace(", ", "\n"))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    for index in range(COUNT):
        rng = np.random.default_rng(index)
        blocks = rng.integers(0, 256, (4, 6 + index % 2, 3), dtype=np.uint8)
        image = Image.fromarray(blocks.repeat(7, 0).repeat(7, 1))
        image.save(tmp_path / f"photos/p{index}.jpg", exif=rotated if index == 3 else b"")
        image.save(tmp_path / f"set/images/p{index}.png")
        mask = rng.integers(0, 3, blocks.shape[:2], dtype=np.uint8).repeat(7, 0).repeat(7, 1)
        Image.fromarray(mask).save(tmp_path / f"set/masks/p{index}.png")
    (tmp_path / "photos/broken.jpg").write_bytes(b"not an image")
    return tmp_path


def on_ray(root, *parts):
    paths = [*map(str, (ROOT / "tests", ROOT, ROOT / "adapters")), os.environ.get("PYTHONPATH", "")]
    more = {"PYTHONPATH": os.pathsep.join(paths), "ON_RAY": str(root), "CUDA_VISIBLE_DEVICES": ""}
    more |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(root), *parts],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | more,
        timeout=600,
    )


def masks(root):
    """Return the finished rows: (path, masks, error)."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `ray`")
    tables = [parquet.read_table(path) for path in (root / "results/masks").glob("*.parquet")]
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


@pytest.mark.slow("Ray is started twice, and its processes import torch")
def test_killed_and_resumed_runs_on_ray_equal_one_process(data):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    killed = on_ray(data, "segment")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (data / "worker-killed").exists()
    finished = len(list((data / "results/finished").glob("*[!g].parquet")))
    assert 0 < finished < COUNT + 1
    calls = len((data / "calls").read_text().split())

    done = on_ray(data, "segment", "evaluate")
    assert done.returncode == 0, done.stderr
    repeated = len((data / "calls").read_text().split()) - calls
    assert 0 < repeated <= COUNT + 1 - finished  # what was finished was not segmented again
    alone = Segmenter(Colours(), Likeness())
    expected = {
        str(path): json.dumps(alone(path, LABELS).rle())
        for path in sorted((data / "photos").glob("p*.jpg"))
    }
    found = masks(data)
    assert {path: rle for path, rle, error in found if not error} == expected
    (broken,) = [row for row in found if row[2]]
    assert broken[0].endswith("broken.jpg")
    assert "cannot identify image file" in broken[2]
    assert len(found) == COUNT + 1  # each once

    assert (data / "evaluator-killed").exists()
    pairs = [(path, data / f"set/masks/{path.name}") for path in (data / "set/images").iterdir()]
    result = evaluate(Colours(), Likeness(), dataset=pairs, names=LABELS)
    counts = json.loads((data / "counts.json").read_text())
    assert counts == {row: own.tolist() for row, own in result.counts.items()}
    printed = [f"{row} {round(score, 2)}\n" for row, score in result.miou.items()]
    assert "".join(printed) in done.stdout


def seconds():
    """Return the seconds of the parts of the default pipeline that the benchmarks saved."""

    def saved(name):
        return json.loads(read(f"benchmarks/results/{name}.json"))

    wanted = {"source": "kk-mean", "model": "B/16", "short_side": 336, "batch": 1}
    (logits,) = [row for row in saved("logits")["rows"] if wanted.items() <= row.items()]
    refinement = saved("peers")["1 threads"]["whole calls"]["astronaut"]["maximum_velocity"]
    models = (logits, saved("sources")["dinov2-b14, 518, map"])
    return [*(x["median"] for x in models), refinement / 1e3]


def test_the_numbers_of_the_page_are_those_that_the_benchmarks_saved():
    text = read("docs/scaling.md")
    parts = seconds()
    total = sum(parts)
    table = [line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| ")]
    for value in (*parts, total):
        assert f"{value:.2f}" in table, value
    assert f"That is {1 / total:.2f} images per second on two cores" in text
    for power, digits in ((3, 1), (6, 0), (9, -3)):
        hours = round(total * 10**power / 3600, digits)
        shown = f"{hours:,.{max(digits, 0)}f}"
        assert f"| 10{'⁰¹²³⁴⁵⁶⁷⁸⁹'[power]} | {shown} |" in text
    assert f"the refinement takes {parts[2] / total:.0%}".replace("%", " %") in text
    folder = json.loads(read("benchmarks/results/segment_folder.json"))
    assert f"take {folder['seconds'] / folder['images']:.2f} s each on one core" in text
    resident = [round(mb) for _, mb in folder["images so far, resident MB"]]
    assert set(resident) == {593}
    assert "593 MB for a process" in text
    own = json.loads(read("benchmarks/results/evaluation.json"))["overhead, refined"]
    assert f"add {own['seconds'] - own['in_memory']:.2f} s to an image" in text
