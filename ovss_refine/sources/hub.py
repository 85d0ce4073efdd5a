"""Skip the hub when it is unreachable; one connection attempt decides.

Without a network, Hugging Face's library retries six times for every file, for half a minute, even
for files in its cache.
"""

import importlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ovss_refine.registry import MissingWeightsError


@contextmanager
def without_waiting() -> Iterator[None]:
    """Restrict the hub's library to its cache if the hub is unreachable.

    The setting is global: other threads that load models meanwhile see it too.
    """
    try:
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ModuleNotFoundError:
        yield  # the source that needs it says how to install it
        return
    if constants.HF_HUB_OFFLINE or answers(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except MissingWeightsError as error:
        raise MissingWeightsError(error.lack, ", which is unreachable", error.fix) from error
    finally:
        constants.HF_HUB_OFFLINE = False


def answers(url: str, seconds: float = 5) -> bool:
    """Tell whether a server, or the proxy in front of it, accepts a connection within `seconds`."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.netloc):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    place = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
    found = []

    def connect() -> None:
        try:
            socket.create_connection(place, seconds).close()
            found.append(True)
        except OSError:
            return

    # In a thread, because name resolution has no timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(found)
