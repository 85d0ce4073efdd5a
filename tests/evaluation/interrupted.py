"""Kill an evaluation repeatedly; run by `test_interruption.py` in a separate process.

    python interrupted.py KILLS SEED OUT ARGUMENT ...

Torch is imported once. Every attempt is a fork of this process, which is killed by SIGKILL: most
from outside, at a random moment after a random number of further results; every fourth by itself,
half-way through writing a line. Prints a line for each kill.
"""

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import ovss_refine.evaluation.run  # noqa: F401 - imported once, not in every fork
from ovss_refine import cli

DEADLINE = 120


def attempt(arguments, torn_at):
    """Run the evaluation in a fork; return its process id."""
    child = os.fork()
    if child:
        return child
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    if torn_at is not None:
        tear(torn_at)
    os._exit(cli.main(arguments))


def tear(after):
    """Kill this process half-way through its next line after `after` whole ones."""
    real, written = os.write, []

    def write(fd, data):
        if not data.endswith(b"\n") or b'"id"' not in data:
            return real(fd, data)
        if len(written) == after:
            real(fd, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(data)
        return real(fd, data)

    os.write = write


def size_of(out):
    """Return the size of the records."""
    with contextlib.suppress(FileNotFoundError):
        return (out / "records.0.jsonl").stat().st_size
    return 0


def main():
    """Kill as often as requested; exit with 1 if an attempt ended by itself."""
    kills, seed, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dice = random.Random(seed)
    for number in range(kills):
        torn = number % 4 == 3
        child = attempt(sys.argv[4:], dice.randrange(3) if torn else None)
        if not torn:
            start, before, growth = time.monotonic(), size_of(out), dice.randrange(1, 3)
            sizes = {before}
            while len(sizes) <= growth and time.monotonic() - start < DEADLINE:
                sizes.add(size_of(out))
            time.sleep(dice.random() * 0.02)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(1)
        sys.stdout.write("torn\n" if torn else "killed\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
