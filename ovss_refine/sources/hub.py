"""Skip the hub when it does not answer; one request decides.

Without a network, Hugging Face's library retries six times for every file, for half a minute, even
for files in its cache.
"""

import importlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ovss_refine.registry import MissingWeightsError

# Seconds to wait for an answer, and after which a silent hub is asked again.
PATIENCE, REST = 3.0, 30.0
# Answers of a proxy or load balancer that has nothing behind it, after which the library retries.
GATEWAY_ERRORS = (502, 503, 504)
# Held while the library is offline, so that no other thread takes that for the user's setting.
_SETTING = threading.RLock()
# When each hub was last found silent.
_silent: dict[str, float] = {}


@contextmanager
def without_waiting() -> Iterator[None]:
    """Restrict the hub's library to its cache if the hub does not answer.

    The setting is global: other threads that load models meanwhile see it too.
    """
    try:
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ModuleNotFoundError:
        yield  # the source that needs it says how to install it
        return
    with _SETTING:
        asked = constants.HF_HUB_OFFLINE or _reachable(constants.ENDPOINT)
        if not asked:
            constants.HF_HUB_OFFLINE = True
            try:
                yield
            except MissingWeightsError as error:
                raise MissingWeightsError(
                    error.lack, ", which is unreachable", error.fix
                ) from error
            finally:
                constants.HF_HUB_OFFLINE = False
            return
    yield


def _reachable(endpoint: str) -> bool:
    """Whether the hub answers, asked at most once in `REST` seconds if it does not."""
    if time.monotonic() - _silent.get(endpoint, -REST) < REST:
        return False
    if answers(endpoint):
        return True
    _silent[endpoint] = time.monotonic()
    return False


def answers(url: str, seconds: float | None = None) -> bool:
    """Tell whether a server answers within `seconds`, or `PATIENCE`, to the hub library's client.

    A server or proxy that only accepts connections, or has nothing behind it, does not.
    """
    utils: Any = importlib.import_module("huggingface_hub.utils")
    patience = PATIENCE if seconds is None else seconds
    found = []

    def ask() -> None:
        try:
            status = utils.get_session().head(url, timeout=patience).status_code
        except Exception:  # of the client and everything below it
            return
        found.append(status not in GATEWAY_ERRORS)

    # In a thread, because name resolution has no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return found == [True]
