"""HTTP/1.1 over a plain connection: requests byte by byte, and complete responses."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.support.waiting import TIMEOUT_S

Headers = Iterable[tuple[str, str]]
SERVICE = "/samserve.v1.SegmentationService/"
JSON = ("content-type", "application/json")


@dataclass(frozen=True)
class Response:
    """A response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """One connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str
    ) -> None:
        self.reader, self.writer, self.host = reader, writer, host

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def head(
        self, path: str, headers: Headers = (), *, method: str = "POST", host: str | None = None
    ) -> bytes:
        """Return the head of a request."""
        lines = [f"{method} {path} HTTP/1.1"]
        if host != "":
            lines.append(f"host: {host or self.host}")
        lines += [f"{name}: {value}" for name, value in headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    async def request(
        self,
        path: str,
        body: bytes = b"",
        headers: Headers = (),
        *,
        method: str = "POST",
        host: str | None = None,
    ) -> Response:
        """Send a request and return its response."""
        length = ("content-length", str(len(body)))
        self.send(self.head(path, [*headers, length], method=method, host=host) + body)
        return await self.response()

    async def response(self) -> Response:
        """Read a response."""
        async with asyncio.timeout(TIMEOUT_S):
            status, headers = await self.response_head()
            if headers.get("transfer-encoding") == "chunked":
                body = b"".join([chunk async for chunk in self.chunks()])
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            else:
                body = b""
        return Response(status, headers, body)

    async def response_head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
        pairs = (line.split(": ", 1) for line in lines[1:-1])
        return int(lines[0].split()[1]), {name.lower(): value for name, value in pairs}

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the chunks of a body as they arrive."""
        while size := int(await self.reader.readline(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()

    async def closed(self) -> bytes:
        """Wait until the server closes the connection; return what it sent before."""
        received = b""
        async with asyncio.timeout(TIMEOUT_S):
            with suppress(ConnectionError):
                while data := await self.reader.read(1 << 16):
                    received += data
        return received

    def abort(self) -> None:
        self.writer.transport.abort()


@asynccontextmanager
async def connected(url: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Wire]:
    """Connect to a listener."""
    parts = urlsplit(url)
    name = "localhost" if tls else None
    opened = await asyncio.open_connection(
        parts.hostname, parts.port, ssl=tls, server_hostname=name, limit=1 << 27
    )
    wire = Wire(*opened, host=parts.netloc)
    try:
        yield wire
    finally:
        wire.writer.transport.abort()
        with suppress(ConnectionError, ssl.SSLError):
            await wire.writer.wait_closed()
