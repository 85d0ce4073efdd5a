"""The overhead of an evaluation over model and refiner, and whether its memory stays constant.

    python benchmarks/evaluation.py [--images N] [--flat N] [--repeats N] [--data DIR] [--json OUT]

* Overhead: a whole evaluation of synthetic 500 x 375 images with logits and features in files
  (the fastest source), alternating with the same rows on the same images in memory. The difference,
  as a fraction of the whole, is the cost of reading, decoding, counting, writing and the progress
  bar, including where they slow the refiner down. The labels of both are compared first.
* Metric: one confusion matrix at that size.
* Memory: resident memory over the N images of one evaluation (--flat).
* With --data: the two sets of real images, against `results/real_data.json`.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from machine import machine
from ovss_refine.attention import Attention
from ovss_refine.config import RefineConfig
from ovss_refine.evaluation.batches import Batch
from ovss_refine.evaluation.dataset import DataSet, load_dataset
from ovss_refine.evaluation.engine import Job, _read, evaluate
from ovss_refine.evaluation.inputs import NpzAttention
from ovss_refine.evaluation.metric import confusion
from ovss_refine.evaluation.request import Chosen, EvaluateRequest
from ovss_refine.evaluation.rows import Baseline, Row, make_rows
from ovss_refine.evaluation.run import run_evaluate
from ovss_refine.folders.records import Records
from ovss_refine.registry import load_logits
from ovss_refine.sources.processes import join

SIZE, GRID, M = (375, 500), (33, 33), 21
RESULTS = Path(__file__).parent / "results"
SAME = {
    "baseline": "bilinear",
    "upsampling": "upsampling alone",
    "refined": "maximum velocity",
    "propagation": "propagation, k = 3",
    "anchored": "anchored, k = 3",
}


def smooth(
    channels: int, size: tuple[int, int], seed: torch.Generator, detail: int
) -> torch.Tensor:
    """Random [channels, *size] values that vary over about 1 / `detail` of the image."""
    coarse = torch.randn(1, channels, detail, detail, generator=seed)
    return F.interpolate(coarse, size, mode="bicubic", align_corners=False)[0]


def write_set(root: Path, count: int, distinct: int = 20) -> DataSet:
    """Write `count` images, masks and arrays: `distinct` different ones, the rest links to them."""
    for part in ("images", "masks", "arrays"):
        (root / part).mkdir(parents=True)
    (root / "names.txt").write_text("".join(f"class {c}\n" for c in range(M)))
    for i in range(count):
        names = [f"images/{i:05d}.jpg", f"masks/{i:05d}.png", f"arrays/{i:05d}.npz"]
        if i >= distinct:
            for name in names:
                old = name.replace(f"{i:05d}", f"{i % distinct:05d}")
                (root / name).symlink_to(root / old)
            continue
        seed = torch.Generator().manual_seed(i)
        pixels = smooth(3, SIZE, seed, 60).sigmoid().permute(1, 2, 0)
        Image.fromarray((255 * pixels).byte().numpy()).save(root / names[0], quality=90)
        truth = smooth(M, SIZE, seed, 8).argmax(0).byte().numpy()
        Image.fromarray(truth).save(root / names[1])
        arrays = {
            "logits": 4 * smooth(M, GRID, seed, 8),
            "features": smooth(64, GRID, seed, 12),
        }
        np.savez(root / names[2], **{k: v.half().numpy() for k, v in arrays.items()})
    return load_dataset("folder", names=root / "names.txt")


def make_job(root: Path, dataset: DataSet, rows: Mapping[str, Row], out: Path) -> Job:
    """Describe the evaluation of a folder."""
    out.mkdir()
    source = Chosen(f"npz:{root / 'arrays'}")
    return Job(
        request=EvaluateRequest(dataset=dataset, root=root, logits=source, attention=source),
        items=dataset.items(root),
        logits=load_logits("npz", folder=root / "arrays"),
        attention=NpzAttention(root / "arrays"),
        rows=rows,
        records=Records(out),
    )


def clocks() -> np.ndarray:
    """Return wall-clock seconds and this process's CPU seconds, summed over cores."""
    return np.array([time.perf_counter(), time.process_time()])


def in_memory(job: Job, batches: list[Batch]) -> tuple[np.ndarray, dict[str, list[np.ndarray]]]:
    """Compute attention and run the rows on loaded images; return seconds and labels."""
    device = torch.device("cpu")
    labels: dict[str, list[np.ndarray]] = {name: [] for name in job.rows}
    start = clocks()
    for batch in batches:
        assert isinstance(job.attention, NpzAttention)  # noqa: S101 - made above
        attention = job.attention.for_image(batch.samples[0].id)
        assert isinstance(attention, Attention)  # noqa: S101 - of features
        attention = replace(attention, weights=attention.weights[None])  # type: ignore[index]
        images, logits = batch.images(device), batch.logits(device)
        for name, row in job.rows.items():
            labels[name].append(row(logits, attention, images)[0].numpy())
    return clocks() - start, labels


def overhead(root: Path, names: tuple[str, ...], count: int, repeats: int) -> dict[str, float]:
    """Alternate an evaluation with the same work in memory; return medians."""
    dataset = write_set(root, count)
    table = make_rows(RefineConfig(), Baseline())
    rows = {name: table[name] for name in names}
    group, whole, core = join("cpu"), [], []
    for turn in range(repeats + 1):  # the first warms up, and is checked
        job = make_job(root, dataset, rows, root / f"out{turn}")
        batches = [Batch((_read(job, item)(),)) for item in job.items]
        seconds, labels = in_memory(job, batches)
        core.append(seconds)
        start = clocks()
        totals = evaluate(job, group)
        whole.append(clocks() - start)
        if turn == 0:
            check(batches, labels, totals.counts)
    wall, cpu = np.median(whole[1:], axis=0) / count
    work, cpu_work = np.median(core[1:], axis=0) / count
    return {
        "seconds": wall,
        "in_memory": work,
        "overhead_percent": 100 * (1 - work / wall),
        "cpu_seconds": cpu,
        "cpu_in_memory": cpu_work,
        "cpu_overhead_percent": 100 * (1 - cpu_work / cpu),
    }


def check(
    batches: list[Batch], labels: Mapping[str, list[np.ndarray]], counts: Mapping[str, np.ndarray]
) -> None:
    """Raise unless the evaluation's counts equal those of the rows on the same images."""
    truths = [batch.samples[0].truth for batch in batches]
    for name, maps in labels.items():
        wanted = sum(confusion(t, x, M, 255) for t, x in zip(truths, maps, strict=True))
        if not np.array_equal(counts[name], wanted):
            raise RuntimeError(f"{name}: the evaluation and the rows disagree")


def metric_ms(repeats: int = 50) -> float:
    """Return the median time of one confusion matrix in milliseconds."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, M, SIZE).astype(np.uint8)
    labels = rng.integers(0, M, SIZE)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        confusion(truth, labels, M, 255)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def memory(root: Path, count: int) -> dict[str, float]:
    """Record the resident memory of one long evaluation, in MiB."""
    dataset = write_set(root, count)
    rows = {"propagation": make_rows(RefineConfig(), Baseline())["propagation"]}
    seen: list[float] = []
    job = make_job(root, dataset, rows, root / "out")
    page = 4096 / 2**20

    def look(*_: Any) -> None:
        seen.append(page * int(Path("/proc/self/statm").read_text().split()[1]))

    evaluate(replace(job, draw=look), join("cpu"))
    tenth = max(1, count // 10)
    return {
        "images": count,
        "second_tenth": max(seen[tenth : 2 * tenth]),
        "last_tenth": max(seen[-tenth:]),
    }


def real(root: Path) -> dict[str, dict[str, list[float]]]:
    """Evaluate the real images; return each row's mIoU here and in `real_data.json`."""
    kept = json.loads((RESULTS / "real_data.json").read_text())
    report: dict[str, dict[str, list[float]]] = {}
    for folder, temperature in (("voc_real", 0.05), ("camvid_real", 0.1)):
        base = root / folder
        names = base / "names.txt" if folder == "camvid_real" else None
        dataset = load_dataset("folder" if names else "voc21", names=names)
        for strength, key in (("strong", "logits"), ("weak", "logits_weak")):
            files = f"npz:{base / 'arrays'}"
            with tempfile.TemporaryDirectory() as out:
                found = run_evaluate(
                    EvaluateRequest(
                        dataset=dataset,
                        root=base,
                        logits=Chosen(files, {"key": key}),
                        attention=Chosen(files, {"temperature": temperature}),
                        out=Path(out) / "out",
                    )
                )
            report[f"{folder}, {strength}"] = {
                row: [found.rows[row]["miou"], kept[folder][strength][same]["miou"]]  # type: ignore[index]
                for row, same in SAME.items()
            }
    return report


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20, help="images for the overhead")
    parser.add_argument("--flat", type=int, default=1000, help="images for the memory; 0: skip it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, help="folder with voc_real and camvid_real")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    report: dict[str, object] = {"machine": machine(), "metric_ms": metric_ms()}
    print(f"metric: {report['metric_ms']:.2f} ms for 500 x 375")
    for names in (tuple(SAME), ("refined",)):
        with tempfile.TemporaryDirectory() as root:
            found = overhead(Path(root) / "set", names, args.images, args.repeats)
        report["overhead, " + " ".join(names)] = found
        print(
            f"{', '.join(names)}: {found['seconds']:.3f} s per image, of which "
            f"{found['overhead_percent']:.1f} % is neither source nor refiner; "
            f"of the CPU time {found['cpu_overhead_percent']:.1f} %"
        )
    if args.flat:
        with tempfile.TemporaryDirectory() as root:
            flat = memory(Path(root) / "set", args.flat)
        report["memory_mib"] = flat
        print(
            f"memory: {flat['second_tenth']:.0f} MiB in the second tenth of {args.flat} images, "
            f"{flat['last_tenth']:.0f} MiB in the last"
        )
    if args.data:
        rows = report["real"] = real(args.data)
        for name, both in rows.items():
            worst = max(abs(ours - theirs) for ours, theirs in both.values())
            print(f"{name}: mIoU within {worst:.4f} of real_data.json in every row")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
