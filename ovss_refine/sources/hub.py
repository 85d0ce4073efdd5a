"""Not waiting for a hub that does not answer.

Without a network, Hugging Face's library asks six times for every file, for half a minute, also for
files that its cache has. One look at the door is enough.
"""

import importlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

WAIT_S = 5
PORTS = {"http": 80, "https": 443}
SET_BY_USER = " (not asked: HF_HUB_OFFLINE is set)"


@contextmanager
def without_waiting() -> Iterator[None]:
    """Have the hub's library look into its cache alone, where the hub does not answer.

    The setting is one of the process: other threads that load models meanwhile see it too.
    """
    try:
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ModuleNotFoundError:
        yield  # whoever needs it says how to install it
        return
    if constants.HF_HUB_OFFLINE or answers(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(
            str(error).replace(SET_BY_USER, ", which gives no answer")
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = False


def answers(url: str, seconds: float = WAIT_S) -> bool:
    """Tell whether a server, or the proxy before it, takes a connection within some seconds."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.netloc):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    place = (parts.hostname or "", parts.port or PORTS.get(parts.scheme, 443))
    found = []

    def connect() -> None:
        try:
            socket.create_connection(place, seconds).close()
            found.append(True)
        except OSError:
            return

    # In a thread, because looking up a name knows no time limit.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(found)
