"""One connection: parses requests with llhttp, limits every wait, and cancels abandoned work.

A request begins when its headers are complete.  Until its response is complete, the client sends
nothing but its body: pipelined requests are not answered, and the connection closes.  When the
client disconnects, the task of its request is cancelled at once.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import httptools
import structlog

from samserve.http.server.exchange import Exchange, Message, head
from samserve.security.certificates import names_of_certificate

Application = Callable[..., Awaitable[None]]

PEER = "samserve.peer"
"""Extension of the scope: the names in the verified client certificate."""

LINGER_S = 5.0
"""How long a client may take to accept the end of a response, and its connection to close."""

_ENTRY_BYTES = 32
_TOO_LARGE = 431, b"the headers are too large\n"
_INVALID = 400, b"the request is not valid\n"
_UPGRADE = 501, b"upgrades to other protocols are not served\n"
_FAILED = 500, b"internal error\n"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of one connection; header bytes include 32 for each entry."""

    max_header_bytes: int
    header_timeout_s: float
    idle_timeout_s: float
    send_timeout_s: float


class _Refused(Exception):
    """Ends the parsing of a request."""


class Connection(asyncio.Protocol):
    """See the module; *on_lost* is called once the connection is ``lost``."""

    def __init__(
        self, app: Application, limits: ConnectionLimits, on_lost: Callable[[Connection], None]
    ) -> None:
        self._app = app
        self._limits = limits
        self._on_lost = on_lost
        self.lost = False
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._exchange: Exchange | None = None
        self._tasks: dict[asyncio.Task[None], Exchange] = {}
        self._drained: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = math.inf
        self._in_head = self._discards = self._reading_paused = self._stopping = False
        self._head_bytes = self._raw_bytes = 0
        self._error = _INVALID
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []

    # Of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        certificate = None if tls is None else tls.getpeercert()
        self._constant: Message = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "scheme": "http" if tls is None else "https",
            "root_path": "",
            "server": _address(transport.get_extra_info("sockname")),
            "client": _address(transport.get_extra_info("peername")),
            "extensions": {PEER: names_of_certificate(certificate or {})},
        }
        self._set_timeout(self._limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the work for this client."""
        self.lost = True
        self._deadline = math.inf
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._on_lost(self)

    def pause_writing(self) -> None:
        """Let senders wait."""
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        """Let senders continue."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None
        if self._exchange is not None and self._exchange.complete:
            self.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Parse a part of a request."""
        if self._discards:
            return
        if not self._in_head and self._is_idle():
            self._in_head, self._raw_bytes = True, 0
            self._set_timeout(self._limits.header_timeout_s)
        self._raw_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(*self._error)
        else:
            if self._raw_bytes > self._limits.max_header_bytes:
                # An incomplete header or trailer, which the parser buffers, or an endless extension
                # of a chunk.
                self._refuse(*_TOO_LARGE)

    # Of the parser.

    def on_message_begin(self) -> None:
        """Begin a request; one that is pipelined is not parsed."""
        if not self._is_idle():
            raise _Refused
        self._in_head, self._head_bytes = True, 0
        self._url, self._headers = b"", []

    def on_url(self, url: bytes) -> None:
        """Add a part of the URL."""
        self._count(len(url))
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; trailers are ignored."""
        self._count(len(name) + len(value) + _ENTRY_BYTES)
        if self._in_head:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Start the application."""
        if self._parser.should_upgrade():
            # The parser would take the body for another protocol.
            self._error = _UPGRADE
            raise _Refused
        version = self._parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise _Refused
        self._in_head, self._raw_bytes = False, 0
        self._deadline = math.inf
        path = httptools.parse_url(self._url)
        raw = path.path or b"/"
        scope = {
            **self._constant,
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "path": unquote(raw.decode("latin-1")),
            "raw_path": raw,
            "query_string": path.query or b"",
            "headers": self._headers,
        }
        keep_alive = version == "1.1" and self._parser.should_keep_alive() and not self._stopping
        expects = version == "1.1" and any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in self._headers
        )
        self._exchange = Exchange(self, scope, keep_alive=keep_alive, expects_continue=expects)
        task = self._loop.create_task(self._run(self._exchange))
        self._tasks[task] = self._exchange
        task.add_done_callback(self._finished)

    def on_body(self, body: bytes) -> None:
        """Hand over a part of the body."""
        self._raw_bytes = 0
        exchange = self._exchange
        if exchange is None or exchange.complete:
            return
        if exchange.feed(body) and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """Note the end of the request."""
        self._raw_bytes = 0
        if self._exchange is not None:
            self._exchange.end()

    # Of an exchange.

    def write(self, data: bytes) -> None:
        """See `Channel.write`."""
        self._transport.write(data)

    async def drain(self) -> None:
        """See `Channel.drain`."""
        if self._drained is None:
            return
        idle = self._deadline != math.inf
        self._set_timeout(self._limits.send_timeout_s)
        await asyncio.shield(self._drained)
        self._deadline = math.inf
        if idle:
            self._set_timeout(self._limits.idle_timeout_s)

    def resume_reading(self) -> None:
        """See `Channel.resume_reading`."""
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def completed(self, exchange: Exchange) -> None:
        """See `Channel.completed`."""
        # The request may be complete without having been read.
        self.resume_reading()
        if exchange.keep_alive and not self._stopping:
            self._set_timeout(self._limits.idle_timeout_s)
            if self._drained is not None:
                # Else a client that reads nothing could let responses pile up with its requests.
                self._reading_paused = True
                self._transport.pause_reading()
        else:
            self._discards = True

    # Of the listener.

    def stop(self) -> None:
        """Close the connection, after the response if there is a request."""
        self._stopping = True
        if self._exchange is not None and not self._exchange.complete:
            self._end_after_response()
        elif not self._tasks:
            self._close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    async def _run(self, exchange: Exchange) -> None:
        await self._app(exchange.scope, exchange.receive, exchange.send)

    def _finished(self, task: asyncio.Task[None]) -> None:
        exchange = self._tasks.pop(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log = structlog.get_logger("samserve.http")
            log.error("internal error of the HTTP listener", exc_info=error)
        if error is not None and not exchange.started:
            self._discards = True
            self._answer(*_FAILED)
            self._close()
        elif not exchange.complete or (task.cancelled() and self._drained is not None):
            # Cancelled, or failed in the middle of its response, which may wait for a slow client.
            self._transport.abort()
        elif (self._discards or self._stopping) and not self._tasks:
            self._close()

    def _is_idle(self) -> bool:
        return self._exchange is None or (self._exchange.complete and self._exchange.received)

    def _count(self, nbytes: int) -> None:
        self._head_bytes += nbytes
        if self._head_bytes > self._limits.max_header_bytes:
            self._error = _TOO_LARGE
            raise _Refused

    def _end_after_response(self) -> None:
        """Parse nothing more, and close once the current response is complete."""
        exchange = self._exchange
        if exchange is None or exchange.complete:
            self._discards = True
            self._close()
            return
        exchange.keep_alive = False
        # The rest of its body is still needed.
        self._discards = exchange.received

    def _refuse(self, status: int, text: bytes) -> None:
        """Answer what is not a valid request, and close."""
        exchange, self._discards = self._exchange, True
        if exchange is not None and not exchange.complete and exchange.received:
            self._end_after_response()
            return
        if exchange is None or exchange.complete or not exchange.started:
            self._answer(status, text)
        for task in self._tasks:
            task.remove_done_callback(self._finished)
            task.add_done_callback(self._tasks.pop)
            task.cancel()
        self._close()

    def _answer(self, status: int, text: bytes) -> None:
        kind = (b"content-type", b"text/plain; charset=utf-8")
        headers = [kind, (b"content-length", b"%d" % len(text))]
        self._transport.write(head(status, headers, keep_alive=False) + text)

    def _close(self) -> None:
        """Close once the response is sent; before, wait for the rest of an unread request.

        Otherwise the system would reset the connection, and the client might not read the response.
        """
        self._set_timeout(LINGER_S)
        exchange = self._exchange
        unread = exchange is not None and not exchange.received
        if not unread:
            self._transport.close()
            return
        self._discards = True
        self.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _set_timeout(self, seconds: float) -> None:
        """Close the connection after *seconds*, unless the deadline is changed before."""
        self._deadline = when = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > when:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self._deadline == math.inf:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._expire)
        elif self._is_idle() and not self._transport.is_closing():
            self._close()
        else:
            self._transport.abort()


def _address(pair: Any) -> tuple[str, int] | None:
    return (str(pair[0]), int(pair[1])) if isinstance(pair, tuple) else None
