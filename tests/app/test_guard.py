"""Requests that the server refuses before gradio sees them."""

import asyncio

import pytest

from ovss_refine.app.guard import Guard, is_local


def ask(path, host="127.0.0.1:7860", *, local=True, kind="http"):
    """Return what the guard sends, or "through" if it passes the request on."""
    sent = []

    async def inner(scope, receive, send):
        sent.append("through")

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "path": path, "headers": [(b"host", host.encode())]}
    asyncio.run(Guard(inner, local=local)(scope, None, send))
    return sent


def refused(sent, reason):
    start, body = sent
    return start["status"] == 403 and reason in body["body"].decode()


@pytest.mark.parametrize(
    "path", ["/", "/config", "/gradio_api/queue/join", "/gradio_api/file=/tmp/a/b.png"]
)
def test_the_page_itself_passes(path):
    assert ask(path) == ["through"]


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
    assert ask("/", host, local=False) == ["through"]


def test_other_scopes_pass():
    assert ask("/file=http://x", kind="lifespan") == ["through"]


def test_loopback_is_local():
    assert is_local("LOCALHOST")
    assert is_local("::1")
    assert not is_local("0.0.0.0")
    assert not is_local("192.168.1.2")
    assert not is_local("localhost.example.org")


def test_the_policy_allows_nothing_from_other_hosts():
    sent = []

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(page, local=True)(scope, None, send))
    headers = dict(sent[0]["headers"])
    assert headers[b"a"] == b"b"
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'self' data: blob:;" in policy
    assert "http" not in policy
    assert sent[1] == {"type": "http.response.body", "body": b"x"}
