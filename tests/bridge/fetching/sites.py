"""Web servers on loopback that a test scripts, and a resolver that knows them by name."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from tests.support.tcp import serving

IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(100)

Respond = Callable[["Request", asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Request:
    """A received request; names of headers are in lower case."""

    method: str
    target: str
    headers: dict[str, str]


@dataclass
class Site:
    """A running server, with the requests that it has received."""

    port: int
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    @property
    def targets(self) -> list[str]:
        """The paths of the requests."""
        return [request.target for request in self.requests]


def reply(
    body: bytes = IMAGE, status: str = "200 OK", *, length: int | None = None, **headers: str
) -> bytes:
    """Return a response; names of headers are written with underscores."""
    headers = {"content_type": "image/png", **headers}
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value]
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    """Return a redirect."""
    return reply(b"", status, content_type="text/html", location=location)


@asynccontextmanager
async def site(
    answer: Respond | bytes | dict[str, bytes],
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Site]:
    """Serve a response, responses by path, or what a function writes."""
    running = Site(0)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            first = await reader.readexactly(1)
            if first != b"G":  # such as the beginning of TLS
                raise ConnectionError("not GET")
            request = _parse(first + await reader.readuntil(b"\r\n\r\n"))
            running.requests.append(request)
            if callable(answer):
                await answer(request, writer)
            else:
                found = answer if isinstance(answer, bytes) else answer[request.target]
                writer.write(found)
                await writer.drain()

    async with serving(handle, host, ssl=tls) as running.port:
        yield running


def _parse(head: bytes) -> Request:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines)
    return Request(method, target, {name.lower(): value.strip() for name, _, value in pairs})


class Names:
    """A resolver with fixed addresses by name; several lists are one answer after the other."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self._answers = {name.replace("_", "."): list(lists) for name, lists in answers.items()}
        self.queries: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Return the next answer for a name; the last one is repeated."""
        self.queries.append(host)
        lists = self._answers.get(host)
        if lists is None:
            raise OSError("unknown name")
        return lists.pop(0) if len(lists) > 1 else lists[0]
