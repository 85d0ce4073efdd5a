"""What the server refuses before gradio sees it, and what it tells the browser to refuse.

Gradio has many routes, and some of them answer anybody or fetch URLs; only those that the page uses
are served. A web site that a visitor has open must not use the page: neither through requests of
its own, which name it as their origin, nor under a domain that it lets resolve to this machine (DNS
rebinding). Bodies and uploads are bounded. The browser is told to load nothing from any other host,
whatever a version of gradio asks for.
"""

import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from ovss_refine.app.uploads import Uploads

Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Any, Send], Awaitable[None]]
Refusal = tuple[int, str]

# Gradio accepts "file/" for "file=" too. One letter before the colon is a Windows drive.
FETCHES = re.compile(r"/(file[=/]\s*[a-z][a-z0-9+.-]+:|proxy=|deep_link)", re.IGNORECASE)
UPLOAD = "/gradio_api/upload"
HEARTBEAT = "/gradio_api/heartbeat/"
READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|robots\.txt)|/(static|assets)/.+|/gradio_api/"
    r"(theme\.css|info|startup-events|queue/data|upload_progress|heartbeat/[^/]+|file=.+)",
    re.DOTALL,
)
ROUTES = {"GET": READ, "HEAD": READ, "POST": re.compile(f"/gradio_api/queue/join|{UPLOAD}")}
# Labels and hyperparameters; an upload also has some bytes around its file.
MAX_BODY = 4_000_000
MULTIPART = 65_536
ELSEWHERE = (
    "Behind a proxy, or under another name, set GRADIO_ROOT_PATH to the URL that people open."
)
POLICY = (
    b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    b"style-src 'self' 'unsafe-inline'; form-action 'self'; frame-ancestors 'self'"
)


class Guard:
    """ASGI middleware that refuses requests that the page itself never makes.

    Args:
        app: the application to protect.
        host: the name or address that the server listens on. If it is loopback, only loopback
            names are answered; otherwise also addresses, which nobody can rebind, and the
            machine's name.
        public: the URL at which a reverse proxy shows the page; its host and origin are accepted.
        uploads: admits uploads.
        arrived: is told the key of each page that opens the connection it keeps.
        framed_by: the origin of another site that may show the page in a frame; "": none may.
    """

    def __init__(
        self,
        app: Application,
        *,
        host: str,
        uploads: Uploads,
        arrived: Callable[[str], None] | None = None,
        public: str = "",
        framed_by: str = "",
    ) -> None:
        """Wrap `app`."""
        self.app = app
        self.local = is_local(host)
        self.names = {host.lower(), *_own_names()}
        self.public = urlsplit(public).netloc.lower()
        self.uploads = uploads
        self.arrived = arrived
        self.policy = b" ".join([POLICY, *framed_by.encode().split()])

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Refuse the request, or pass it on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        elif refusal := self._refusal(scope):
            await _answer(send, *refusal)
        elif _route(scope) == UPLOAD:
            await self._upload(scope, receive, send)
        else:
            if self.arrived is not None and _route(scope).startswith(HEARTBEAT):
                self.arrived(_route(scope).removeprefix(HEARTBEAT))
            await self.app(scope, receive, self._with_policy(send))

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Return the status and the reason of a refusal."""
        if FETCHES.search(scope["path"]):
            return 403, "URLs are not fetched."
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return 403, f"This page answers only to the names of its own machine. {ELSEWHERE}"
        if _is_foreign(scope, {hosts[0], self.public}):
            return 403, f"Requests from other web sites are refused. {ELSEWHERE}"
        route = ROUTES.get(scope["method"])
        if route is None or not route.fullmatch(_route(scope)):
            return 403, "The page has no use for this address; it is not served."
        if scope["method"] == "POST":
            length = _length(scope)
            upload = _route(scope) == UPLOAD
            most = self.uploads.max_bytes + MULTIPART if upload else MAX_BODY
            if length is None:
                return 411, "A request with a body must state its length."
            if length > most:
                return 413, f"A request must have at most {most:,} bytes; got {length:,}."
        return None

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition(":")[0] if _has_port(host) else host
        if is_local(name) or (self.public and host == self.public):
            return True
        return not self.local and (name in self.names or _address(name) is not None)

    async def _upload(self, scope: Scope, receive: Any, send: Send) -> None:
        """Pass on an upload if there is room for it, and note the files that it leaves."""
        length = _length(scope) or 0
        if not self.uploads.admit(length):
            await _answer(send, 503, "Too many uploads at once; try again in a moment.")
            return

        async def noting(message: dict[str, Any]) -> None:
            self.uploads.expect(_paths(message.get("body", b"")))
            await send(message)

        try:
            await self.app(scope, receive, self._with_policy(noting))
        finally:
            self.uploads.ended(length)

    def _with_policy(self, send: Send) -> Send:
        async def sending(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"content-security-policy", self.policy)]
                message = {**message, "headers": headers}
            await send(message)

        return sending


def is_local(host: str) -> bool:
    """Whether a host name or address, without a port, is loopback."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


async def _answer(send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})


def _is_foreign(scope: Scope, ours: set[str]) -> bool:
    """Whether another site made the request; opening the page from a link is its visitor's own."""
    for origin in _values(scope, b"origin"):
        if origin.partition("://")[2] not in ours - {""}:
            return True
    if _values(scope, b"sec-fetch-mode") == ["navigate"]:
        return False
    return any(site in ("cross-site", "same-site") for site in _values(scope, b"sec-fetch-site"))


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").lower() for key, value in scope["headers"] if key == name]


def _length(scope: Scope) -> int | None:
    lengths = _values(scope, b"content-length")
    return (
        int(lengths[0]) if len(lengths) == 1 and re.fullmatch("[0-9]{1,15}", lengths[0]) else None
    )


def _route(scope: Scope) -> str:
    """Return the path below the root path, as the router sees it."""
    path, root = scope["path"], scope.get("root_path", "")
    return str(path[len(root) :] if root and path.startswith(root + "/") else path)


def _paths(answer: bytes) -> list[str]:
    """Return the files in gradio's answer to an upload, which is sent in one piece; or none."""
    try:
        paths = json.loads(answer)
    except ValueError:
        return []
    return paths if isinstance(paths, list) else []


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None


def _own_names() -> set[str]:
    name = socket.gethostname().lower()
    return {name, name.partition(".")[0], name.partition(".")[0] + ".local"}


def _has_port(host: str) -> bool:
    return bool(re.search(r":\d+$", host)) and (host.count(":") == 1 or "]:" in host)
