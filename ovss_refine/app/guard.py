"""What the server refuses before gradio sees it, and what it tells the browser to refuse.

Gradio fetches URLs that a request names, on the visitor's behalf; here only weights may be fetched.
A local page must answer only to this machine's own names: otherwise a web site whose domain
resolves to this machine (DNS rebinding) could read what people do on the page. The browser is told
to load nothing from any other host, whatever a version of gradio asks for.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Any, Send], Awaitable[None]]

# Gradio accepts "file/" for "file=" too. One letter before the colon is a Windows drive.
FETCHES = re.compile(r"/(file[=/]\s*[a-z][a-z0-9+.-]+:|proxy=|deep_link)", re.IGNORECASE)
POLICY = (
    b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    b"style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'"
)


class Guard:
    """ASGI middleware that answers 403 to requests that the page itself never makes.

    Args:
        app: the application to protect.
        local: answer requests for "localhost" and loopback addresses only.
    """

    def __init__(self, app: Application, *, local: bool) -> None:
        """Wrap `app`."""
        self.app = app
        self.local = local

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Refuse the request, or pass it on."""
        reason = self._refusal(scope) if scope["type"] == "http" else ""
        if not reason:
            await self.app(scope, receive, _with_policy(send))
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": reason.encode()})

    def _refusal(self, scope: Scope) -> str:
        if FETCHES.search(scope["path"]):
            return "URLs are not fetched."
        host = next((v for k, v in scope["headers"] if k == b"host"), b"").decode("latin-1")
        if self.local and not is_local(host.rpartition(":")[0] if _has_port(host) else host):
            return "This page answers only to the names of its own machine."
        return ""


def _with_policy(send: Send) -> Send:
    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"content-security-policy", POLICY)]
            message = {**message, "headers": headers}
        await send(message)

    return sending


def is_local(host: str) -> bool:
    """Whether a host name or address, without a port, is loopback."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _has_port(host: str) -> bool:
    return bool(re.search(r":\d+$", host)) and (host.count(":") == 1 or "]:" in host)
