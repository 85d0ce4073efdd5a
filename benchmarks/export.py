"""The cost of the refinement as an ONNX graph, compared with `refine` itself.

    python benchmarks/export.py [--repeats N] [--json OUT]

Needs `pip install -e '.[export]'`. For every mode and two sizes, 21 classes, one image: seconds of
`refine` and of onnxruntime on the same cores; seconds to export; the largest difference
of the discrepancy as a fraction of its range, and the fraction of pixels whose label differs.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from machine import machine
from ovss_refine import RefineConfig, refine
from ovss_refine.export import export_onnx
from problems import Problem, problem
from speed import MODES
from timing import seconds

SIZES = {
    "N = 1089, 375 x 500": ((33, 33), (375, 500)),
    "N = 4096, 512 x 512": ((64, 64), (512, 512)),
}


def median(run: Callable[[], object], repeats: int) -> float:
    """Return the median time of `run` in seconds, after a warm-up."""
    return seconds(run, "cpu", repeats)["median"]


def inputs(size: str) -> tuple[Problem, dict[str, NDArray[np.float32]]]:
    """Make a problem, as `refine` takes it and as the graph does."""
    grid, pixels = SIZES[size]
    logits, attention, image = problem(grid, 21, pixels, "cpu", batch=1)
    weights = cast(torch.Tensor, attention.weights).reshape(1, *grid, *grid)
    arrays = {"logits": logits.numpy(), "attention": weights.numpy(), "image": image.numpy()}
    return (logits, attention, image), arrays


def compare(config: RefineConfig, path: Path, size: str, repeats: int) -> dict[str, float]:
    """Time both on one size; return the row."""
    tensors, arrays = inputs(size)
    expected = refine(*tensors, config)
    # Not alternating: the threads of each spin while they wait for work, and would take the cores
    # from the other.
    ours = median(lambda: refine(*tensors, config), repeats)
    choices = onnxruntime.SessionOptions()
    choices.intra_op_num_threads = torch.get_num_threads()
    choices.log_severity_level = 3  # no warnings about unused initialisers
    session = onnxruntime.InferenceSession(path, choices, providers=["CPUExecutionProvider"])
    labels, discrepancy, *_ = session.run(None, arrays)
    graph = median(lambda: session.run(None, arrays), repeats)
    kept = expected.kept.numpy()
    D = expected.discrepancy.numpy()[kept]
    return {
        "refine": ours,
        "onnxruntime": graph,
        "discrepancy": float(np.abs(discrepancy[kept] - D).max() / np.ptp(D)),
        "labels": float((labels != expected.labels.numpy()).mean()),
    }


def main() -> None:
    """Export every mode, compare, and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    report: dict[str, object] = {"machine": machine(), "onnxruntime": onnxruntime.__version__}
    print("| mode | size | refine | onnxruntime | discrepancy | labels | export |")
    print("|---|---|---|---|---|---|---|")
    for name, options in MODES.items():
        config = RefineConfig(**options)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "refine.onnx"
            start = time.perf_counter()
            export_onnx(path, config)
            export = time.perf_counter() - start
            for size in SIZES:
                row = compare(config, path, size, args.repeats) | {"export": export}
                report[f"{name}, {size}"] = row
                print(
                    f"| {name} | {size} | {row['refine']:.3f} | {row['onnxruntime']:.3f} | "
                    f"{row['discrepancy']:.0e} | {row['labels']:.0e} | {export:.0f} |",
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
