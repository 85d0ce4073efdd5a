"""Whether the hub answers, and what happens if not. Uses local sockets only."""

import http.server
import socket
import sys
import threading
import time
from contextlib import closing, contextmanager

import pytest

from ovss_refine.registry import MissingWeightsError
from ovss_refine.sources import hub
from ovss_refine.sources.hub import answers, without_waiting

utils = pytest.importorskip("huggingface_hub.utils", reason="needs the extra `models`")


@pytest.fixture(autouse=True)
def _as_new(monkeypatch):
    """No proxy, no remembered verdict, and a client that has seen neither."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(hub, "_silent", {})
    utils.close_session()
    yield
    utils.close_session()


@contextmanager
def serving(status):
    """An address that answers every request with `status`, and the paths that were asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server():
    """An address that answers."""
    with serving(200) as (address, _):
        yield address


@pytest.fixture
def silent():
    """An address that accepts connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def closed():
    """An address that refuses connections."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_answers_if_it_answers_a_request(server, silent):
    assert answers(f"http://{server}/mirror")
    assert not answers(f"http://{closed()}")
    assert not answers(f"http://{silent}", 0.2)


@pytest.mark.parametrize(("status", "wanted"), [(401, True), (404, True), (502, False)])
def test_what_stands_before_the_hub_does_not_answer_for_it(status, wanted):
    with serving(status) as (address, _):
        assert answers(f"http://{address}") is wanted


def test_a_proxy_is_asked_instead_of_the_hub(monkeypatch, silent):
    with serving(200) as (proxy, asked):
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy}")
        assert answers("http://hub.example/")
        assert asked == ["http://hub.example/"]
    for proxy in (silent, closed()):
        utils.close_session()
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy}")
        assert not answers("http://hub.example/", 0.2)


def test_a_hanging_name_resolution_does_not_block(monkeypatch):
    returned, resolved = threading.Event(), []

    def resolve(*_, **__):
        returned.wait(60)
        resolved.append(True)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
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


def test_a_silent_hub_is_asked_once_in_a_while(constants, silent, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{silent}")
    asked, now = [], [100.0]
    monkeypatch.setattr(hub, "answers", lambda url: asked.append(url))
    monkeypatch.setattr(hub.time, "monotonic", lambda: now[0])
    for seconds in (0, 1, hub.REST - 2, 2):
        now[0] += seconds
        with without_waiting():
            assert constants.HF_HUB_OFFLINE
    assert asked == [f"http://{silent}"] * 2


def test_threads_do_not_take_the_setting_for_the_users(constants):
    """The second finds the hub asked again, not a setting that the first is about to reset."""
    inside, leave, seen = threading.Event(), threading.Event(), []

    def first():
        with without_waiting():
            inside.set()
            leave.wait(10)

    def second():
        with without_waiting():
            time.sleep(0.05)  # the first has left
            seen.append(constants.HF_HUB_OFFLINE)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    inside.wait(10)
    threads[1].start()
    leave.set()
    for thread in threads:
        thread.join()
    assert seen == [True]
    assert constants.HF_HUB_OFFLINE is False


def test_a_hub_that_answers_is_asked(constants, server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{server}")
    with without_waiting():
        assert constants.HF_HUB_OFFLINE is False


def test_a_load_without_a_network_is_one_sentence_and_soon(constants, silent, monkeypatch, capfd):
    pytest.importorskip("timm", reason="needs the extra `models`")
    pytest.importorskip("open_clip", reason="needs the extra `models`")
    pytest.importorskip("diffusers", reason="needs the extra `models`")
    from ovss_refine import load_attention, load_logits

    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nowhere/hub")
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    loads = [
        lambda: load_attention("dinov2-b14-reg"),
        lambda: load_attention("timm", model="hf-hub:timm/vit_base_patch8_224.dino"),
        lambda: load_attention("sd2.1"),
        lambda: load_attention("clip-b16"),
        lambda: load_logits("kk-mean", classes=["cat", "sofa"]),
        lambda: load_logits("kk-mean", classes=["cat"], model="hf-hub:owner/name"),
    ]
    for address in (closed(), silent):
        monkeypatch.setattr(constants, "ENDPOINT", f"http://{address}")
        for load in loads:
            start = time.monotonic()
            with pytest.raises(FileNotFoundError, match=r"^the weights `.*unreachable; run .*\.$"):
                load()
            assert time.monotonic() - start < 5
    assert capfd.readouterr() == ("", "")


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
