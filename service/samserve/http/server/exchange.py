"""One request and its response: the `receive` and `send` of ASGI."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Protocol

Message = dict[str, Any]
Headers = list[tuple[bytes, bytes]]

HIGH_WATER_BYTES = 64 << 10
"""Bytes of a body that are buffered before the client has to wait."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_MAX_REASON = 300
# These have no body, and no header that describes one.
_BODILESS = (204, 304)


class Channel(Protocol):
    """The connection, as an exchange uses it."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    async def drain(self) -> None:
        """Wait until the client has accepted most of the bytes that were sent."""

    def resume_reading(self) -> None:
        """Receive more of the body."""

    def completed(self, exchange: Exchange) -> None:
        """Continue after the last byte of a response."""


class Exchange:
    """A request that is being received, and the response to it."""

    def __init__(
        self, channel: Channel, scope: Message, *, keep_alive: bool, expects_continue: bool
    ) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.received = False
        """Whether the whole request has been received."""
        self.started = False
        self.complete = False
        """Whether the whole response has been handed over to the connection."""
        self._channel = channel
        self._expects_continue = expects_continue
        self._body = bytearray()
        self._delivered = False
        self._waiting: asyncio.Future[None] | None = None
        self._status, self._headers, self._reason = 500, Headers(), ""
        self._chunked = False
        self._left: int | None = None

    def feed(self, data: bytes) -> bool:
        """Buffer a part of the body; return whether the client should wait."""
        self._body += data
        self._wake()
        return len(self._body) > HIGH_WATER_BYTES

    def end(self) -> None:
        """Note the end of the request."""
        self.received = True
        self._wake()

    async def receive(self) -> Message:
        """Wait for more of the body; without a body, until the task is cancelled."""
        if self._expects_continue and not self.started:
            self._expects_continue = False
            self._channel.write(CONTINUE)
        while not self._body and (self._delivered or not self.received):
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        body, self._body = bytes(self._body), bytearray()
        self._delivered = self.received
        # Also after the last part: the next request and a disconnection are noticed by reading.
        self._channel.resume_reading()
        return {"type": "http.request", "body": body, "more_body": not self.received}

    async def send(self, message: Message) -> None:
        """Send a part of the response, and wait until the client has accepted most of it.

        The status is sent with the first part of the body.
        """
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message["headers"])
            # Not of ASGI: the text of the status line.
            self._reason = message.get("reason", "")
            return
        if self.complete:
            raise RuntimeError("the response is complete already")
        body, more = message.get("body", b""), message.get("more_body", False)
        data = b"" if self.started else self._head(len(body), more=more)
        self.started = True
        self._channel.write(data + self._framed(body, more=more))
        if not more:
            self.complete = True
            self._channel.completed(self)
        await self._channel.drain()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _head(self, nbytes: int, *, more: bool) -> bytes:
        # The rest of a request that is not read would be taken for the next one.
        self.keep_alive = self.keep_alive and self.received
        headers = self._headers
        declared = next((value for name, value in headers if name == b"content-length"), None)
        has_body = self._status not in _BODILESS
        if declared is not None:
            self._left = int(declared)
        elif has_body and not more:
            self._left = nbytes
            headers.append((b"content-length", b"%d" % nbytes))
        elif has_body and self.scope["http_version"] == "1.1":
            self._chunked = True
            headers.append((b"transfer-encoding", b"chunked"))
        else:
            # The end of the connection is the end of the body.
            self.keep_alive = self.keep_alive and not has_body
        return head(self._status, headers, keep_alive=self.keep_alive, reason=self._reason)

    def _framed(self, body: bytes, *, more: bool) -> bytes:
        if self.scope["method"] == "HEAD":
            return b""
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return data if more else data + b"0\r\n\r\n"
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the body differs from its content-length")
        return body


def head(status: int, headers: Headers, *, keep_alive: bool, reason: str = "") -> bytes:
    """Return the status line, with *reason* in place of the usual text, and the headers."""
    lines = [
        _status_line(status) if not reason else b"HTTP/1.1 %d %b" % (status, _line(reason)),
        *(b"%b: %b" % header for header in headers),
        b"date: " + _date(),
    ]
    if not keep_alive:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _status_line(status: int) -> bytes:
    line = _STATUS_LINES.get(status)
    return line if line is not None else b"HTTP/1.1 %d " % status


def _line(text: str) -> bytes:
    """Return a text as it may stand in a line of the head."""
    shown = "".join(each if each.isprintable() else " " for each in text[:_MAX_REASON])
    return shown.encode("ascii", "replace")


_STATUS_LINES = {
    each.value: f"HTTP/1.1 {each.value} {each.phrase}".encode("ascii") for each in HTTPStatus
}


class _Clock:
    second = 0
    text = b""


def _date() -> bytes:
    """Return the time as a header has it, formatted once a second."""
    now = int(time.time())
    if now != _Clock.second:
        _Clock.second, _Clock.text = now, formatdate(now, usegmt=True).encode("ascii")
    return _Clock.text
