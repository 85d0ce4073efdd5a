"""Run the code of docs/scaling.md on a local Ray; run by `test_scaling.py`, which says where.

    python on_ray.py ROOT PART ...

Each PART is "segment" or "evaluate". In ROOT are the data, and what this module notes about killed
processes, so that each is killed once.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import ray

from doc_pages import blocks
from ovss_refine import Segmenter
from tiny_sources import LABELS, Colours, Likeness

ROOT = Path(os.environ.get("ON_RAY", "."))
WAITING = 120  # seconds that a worker waits for the results of others


def first(event):
    """Whether an event has not happened yet; it has from now on, for all processes."""
    try:
        (ROOT / event).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def wait_for_results():
    """Wait until some result is finished."""
    end = time.monotonic() + WAITING
    while not list((ROOT / "results/finished").glob("*[!g].parquet")):
        if time.monotonic() > end:
            raise RuntimeError("nothing was finished")
        time.sleep(0.1)


class FragileSegmenter(Segmenter):
    """Ends its worker at the second image, and another time the whole program."""

    def __init__(self):
        super().__init__(Colours(), Likeness())
        self.calls = 0

    def __call__(self, images, labels):
        self.calls += 1
        if self.calls == 2 and first("worker-killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == 2 and first("program-killed"):
            wait_for_results()
            os.kill(int((ROOT / "pid").read_text()), signal.SIGKILL)
            time.sleep(WAITING)
        with (ROOT / "calls").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return super().__call__(images, labels)


class FragileColours(Colours):
    """Ends its worker at the second image."""

    calls = 0

    def logits(self, images):
        FragileColours.calls += 1
        if FragileColours.calls == 2 and first("evaluator-killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().logits(images)


def run(part, root):
    """Run the two blocks of a part, with sources and sizes of the tests."""
    mine = [b.text for b in blocks("docs/scaling.md", "python")]
    start = next(i for i, text in enumerate(mine) if f"class {part.title()}:" in text)
    names = {"__name__": "__main__"}
    exec(mine[start], names)
    names |= {
        "Segmenter": FragileSegmenter,
        "load_logits": lambda name, classes: FragileColours(),
        "load_attention": lambda name: Likeness(),
    }
    changes = {
        '"/data/': f'"{root}/',
        '"cat, dog, background: wall/floor"': repr(LABELS),
        "batch_size=16": "batch_size=1",
        "64": "2",
    }
    text = mine[start + 1]
    for before, after in changes.items():
        text = text.replace(before, after)
    exec(text, names)
    return names


def main():
    root, *parts = sys.argv[1:]
    (ROOT / "pid").write_text(str(os.getpid()))
    ray.init(num_cpus=8, include_dashboard=False, object_store_memory=128 << 20)
    ray.data.DataContext.get_current().enable_progress_bars = False
    for part in parts:
        names = run(part, root)
        ray.data.DataContext.get_current().checkpoint_config = None
        if part == "evaluate":
            sums = {
                row: sum(found[row] for found in names["counts"]).tolist()
                for row in names["counts"][0]
            }
            (ROOT / "counts.json").write_text(json.dumps(sums))


if __name__ == "__main__":
    main()
