"""One HTTP response, with the headers that all responses have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

Header = tuple[bytes, bytes]
Send = Callable[[dict[str, Any]], Awaitable[None]]

# A response that a browser shows nevertheless may load and run nothing.
SECURITY_HEADERS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)
NO_STORE: Header = (b"cache-control", b"no-store")


class HttpResponse:
    """Sends a response; ``started`` once its status can no longer be changed.

    ``security`` are the headers that restrict what a browser does with it.  ``reason`` replaces the
    usual text of the status line.
    """

    def __init__(self, send: Send) -> None:
        self.started = False
        self.security = SECURITY_HEADERS
        self.headers: list[Header] = []
        self.reason = ""
        self._send = send

    async def whole(
        self, status: int, content_type: bytes, body: bytes, headers: Iterable[Header] = ()
    ) -> None:
        """Send a complete response."""
        await self.begin(status, content_type, (NO_STORE, *headers))
        await self.end(body)

    async def empty(self, status: int, headers: Iterable[Header] = ()) -> None:
        """Send a response without a body."""
        await self._start(status, headers)
        await self.end(b"")

    async def begin(self, status: int, content_type: bytes, headers: Iterable[Header] = ()) -> None:
        """Begin a response; its status is sent with the first part of the body."""
        await self._start(status, ((b"content-type", content_type), *headers))

    async def part(self, body: bytes) -> None:
        """Send a part of the body."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes) -> None:
        """Send the last part of the body."""
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _start(self, status: int, headers: Iterable[Header]) -> None:
        self.started = True
        message = {
            "type": "http.response.start",
            "status": status,
            "headers": [*self.security, *self.headers, *headers],
            "reason": self.reason,
        }
        await self._send(message)
