"""Serving the page: by default to this machine alone, leaving nothing behind."""

import os
import signal
import socket
import sys
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from ovss_refine.app.folder import private_folder
from ovss_refine.app.guard import Guard, is_local
from ovss_refine.app.handlers import Handlers
from ovss_refine.app.leftovers import Leftovers
from ovss_refine.app.page import build_page, style
from ovss_refine.app.request import AppRequest
from ovss_refine.app.session import CAPACITY, Sessions
from ovss_refine.app.uploads import Uploads
from ovss_refine.app.work import Worker
from ovss_refine.registry import require
from ovss_refine.segmenter import Segmenter

# Gradio and the hub report usage unless told not to; run history would keep results in the browser.
# It also summarises its events, by pandas, at each of them, for a page that nobody can open.
QUIET = {
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
}
TIDY_S = 30
# A Space is shown in a frame of this site; elsewhere no other site may frame the page.
SPACES = "https://huggingface.co"


def serve(request: AppRequest) -> None:
    """Serve the page until Ctrl-C; see `ovss-refine app --help`. Raises as `running` does."""
    with running(request) as address:
        print(f"The page is at {address} (Ctrl-C stops it).", flush=True)
        if not is_local(request.host):
            print(f"Whoever reaches {request.host} can use it: there is no password.", flush=True)
        if request.browser and _has_display():
            webbrowser.open(address)
        _wait()


@contextmanager
def running(request: AppRequest) -> Iterator[str]:
    """Serve the page while the body runs; yield its address.

    Environment variables are set for the whole process. Uploads are kept in a folder that only this
    user can read, removed at the end.

    Raises:
        ModuleNotFoundError: if gradio is not installed.
        OSError: if the port is in use or the address is not this machine's.
        ValueError: on an unavailable device.
    """
    segmenter = Segmenter(
        device=request.device,
        dtype=request.dtype,
        models_dir=request.models_dir,
        max_pixels=request.max_pixels,
    )
    port = _free(request.host, request.port)
    with private_folder() as folder:
        _set_environment(str(folder))  # before gradio is imported
        sessions, uploads = Sessions(folder), Uploads(folder, request.max_bytes)
        page = build_page(Handlers(Worker(segmenter), sessions, request.max_bytes), uploads)
        try:
            _launch(page, request.host, port, sessions, uploads)
            with _repeated(sessions.tidy, uploads.tidy, Leftovers(page, sessions).tidy):
                yield _address(request.host, port)
        finally:
            page.close(verbose=False)


@contextmanager
def _repeated(*tidy: Callable[[], None]) -> Iterator[None]:
    """Call functions every `TIDY_S` seconds, in a thread, while the body runs."""
    over = Event()

    def loop() -> None:
        while not over.wait(TIDY_S):
            for function in tidy:
                function()

    Thread(target=loop, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _launch(page: Any, host: str, port: int, sessions: Sessions, uploads: Uploads) -> None:
    middleware = require("starlette.middleware", "app").Middleware
    guarding = {
        "host": host,
        "uploads": uploads,
        "arrived": sessions.arrived,
        "public": os.environ.get("GRADIO_ROOT_PATH", ""),
        "framed_by": SPACES if os.environ.get("SPACE_ID") else "",
    }
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        mcp_server=False,
        footer_links=[],
        max_file_size=uploads.max_bytes,
        state_session_capacity=CAPACITY,
        app_kwargs={"middleware": [middleware(Guard, **guarding)]},
        **style(),
    )


def _set_environment(root: str) -> None:
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        if name != "GRADIO_ROOT_PATH":  # which a proxy in front of the page needs
            del os.environ[name]
    os.environ.update(QUIET, GRADIO_TEMP_DIR=root)


def _free(host: str, port: int) -> int:
    """Return `port`, or any free one for 0; raise if it cannot be bound."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as err:
        raise OSError(
            f"`--host` and `--port` must be an address of this machine and a free port; got {host} "
            f"and {port}: {err}. Pass another --port, or 0 for any."
        ) from err


def _address(host: str, port: int) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}/"


def _has_display() -> bool:
    """Whether a browser window can open; without a display a text browser would take over."""
    windowed = sys.platform in ("win32", "darwin")
    return windowed or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _wait() -> None:
    """Wait for Ctrl-C; SIGTERM counts as one."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    while True:
        time.sleep(1.0)
