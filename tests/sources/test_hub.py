"""Whether the hub is reachable, and what happens if not. Uses local sockets only."""

import socket
import sys
import threading
from contextlib import closing

import pytest

from ovss_refine.registry import MissingWeightsError
from ovss_refine.sources import hub
from ovss_refine.sources.hub import answers, without_waiting


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setattr(hub, "getproxies", dict)


@pytest.fixture
def server():
    """An address that accepts connections."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def closed():
    """An address that refuses connections."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_answers_if_it_accepts_a_connection(server):
    assert answers(f"http://{server}/mirror")
    assert not answers(f"http://{closed()}")


def test_a_proxy_is_tried_instead_of_the_hub(server, monkeypatch):
    for proxy in (server, f"http://{server}"):
        monkeypatch.setattr(hub, "getproxies", lambda proxy=proxy: {"https": proxy})
        assert answers(f"https://{closed()}")
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": f"http://{closed()}"})
    assert not answers(f"https://{server}")
    monkeypatch.setattr(hub, "proxy_bypass", lambda host: host == server)
    assert answers(f"https://{server}")


def test_default_ports(monkeypatch):
    places = []

    def connect(place, _):
        places.append(place)
        raise OSError

    monkeypatch.setattr(hub.socket, "create_connection", connect)
    for url in ("https://hub.example", "http://hub.example/x"):
        answers(url)
    assert places == [("hub.example", 443), ("hub.example", 80)]


def test_a_hanging_name_resolution_does_not_block(monkeypatch):
    returned, resolved = threading.Event(), []

    def connect(*_):
        returned.wait(60)
        resolved.append(True)
        raise OSError

    monkeypatch.setattr(hub.socket, "create_connection", connect)
    assert not answers("https://hub.example", 0.1)
    assert not resolved
    returned.set()


@pytest.fixture
def constants(monkeypatch):
    """The hub's settings, without a server behind them."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra `models`")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{closed()}")
    return constants


def test_an_unreachable_hub_is_not_asked(constants):
    def load():
        with without_waiting():
            assert constants.HF_HUB_OFFLINE
            raise MissingWeightsError("none from e", " (not asked: HF_HUB_OFFLINE is set)", "run")

    with pytest.raises(FileNotFoundError, match=r"^none from e, which is unreachable; run\.$"):
        load()
    assert constants.HF_HUB_OFFLINE is False


def test_a_hub_that_answers_is_asked(constants, server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{server}")
    with without_waiting():
        assert constants.HF_HUB_OFFLINE is False


def test_the_setting_of_the_user_is_kept(constants, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "answers", lambda url: pytest.fail("asked"))
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set"), without_waiting():
        raise MissingWeightsError("none from e", " (not asked: HF_HUB_OFFLINE is set)", "run")
    assert constants.HF_HUB_OFFLINE is True


def test_without_the_library_nothing_happens(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    monkeypatch.setattr(hub, "answers", lambda url: pytest.fail("asked"))
    with without_waiting():
        pass
