"""One HTTP request: its headers as metadata, and its body within a limit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from samserve.calls.metadata import Metadata
from samserve.errors import InvalidRequest
from samserve.http.server.connection import PEER

Receive = Callable[[], Awaitable[dict[str, Any]]]

# Of other services on the same host name; samserve has none.
_IGNORED = (b"cookie",)


class HttpRequest:
    """The request of an ASGI scope; ``metadata`` are its headers, in lower case."""

    def __init__(self, scope: dict[str, Any], receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        self.scheme: str = scope["scheme"]
        self.server: tuple[str, int] | None = scope.get("server")
        self.metadata: Metadata = tuple(
            (name.decode("latin-1"), value.decode("latin-1").strip())
            for name, value in scope["headers"]
            if name not in _IGNORED
        )
        self.certificate_names: tuple[str, ...] = scope["extensions"].get(PEER, ())
        self._receive = receive
        self._values: dict[str, str] = {}
        self._repeated: set[str] = set()
        for name, value in self.metadata:
            if name in self._values:
                self._repeated.add(name)
            self._values[name] = str(value)

    def header(self, name: str) -> str:
        """Return a header, empty if it is missing.  Raises `InvalidRequest` if it is repeated."""
        if name in self._repeated:
            raise InvalidRequest(name, "must be sent once")
        return self._values.get(name, "")

    def has(self, name: str) -> bool:
        """Return whether a header was sent."""
        return name in self._values

    async def read(self, limit: int) -> bytes:
        """Return the whole body.  Raises `InvalidRequest` if it is larger than *limit* bytes."""
        declared = self.header("content-length")
        if declared.isdecimal() and int(declared) > limit:
            raise too_large(limit)
        first, more = await self.read_some()
        if not more:
            return self._checked(first, limit)
        # Not a list: the parts may be of one byte each.
        body = bytearray(first)
        while more:
            part, more = await self.read_some()
            body += part
            if len(body) > limit:
                raise too_large(limit)
        return self._checked(bytes(body), limit)

    async def read_some(self) -> tuple[bytes, bool]:
        """Return the next part of the body, and whether there is more."""
        message = await self._receive()
        return message["body"], message["more_body"]

    @staticmethod
    def _checked(body: bytes, limit: int) -> bytes:
        if len(body) > limit:
            raise too_large(limit)
        return body


def too_large(limit: int) -> InvalidRequest:
    """Return the error for a message of more than *limit* bytes."""
    text = f"has more than {limit} bytes; limits.max_request_bytes is the maximum"
    return InvalidRequest("request", text, metadata={"limit": str(limit)})
