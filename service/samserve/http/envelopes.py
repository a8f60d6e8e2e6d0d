"""Messages in a stream: one byte of flags, four of length, and the message."""

from __future__ import annotations

from samserve.errors import InvalidRequest
from samserve.http.request import HttpRequest, too_large

PREFIX_BYTES = 5
COMPRESSED = 0x01


def envelope(data: bytes, flags: int = 0) -> bytes:
    """Return a message with its prefix."""
    return b"%c%b%b" % (flags, len(data).to_bytes(4, "big"), data)


def only_message(body: bytes) -> bytes:
    """Return the one message of a body.  Raises `InvalidRequest` unless there is exactly one."""
    if not body:
        raise InvalidRequest("request", "is missing")
    if len(body) < PREFIX_BYTES:
        raise InvalidRequest("request", "is incomplete: it ends within the prefix of its message")
    length = int.from_bytes(body[1:PREFIX_BYTES], "big")
    _check_flags(body[0])
    if len(body) < PREFIX_BYTES + length:
        raise InvalidRequest("request", "is incomplete: its message is shorter than its length")
    if len(body) > PREFIX_BYTES + length:
        raise InvalidRequest("request", "must be one message")
    return body[PREFIX_BYTES:]


class Envelopes:
    """The messages of a body, as they arrive."""

    def __init__(self, request: HttpRequest, limit: int) -> None:
        self._request = request
        self._limit = limit
        self._buffer = bytearray()
        self._more = True

    async def next(self) -> bytes | None:
        """Wait for the next message; None at the end.  Raises `InvalidRequest`."""
        if not await self._fill(PREFIX_BYTES):
            return None
        _check_flags(self._buffer[0])
        length = int.from_bytes(self._buffer[1:PREFIX_BYTES], "big")
        if length > self._limit:
            raise too_large(self._limit)
        if not await self._fill(PREFIX_BYTES + length):
            raise InvalidRequest("request", "is incomplete: its last message is shorter than said")
        data = bytes(self._buffer[PREFIX_BYTES : PREFIX_BYTES + length])
        del self._buffer[: PREFIX_BYTES + length]
        return data

    async def _fill(self, nbytes: int) -> bool:
        """Buffer so many bytes; return whether the body has them."""
        while len(self._buffer) < nbytes and self._more:
            part, self._more = await self._request.read_some()
            self._buffer += part
        if self._buffer and len(self._buffer) < PREFIX_BYTES:
            raise InvalidRequest("request", "is incomplete: it ends within a prefix")
        return len(self._buffer) >= nbytes


def _check_flags(flags: int) -> None:
    if flags & COMPRESSED:
        raise InvalidRequest("request", "is compressed; only messages as they are are accepted")
    if flags:
        raise InvalidRequest("request", f"has unknown flags {flags:#04x} before a message")
