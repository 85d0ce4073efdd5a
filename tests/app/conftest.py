"""A server process and a real browser, where one is installed."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# The browser itself must make no requests.
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
WAIT_MS = 20_000


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The page with tiny models: its address, and the folder of its files."""
    # Gradio's own settings must be ignored; these would share and serve everything.
    odd = {"GRADIO_SHARE": "True", "GRADIO_ALLOWED_PATHS": "/", "GRADIO_SERVER_NAME": "0.0.0.0"}
    with serving(tmp_path_factory.mktemp("server"), **odd) as found:
        yield found


@contextmanager
def serving(temporary, *arguments, **variables):
    """Serve the page in a process of its own, with these environment variables."""
    pytest.importorskip("gradio", reason="gradio is not installed ([app])")
    command = [sys.executable, HERE / "tiny_page.py", *arguments]
    env = os.environ | variables | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    log = (temporary / "log").open("w")
    with log, subprocess.Popen(command, env=env, stderr=log, **pipes) as process:
        address = process.stdout.readline().strip()
        assert address, (temporary / "log").read_text()
        (root,) = temporary.glob("ovss-refine-app-*")
        yield SimpleNamespace(address=address, root=root, log=temporary / "log")
        process.stdin.close()
        process.wait(timeout=20)
    assert not root.exists()


@pytest.fixture(scope="module")
def chromium():
    """A real, headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    sync_api.expect.set_options(timeout=WAIT_MS)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, server):
    """Open the page as a new visitor each time; no request may go to another host."""
    problems, contexts = [], []
    logged = len(server.log.read_text())

    def open_page(width=1280, height=900):
        context = chromium.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("request", lambda r: problems.append(r.url) if _foreign(r.url) else None)
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(server.address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []
    assert "Traceback" not in server.log.read_text()[logged:]


def _foreign(url):
    return re.match(r"(http://127\.0\.0\.1:\d+/|data:|blob:http://127\.0\.0\.1:)", url) is None
