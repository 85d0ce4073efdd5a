"""How much memory a folder of pictures takes: does it grow with their number?

    python benchmarks/segment_folder.py [--count N] [--batch-size B] [--size W H] [--json OUT]

Pictures of noise are written into a temporary folder and segmented as `ovss-refine segment` does
it, by scores of their own colours and attention of a small grid, so that the time is that of reading,
refining and writing, without any model. Resident memory is read off ten times on the way. If pictures
were kept, it would grow by what "one picture" says, times their number.
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
from ovss_refine.labels import Labels, parse_labels
from ovss_refine.outputs import Kinds
from ovss_refine.segment import Request, run_segment
from ovss_refine.segmenter import Segmenter

GRID = (6, 8)


class Colours:
    """How much of each primary colour a patch has."""

    def logits(self, images: Tensor) -> Logits:
        """Average the pixels of each patch."""
        return Logits(F.adaptive_avg_pool2d(images, GRID), scale=20.0, names=("r", "g", "b"))


class Neighbours:
    """Every patch attends to itself, and a little to all."""

    def attention(self, images: Tensor) -> Attention:
        """Make the same map for every picture."""
        N = GRID[0] * GRID[1]
        weights = (0.5 * torch.eye(N) + 0.5 / N).expand(len(images), N, N)
        return Attention(weights, GRID)


class Watched(Segmenter):
    """Notes the resident memory on the way."""

    count, seen, notes = 1, 0, []  # noqa: RUF012 - one of its kind

    def __call__(self, images: Any, labels: Any, **more: Any) -> Any:
        """Segment, and note the memory ten times in all."""
        found = super().__call__(images, labels, **more)
        before, self.seen = self.seen, self.seen + len(images)
        if before * 10 // self.count != self.seen * 10 // self.count:
            self.notes.append((self.seen, resident()))
        return found


def resident() -> float:
    """Return the memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Run and print."""
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    words.add_argument("--count", type=int, default=10_000)
    words.add_argument("--batch-size", type=int, default=4)
    words.add_argument("--size", type=int, nargs=2, default=(96, 72))
    words.add_argument("--json", type=Path)
    args = words.parse_args()
    labels: Labels = parse_labels("r, g, b")
    W, H = args.size
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        rng = np.random.default_rng(0)
        for index in range(args.count):
            pixels = rng.integers(0, 256, (H, W, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / f"{index:05}.jpg")
        request = Request(
            images=(str(photos),),
            labels=labels,
            out=Path(folder, "out"),
            kinds=Kinds(),
            batch_size=args.batch_size,
        )
        segmenter = Watched(Colours(), Neighbours())
        segmenter.count = args.count
        start = time.perf_counter()
        with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
            run_segment(request, segmenter)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
            run_segment(request, segmenter)
        again = time.perf_counter() - start
    one = W * H * (3 + 8) / 1e6  # the picture and its labels
    found = {
        "pictures": args.count,
        "batch size": args.batch_size,
        "one picture, MB": round(one, 3),
        "memory, MB": [[n, round(mb, 1)] for n, mb in segmenter.notes],
        "seconds": round(seconds, 1),
        "seconds where all are finished": round(again, 2),
        "machine": machine(),
    }
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
