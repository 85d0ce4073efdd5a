"""Whether the hub answers, and what is done where it does not. No network: this machine alone."""

import socket
import sys
import threading
import time
from contextlib import closing

import pytest

from ovss_refine.sources import hub
from ovss_refine.sources.hub import answers, without_waiting


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setattr(hub, "getproxies", dict)


@pytest.fixture
def server():
    """An address that takes connections."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def closed():
    """An address that takes none."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


def test_who_answers(server):
    assert answers(f"http://{server}/mirror")
    assert not answers(f"http://{closed()}")


def test_a_proxy_is_asked_in_the_place_of_the_hub(server, monkeypatch):
    for proxy in (server, f"http://{server}"):
        monkeypatch.setattr(hub, "getproxies", lambda proxy=proxy: {"https": proxy})
        assert answers(f"https://{closed()}")
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": f"http://{closed()}"})
    assert not answers(f"https://{server}")
    monkeypatch.setattr(hub, "proxy_bypass", lambda host: host == server)
    assert answers(f"https://{server}")


def test_ports_of_addresses_without_one(monkeypatch):
    places = []

    def connect(place, _):
        places.append(place)
        raise OSError

    monkeypatch.setattr(hub.socket, "create_connection", connect)
    for url in ("https://hub.example", "http://hub.example/x"):
        answers(url)
    assert places == [("hub.example", 443), ("hub.example", 80)]


def test_a_name_that_is_looked_up_for_ever_does_not_hold_up(monkeypatch):
    waiting = threading.Event()

    def connect(*_):
        waiting.wait(60)
        raise OSError

    monkeypatch.setattr(hub.socket, "create_connection", connect)
    start = time.perf_counter()
    assert not answers("https://hub.example", 0.1)
    assert time.perf_counter() - start < 30
    waiting.set()


@pytest.fixture
def constants(monkeypatch):
    """The hub's settings, without a server behind them."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra `models`")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{closed()}")
    return constants


def test_a_hub_that_is_silent_is_not_asked(constants):
    def load():
        with without_waiting():
            assert constants.HF_HUB_OFFLINE
            raise FileNotFoundError("nor from e (not asked: HF_HUB_OFFLINE is set); run")

    with pytest.raises(FileNotFoundError, match="nor from e, which gives no answer; run"):
        load()
    assert constants.HF_HUB_OFFLINE is False


def test_a_hub_that_answers_is_asked(constants, server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{server}")
    with without_waiting():
        assert constants.HF_HUB_OFFLINE is False


def test_what_the_user_set_stays(constants, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "answers", lambda url: pytest.fail("asked"))
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set"), without_waiting():
        raise FileNotFoundError("(not asked: HF_HUB_OFFLINE is set)")
    assert constants.HF_HUB_OFFLINE is True


def test_without_the_library_nothing_happens(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    monkeypatch.setattr(hub, "answers", lambda url: pytest.fail("asked"))
    with without_waiting():
        pass
