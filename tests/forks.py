"""Code in a process of its own: in a fresh interpreter, or without the seconds that torch takes.

This file, run as a script, imports torch and nothing else, and forks for every request. Whatever a
fork imports, prints and changes, it does as a fresh interpreter would, and ends as one.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HANGING = 300  # seconds after which a fork is ended


def fresh(code):
    """Run code in a fresh interpreter; return what it printed."""
    line = [sys.executable, "-c", code]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


class Forks:
    """The server that forks, as its users see it."""

    def __enter__(self):
        """Start the server. It ends with its input; Ctrl-C does not reach it."""
        self._folder = tempfile.TemporaryDirectory()
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_):
        """End the server."""
        self._server.communicate()
        self._folder.cleanup()

    def run(self, code, *arguments, cwd=".", meanwhile=lambda child: None):
        """Run code with `sys.argv[1:]` in a fork, `meanwhile` with its process id here."""
        printed = [Path(self._folder.name, name) for name in ("out", "err")]
        paths = [str(Path(path).resolve()) for path in (cwd, *printed)]
        request = [code, list(map(str, arguments)), *paths]
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        try:
            meanwhile(int(self._server.stdout.readline()))
        finally:
            status = int(self._server.stdout.readline())
        return subprocess.CompletedProcess([], status, *(path.read_text() for path in printed))

    def printed(self, code):
        """Run code that must succeed in a fork; return what it printed, stripped."""
        done = self.run(code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def serve():
    """Fork for each line of standard input; return, in the fork, the code that it asks for."""
    import torch  # noqa: F401

    for line in sys.stdin:
        code, arguments, cwd, *files = json.loads(line)
        child = os.fork()
        if not child:
            signal.alarm(HANGING)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, file in enumerate(files, 1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.chdir(cwd)
            sys.argv[1:] = arguments
            return code
        os.write(1, b"%d\n" % child)
        _, status = os.waitpid(child, 0)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


if __name__ == "__main__":
    exec(serve(), {"__name__": "__main__"})
