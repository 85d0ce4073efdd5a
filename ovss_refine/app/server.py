"""Serving the page: to this machine, with nothing left behind."""

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ovss_refine.app.guard import Guard, is_local
from ovss_refine.app.handlers import Handlers
from ovss_refine.app.page import build_page, look
from ovss_refine.app.request import AppRequest
from ovss_refine.app.session import Sessions
from ovss_refine.app.work import Worker
from ovss_refine.registry import require
from ovss_refine.segmenter import Segmenter

# Gradio and the hub report home unless told not to; run history would keep results in the browser.
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
}
# A proxy in front of the page needs this one; all others would change what is said here.
KEPT = ("GRADIO_ROOT_PATH",)


def serve(request: AppRequest) -> None:
    """Serve the page until Ctrl-C; see `ovss-refine app --help`.

    Raises:
        ModuleNotFoundError: if gradio is not installed.
        OSError: if the port is in use or the address is not this machine's.
        ValueError: on a device that there is not.
    """
    limits = {"max_bytes": request.max_bytes, "max_pixels": request.max_pixels}
    segmenter = Segmenter(
        device=request.device, models_dir=request.models_dir, max_pixels=request.max_pixels
    )
    with running(segmenter, host=request.host, port=request.port, **limits) as address:
        print(f"The page is at {address} (Ctrl-C stops it).", flush=True)
        if not is_local(request.host):
            print(f"Whoever reaches {request.host} can use it: there is no password.", flush=True)
        if request.browser and _has_display():
            webbrowser.open(address)
        _wait()


@contextmanager
def running(
    segmenter: Segmenter, *, host: str, port: int, max_bytes: int, max_pixels: int
) -> Iterator[str]:
    """Serve the page while the body runs, which is given its address.

    Its environment variables are set for the whole process. What people upload lies in a folder
    that only this user can read, and that is gone afterwards.

    Raises:
        ModuleNotFoundError: if gradio is not installed.
        OSError: if the port is in use or the address is not this machine's.
    """
    port = _free(host, port)
    root = Path(tempfile.mkdtemp(prefix="ovss-refine-app-"))  # mode 0700
    try:
        _set_environment(root)
        require("gradio", "app")
        limits = {"max_bytes": max_bytes, "max_pixels": max_pixels}
        page = build_page(Handlers(Worker(segmenter), Sessions(root), **limits))
        try:
            _launch(page, host, port, max_bytes)
            yield _address(host, port)
        finally:
            page.close(verbose=False)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _launch(page: Any, host: str, port: int, max_bytes: int) -> None:
    middleware = require("starlette.middleware", "app").Middleware
    gr = require("gradio", "app")
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        inline=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        footer_links=[],
        max_file_size=max_bytes,
        app_kwargs={"middleware": [middleware(Guard, local=is_local(host))]},
        **look(gr),
    )


def _set_environment(root: Path) -> None:
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        if name not in KEPT:
            del os.environ[name]
    os.environ.update(QUIET, GRADIO_TEMP_DIR=str(root))


def _free(host: str, port: int) -> int:
    """Return `port`, or any free one for 0, after seeing that it can be listened on."""
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
    """Tell whether a browser can open here: on a server it would be one of text, in the way."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _wait() -> None:
    """Wait for Ctrl-C, or for the signal that asks a process to end, which is taken as one."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    while True:
        time.sleep(1.0)
