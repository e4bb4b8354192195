"""Keep the page to itself: no other site may use it, and it asks no other machine for anything."""

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy: a browser fetches nothing from elsewhere, whatever the page says."""

_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """ASGI middleware in front of Gradio.

    - A site that points its own name to this machine (DNS rebinding) is refused by the name.
    - Gradio's fetching of addresses for a client is refused.
    - Every answer carries `POLICY`.

    Args:
        app: Application behind it.
        hosts: Names by which this machine may be called; empty for any.
    """

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], hosts: Collection[str]
    ) -> None:
        self.app, self.hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket" or not self._allows(scope):
            await send({"type": "http.response.start", "status": 403, "headers": _HEADERS})
            await send({"type": "http.response.body", "body": b"refused"})
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_policy)

    def _allows(self, scope: Scope) -> bool:
        headers = {name.lower(): value for name, value in scope["headers"]}
        name = headers.get(b"host", b"").decode("latin-1").rpartition(":")[0].strip("[]").lower()
        if self.hosts and name not in self.hosts:
            return False
        return not any(part in scope["path"] for part in ("file=http", "proxy="))
