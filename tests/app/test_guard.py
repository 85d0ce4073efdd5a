"""Requests that the server refuses before gradio sees them."""

import asyncio
from pathlib import Path

import pytest

from ovss_refine.app.guard import Guard, is_local
from ovss_refine.app.uploads import Uploads


def guarded(inner, listen="127.0.0.1", **options):
    return Guard(inner, host=listen, uploads=Uploads(Path("/nowhere"), 1000), **options)


def ask(path, host="127.0.0.1:7860", *, kind="http", method="GET", root="", more=(), **options):
    """Return what the guard sends, or "through" if it passes the request on."""
    sent = []

    async def inner(scope, receive, send):
        sent.append("through")

    async def send(message):
        sent.append(message)

    headers = [(b"host", host.encode()), *((k.encode(), v.encode()) for k, v in more)]
    scope = {"type": kind, "path": path, "headers": headers, "method": method, "root_path": root}
    asyncio.run(guarded(inner, **options)(scope, None, send))
    return sent


def refused(sent, reason):
    start, body = sent
    return start["status"] == 403 and reason in body["body"].decode()


@pytest.mark.parametrize(
    "path", ["/", "/config", "/gradio_api/queue/data", "/gradio_api/file=/tmp/a/b.png"]
)
def test_the_page_itself_passes(path):
    assert ask(path) == ["through"]


def test_an_event_of_the_page_passes():
    length = [("content-length", "2")]
    assert ask("/gradio_api/queue/join", method="POST", more=length) == ["through"]
    assert refused(ask("/gradio_api/queue/join"), "not served")


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://example.org/x.png",
        "/gradio_api/file=HTTPS://example.org/x.png",
        "/gradio_api/file= https:/example.org/x.png",
        "/gradio_api/file=ftp://example.org/x",
        "/gradio_api/file/https://example.org/x.png",
        "/gradio_api/proxy=https://x.hf.space/file=y",
        "/gradio_api/deep_link",
    ],
)
def test_urls_are_not_fetched(path):
    assert refused(ask(path), "not fetched")


def test_a_windows_drive_is_a_file():
    assert ask("/gradio_api/file=C:/Temp/x.png") == ["through"]


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:80", "127.8.8.8:1", "::1"])
def test_names_of_this_machine_pass(host):
    assert ask("/", host) == ["through"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "10.0.0.1:7860", ""])
def test_other_names_are_refused_on_a_local_page(host):
    assert refused(ask("/", host), "its own machine")


LAN = {"listen": "0.0.0.0"}


@pytest.mark.parametrize("host", ["192.168.1.5:7860", "[fd00::1]:80", "localhost", "lab-7:7860"])
def test_an_open_page_answers_to_addresses_and_its_own_name(host, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "lab-7.example.org")
    assert ask("/", host, **LAN) == ["through"]
    assert ask("/", "lab-7.local", **LAN) == ["through"]
    assert ask("/", "gpu", listen="gpu") == ["through"]
    assert refused(ask("/", "lab-8", **LAN), "GRADIO_ROOT_PATH")


def test_an_open_page_cannot_be_rebound():
    assert refused(ask("/", "evil.example:7860", **LAN), "its own machine")


PROXIES = {"nginx": "127.0.0.1:7860", "caddy": "lab.example.org"}


@pytest.mark.parametrize("host", PROXIES.values(), ids=PROXIES)
def test_the_public_url_of_a_proxy_is_accepted(host):
    public, post = "https://lab.example.org/ovss", {"method": "POST"}
    length = ("content-length", "2")
    ours = [("origin", "https://lab.example.org"), length]
    path = "/gradio_api/queue/join"
    assert ask(path, host, public=public, more=ours, **post) == ["through"]
    theirs = [("origin", "https://evil.example"), length]
    assert refused(ask(path, host, public=public, more=theirs, **post), "other web sites")
    if host == PROXIES["nginx"]:
        assert refused(ask(path, host, more=ours, **post), "other web sites")


def test_the_path_below_a_root_path_counts():
    assert ask("/ovss/config", root="/ovss") == ["through"]
    assert ask("/config", root="/ovss") == ["through"]
    assert refused(ask("/ovss/gradio_api/dev/reload", root="/ovss"), "not served")
    assert refused(ask("/x/config", root="/ovss"), "not served")


def test_two_hosts_are_one_too_many():
    assert refused(ask("/", more=[("host", "localhost")]), "its own machine")


@pytest.mark.parametrize("length", [(), ("1", "1"), ("-1",), ("x",), ("0x5",), ("1" * 16,)])
def test_a_body_states_its_length(length):
    more = [("content-length", value) for value in length]
    start, _ = ask("/gradio_api/queue/join", method="POST", more=more)
    assert start["status"] == 411


def test_websockets_are_closed():
    assert ask("/", kind="websocket") == [{"type": "websocket.close", "code": 1008}]


def test_other_scopes_pass():
    assert ask("/file=http://x", kind="lifespan") == ["through"]


def test_loopback_is_local():
    assert is_local("LOCALHOST")
    assert is_local("::1")
    assert not is_local("0.0.0.0")
    assert not is_local("192.168.1.2")
    assert not is_local("localhost.example.org")


def policy_of(**options):
    """Return the headers and the body of a page that the guard passes on, and its policy."""
    sent = []

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/", "headers": [(b"host", b"localhost")], "method": "GET"}
    asyncio.run(guarded(page, **options)(scope, None, send))
    headers = dict(sent[0]["headers"])
    assert headers[b"a"] == b"b"
    assert sent[1] == {"type": "http.response.body", "body": b"x"}
    return headers[b"content-security-policy"].decode()


def test_the_policy_allows_nothing_from_other_hosts():
    policy = policy_of()
    assert "default-src 'self' data: blob:;" in policy
    assert policy.endswith("; frame-ancestors 'self'")
    assert "http" not in policy


def test_one_other_site_may_frame_the_page_if_it_is_named():
    named = policy_of(framed_by="https://huggingface.co")
    assert named == f"{policy_of()} https://huggingface.co"


def test_a_page_that_opens_its_connection_is_noted():
    arrived = []
    assert ask("/gradio_api/heartbeat/abc", arrived=arrived.append) == ["through"]
    assert ask("/config", arrived=arrived.append) == ["through"]
    assert refused(ask("/gradio_api/heartbeat/x", "evil.example", arrived=arrived.append), "own")
    assert arrived == ["abc"]
