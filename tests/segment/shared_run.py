"""Segment a folder; run by `test_processes.py` under torchrun.

    python shared_run.py PHOTOS OUT RANK COUNT

The process RANK is killed once it has finished COUNT images.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ovss_refine import Segmenter
from ovss_refine.labels import parse_labels
from ovss_refine.segment.journal import Journal
from ovss_refine.segment.request import SegmentRequest
from ovss_refine.segment.run import run_segment
from tiny_sources import LABELS, Colours, Likeness


def request_of(photos, out):
    """Return the request, the same for every number of processes."""
    return SegmentRequest(
        images=(str(photos),), labels=parse_labels(LABELS), out=Path(out), device="cpu"
    )


class Killed(Journal):
    """A journal that ends its process after some images."""

    left = 0

    def add(self, *parts):
        super().add(*parts)
        Killed.left -= 1
        if not Killed.left:
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    photos, out, rank, count = sys.argv[1:]
    if rank == os.environ["RANK"]:
        Killed.left = int(count)
        sys.modules[run_segment.__module__].Journal = Killed
    sys.exit(run_segment(request_of(photos, out), Segmenter(Colours(), Likeness())))


if __name__ == "__main__":
    main()
