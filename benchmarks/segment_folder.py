"""Whether the memory of segmenting a folder grows with the number of images.

    python benchmarks/segment_folder.py [--count N] [--batch-size B] [--size W H] [--json OUT]

Images of noise are written to a temporary folder and segmented as by `ovss-refine segment`, with
logits from their colours and attention on a small grid: the time is that of reading, refining and
writing, without a model. Resident memory is recorded ten times during the run. If images were
kept, it would grow by "one image" for each.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from machine import machine
from ovss_refine import Attention, Logits
from ovss_refine.labels import parse_labels
from ovss_refine.segment.request import SegmentRequest
from ovss_refine.segment.run import run_segment
from ovss_refine.segmenter import Segmenter

GRID = (6, 8)


class Colours:
    """Logits: how much of each primary colour a patch has."""

    def logits(self, images: Tensor) -> Logits:
        """Average the pixels of each patch."""
        return Logits(F.adaptive_avg_pool2d(images, GRID), scale=20.0, names=("r", "g", "b"))


class Neighbours:
    """Attention of every patch to itself, and a little to all."""

    def attention(self, images: Tensor) -> Attention:
        """Return the same map for every image."""
        N = GRID[0] * GRID[1]
        weights = (0.5 * torch.eye(N) + 0.5 / N).expand(len(images), N, N)
        return Attention(weights, GRID)


class Watched(Segmenter):
    """A segmenter that records the resident memory ten times during a run."""

    def __init__(self, count: int) -> None:
        """Use the sources above."""
        super().__init__(Colours(), Neighbours())
        self.count, self.seen = count, 0
        self.notes: list[tuple[int, float]] = []

    def __call__(self, images: Any, labels: Any, **more: Any) -> Any:
        """Segment, and record the memory."""
        found = super().__call__(images, labels, **more)
        before, self.seen = self.seen, self.seen + len(images)
        if before * 10 // self.count != self.seen * 10 // self.count:
            self.notes.append((self.seen, round(resident(), 1)))
        return found


def resident() -> float:
    """Return the resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def write_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write JPEGs of noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:06}.jpg")


def timed(request: SegmentRequest, segmenter: Watched) -> float:
    """Run without output; return the seconds."""
    start = time.perf_counter()
    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
        if run_segment(request, segmenter):
            raise RuntimeError("images failed")
    return time.perf_counter() - start


def main() -> None:
    """Run twice, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(96, 72), metavar=("W", "H"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    W, H = args.size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "photos", args.count, (W, H))
        request = SegmentRequest(
            images=(str(folder / "photos"),),
            labels=parse_labels("r, g, b"),
            out=folder / "out",
            batch_size=args.batch_size,
        )
        segmenter = Watched(args.count)
        seconds = [timed(request, segmenter), timed(request, segmenter)]
    found = {
        "images": args.count,
        "pixels": [W, H],
        "batch size": args.batch_size,
        "one image and its labels, MB": W * H * (3 + 8) / 1e6,
        "images so far, resident MB": segmenter.notes,
        "seconds": round(seconds[0], 1),
        "seconds of a second run, all finished": round(seconds[1], 2),
        "machine": machine(),
    }
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
