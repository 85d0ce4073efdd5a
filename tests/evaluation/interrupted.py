"""Kill an evaluation repeatedly; run by `test_interruption.py` in a separate process.

    python interrupted.py KILLS SEED ARGUMENT ...

Every attempt is a fork of this process, killed by SIGKILL: most from outside, at a random moment
after a random number of further results; every fourth by itself, half-way through writing a line.
Prints a line for each kill.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import ovss_refine.evaluation.run  # noqa: F401 - imported once, not in every fork
from ovss_refine import cli

AHEAD = 2  # results that an attempt may still write while its kill is on the way
DEADLINE = 120  # seconds that an attempt may hang
WRITE = os.write


def attempt(arguments, before_write):
    """Run the evaluation in a fork that announces each result's line; return its process id."""
    child = os.fork()
    if child:
        return child
    signal.alarm(DEADLINE)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    written = []

    def write(fd, data):
        if data.endswith(b"\n") and b'"id"' in data:
            before_write(len(written), fd, data)
            written.append(data)
        return WRITE(fd, data)

    os.write = write
    os._exit(cli.main(arguments))


def torn(arguments, after):
    """Kill an attempt half-way through its next line after `after` whole ones."""

    def tear(number, fd, line):
        if number == after:
            WRITE(fd, line[: len(line) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    return attempt(arguments, tear)


def killed(arguments, after, delay):
    """Kill an attempt once it has written `after` lines and `delay` seconds have passed."""
    reader, writer = os.pipe()

    def tell(number, *_):
        if number == after:
            WRITE(writer, b".")
        if number == after + AHEAD:
            signal.pause()  # however late the kill is, the evaluation never ends by itself

    child = attempt(arguments, tell)
    os.close(writer)
    os.read(reader, 1)  # comes back empty if the attempt has ended
    os.close(reader)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return child


def main():
    """Kill as often as requested; exit with 1 if an attempt ended in another way."""
    kills, dice, arguments = int(sys.argv[1]), random.Random(int(sys.argv[2])), sys.argv[3:]
    for number in range(kills):
        if number % 4 == 3:
            word, child = "torn", torn(arguments, dice.randrange(3))
        else:
            word, child = "killed", killed(arguments, dice.randrange(1, 3), 0.02 * dice.random())
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(1)
        sys.stdout.write(f"{word}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
