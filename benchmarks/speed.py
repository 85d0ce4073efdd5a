"""Time and memory of a refinement by mode, tokens, classes, pixels and batch size.

    python benchmarks/speed.py [--device cpu|cuda] [--only SECTION ...] [--repeats N] [--json OUT]

Every row runs in its own process, whose peak memory is reported. Before a row is timed, its result
is checked: finite where kept, and no class scores higher than the label. Rows marked "once" are
timed in a single run, after one of a small problem, because they take minutes. RankSEG and the CRF
need the extra `rivals`, and are left out without it.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from machine import machine
from ovss_refine import Logits, Refiner, RefineResult
from ovss_refine.baseline.crf import DenseCrf
from ovss_refine.baseline.lposs import Lposs
from ovss_refine.baseline.rankseg import rankseg
from problems import problem, smooth_field
from timing import peak, reset_peak, seconds, wait

MODES = {
    "kl": {"mode": "kl"},
    "optimal path": {"mode": "optimal_path"},
    "maximum velocity": {"mode": "maximum_velocity"},
    "maximum velocity, increment": {"mode": "maximum_velocity", "criterion": "increment"},
    "fusion": {"mode": "fusion"},
    "propagation": {"mode": "propagation"},
    "anchored": {"mode": "anchored"},
}
PAPER = ("optimal path", "maximum velocity")
# From logits, features of 64 channels and one image to labels and scores, where there are any.
# LPOSS+ works on 448 x 597 pixels.
Found = tuple[Tensor, Tensor | None]
RIVALS: dict[str, Callable[[Tensor, Tensor, Tensor], Found]] = {
    "LPOSS": lambda *inputs: propagated(Lposs(), *inputs),
    "LPOSS+": lambda *inputs: propagated(Lposs(pixels=True), *inputs),
}
if find_spec("rankseg"):
    RIVALS["RankSEG"] = lambda logits, _, image: (
        rankseg(Logits(logits[None]), image[None])[0],
        None,
    )
if find_spec("pydensecrf"):
    RIVALS["CRF"] = lambda logits, _, image: smoothed(logits, image)


def propagated(lposs: Lposs, logits: Tensor, features: Tensor, image: Tensor) -> Found:
    """Label one image by label propagation."""
    result = lposs(logits, features, image)
    return result.labels, result.scores


def smoothed(logits: Tensor, image: Tensor) -> Found:
    """Label one image by a dense CRF."""
    result = DenseCrf()(Logits(logits[None]), image[None])
    return result.labels[0], result.scores[0]


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        name: name of the row.
        mode: a key of `MODES` or `RIVALS`.
        side: side of the square grid, N = side * side.
        classes: M.
        size: (height, width) of the image.
        present: number of classes in the image; None: all.
        batch: number of images; None: no batch axis.
        heads: 0, or attention as queries and keys of that many heads.
        once: time a single run.
    """

    name: str
    mode: str
    side: int = 64
    classes: int = 21
    size: tuple[int, int] = (512, 512)
    present: int | None = None
    batch: int | None = None
    heads: int = 0
    once: bool = field(default=False)


SECTIONS: dict[str, list[Row]] = {
    "own grid: N = 1089, M = 21, 375 x 500": [
        Row(mode, mode, side=33, size=(375, 500)) for mode in MODES
    ],
    "SD2's grid: N = 4096, M = 21, 512 x 512": [Row(mode, mode) for mode in MODES],
    "tokens": [
        *(Row(f"N = {s * s}, {m}", m, side=s) for s in (32, 64) for m in PAPER),
        *(Row(f"N = 16384, {m}", m, side=128, once=True) for m in PAPER),
        Row("N = 4096, 8 heads as factors, optimal path", PAPER[0], heads=8, once=True),
        *(
            Row(f"N = 16384, 8 heads as factors, {m}", m, side=128, heads=8, once=True)
            for m in PAPER
        ),
        *(
            Row(f"N = {s * s}, 8 heads as factors, formed, {m}", m, side=s, heads=8, once=True)
            for s in (64, 128)
            for m in PAPER
        ),
    ],
    "most tokens": [
        Row("N = 65536, 8 heads as factors, optimal path", PAPER[0], side=256, heads=8, once=True),
    ],
    "classes": [
        *(Row(f"M = {K}, {m}", m, classes=K) for K in (5, 21, 171) for m in PAPER),
        *(Row(f"M = 171, 8 present, {m}", m, classes=171, present=8) for m in PAPER),
        *(Row(f"M = 21, 8 present, {m}", m, present=8) for m in PAPER),
    ],
    "pixels": [
        *(Row(f"{h} x {w}, kl", "kl", size=(h, w)) for h, w in ((512, 512), (1024, 2048))),
        Row("M = 171, 8 present, 1024 x 1024, kl", "kl", 64, 171, (1024, 1024), 8),
    ],
    "rivals: N = 1369, M = 21, 375 x 500": [
        Row(name, name, side=37, size=(375, 500)) for name in ("maximum velocity", *RIVALS)
    ],
    "batch": [
        Row(f"B = {B}, N = {s * s}, {m}", m, side=s, batch=B)
        for s in (32, 64)
        for B in (1, 8)
        for m in PAPER
    ],
}


def check(result: RefineResult) -> None:
    """Raise unless the result is valid."""
    if result.scores is None or not bool(result.discrepancy[result.kept].isfinite().all()):
        raise SystemExit("the result is not finite")
    dim = result.labels.ndim - 2
    of_labels = result.scores.gather(dim, result.labels.unsqueeze(dim)).squeeze(dim)
    if not torch.equal(of_labels, result.scores.amax(dim)):
        raise SystemExit("a label does not have the largest score")


def measure(row: Row, device: str, repeats: int) -> dict[str, object]:
    """Check and time one row in this process."""
    size = (row.size[0], row.size[1])
    inputs = problem(
        (row.side, row.side),
        row.classes,
        size,
        device,
        present=row.present,
        batch=row.batch,
        heads=row.heads,
        form="formed" in row.name,
    )
    options = MODES[row.mode]
    refiner = Refiner(**options)  # type: ignore[arg-type]
    refiner(*problem((8, 8), 3, (32, 32), device))  # loads what is loaded once
    before = reset_peak(device)
    start = time.perf_counter()
    result = refiner(*inputs)
    wait(device)
    first = time.perf_counter() - start
    memory = peak(device) - before
    times: dict[str, float] = {"median": first, "repeats": 1}
    if not row.once:
        check(Refiner(**options, keep_scores=True)(*inputs))  # type: ignore[arg-type]
        times = seconds(lambda: refiner(*inputs), device, repeats)
    elif not bool(result.discrepancy[result.kept].isfinite().all()):
        raise SystemExit("the result is not finite")
    kept = int(result.kept.sum()) / (row.batch or 1)
    return {**times, "classes_kept": kept, "peak_gib_above_start": memory / 2**30}


def measure_rival(row: Row, device: str, repeats: int) -> dict[str, object]:
    """Check and time a rival on one image in this process."""
    grid, generator = (row.side, row.side), torch.Generator().manual_seed(1)
    logits, _, image = problem(grid, row.classes, row.size, device)
    inputs = logits, smooth_field(64, grid, generator, 12).to(device), image
    before = reset_peak(device)
    labels, scores = RIVALS[row.mode](*inputs)
    wait(device)
    memory = peak(device) - before
    if scores is not None:
        best = scores.amax(dim=0)
        of_labels = scores.gather(0, labels[None])[0]
        if not bool(best.isfinite().all()) or not torch.equal(of_labels, best):
            raise SystemExit("a label does not have the largest score")
    elif [*labels.shape] != [*row.size] or not 0 <= int(labels.min()) <= int(
        labels.max()
    ) < row.classes:
        raise SystemExit("the labels are not those of the image and its classes")
    times = seconds(lambda: RIVALS[row.mode](*inputs), device, repeats)
    return {**times, "classes_kept": row.classes, "peak_gib_above_start": memory / 2**30}


def in_own_process(row: Row, device: str, repeats: int) -> dict[str, object]:
    """Measure a row in a fresh process."""
    command = [sys.executable, __file__, "--device", device, "--repeats", str(repeats)]
    done = subprocess.run(
        [*command, "--row", json.dumps(asdict(row))], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{row.name}: {done.stderr.strip()}")
    numbers: dict[str, object] = json.loads(done.stdout)
    return numbers


def main() -> None:
    """Measure all sections, or one row in a child process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", help="first words of section names")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("speed.py: this machine has no CUDA GPU that torch can use.")
    if args.row:
        row = Row(**json.loads(args.row))
        run = measure_rival if row.mode in RIVALS else measure
        print(json.dumps(run(row, args.device, args.repeats)))
        return
    report: dict[str, object] = {"machine": machine(args.device)}
    for name, rows in SECTIONS.items():
        if args.only and not name.startswith(tuple(args.only)):
            continue
        print(f"\n| {name} | median s | quartiles | classes kept | GiB above start |")
        print("|---|---|---|---|---|", flush=True)
        section = report[name] = {}
        for row in rows:
            section[row.name] = r = in_own_process(row, args.device, args.repeats)
            spread = "once"
            if "first_quartile" in r:
                spread = f"{r['first_quartile']:.3f} to {r['third_quartile']:.3f}"
            print(
                f"| {row.name} | {r['median']:.3f} | {spread} | {r['classes_kept']:g} "
                f"| {r['peak_gib_above_start']:.2f} |",
                flush=True,
            )
            if args.json:
                args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
