"""Connections to a node.  The only module that uses redis-py and its errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    InvalidResponse,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from samserve.cache.shared.base import Command, ErrorReply, Reply
from samserve.cache.shared.redis.credentials import Credentials
from samserve.cache.shared.redis.slots import Address

# Errors of redis-py if a node is unavailable, rejects the connection or violates the protocol.
_PROTOCOL_ERRORS = (ValueError, TypeError, LookupError, AttributeError)
_FAILURES = (RedisError, OSError, EOFError, asyncio.IncompleteReadError, *_PROTOCOL_ERRORS)
# Bytes that are sent at a time, in a fraction of a millisecond.
_PORTION = 256 << 10
# A slot without an owner, or one that is being moved.
_TRY_AGAIN = (ClusterDownError, ReadOnlyError, TryAgainError)


class ConnectionFailed(Exception):
    """The node does not respond, or violates the protocol; the text is one line without secrets."""


class AuthenticationFailed(ConnectionFailed):
    """The node rejects the credentials."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """Another node owns the slot; with *ask* it has only the keys that were moved already."""

    address: Address
    ask: bool


def slot_of(key: bytes) -> int:
    """Return the hash slot of a key, 0 to 16383."""
    return key_slot(key)


class Connection:
    """An open connection; unusable after `ConnectionFailed` or a cancelled call."""

    def __init__(self, connection: redis.Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(
        cls, address: Address, credentials: Credentials, connect_timeout_s: float
    ) -> Self:
        """Connect and authenticate.  Raises `ConnectionFailed` or `AuthenticationFailed`."""
        connection = cls(_unopened(address, credentials, connect_timeout_s))
        try:
            with _translated_errors():
                await connection._connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.aclose()
            raise
        return connection

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        """Send *commands* and return their replies, including `ErrorReply` and `Redirect`."""
        packed = self._connection.pack_commands(commands)
        with _translated_errors():
            for portion in _portions(packed):
                await self._connection.send_packed_command(portion, check_health=False)
                # Otherwise the whole value would be copied and sent before other tasks run.
                await asyncio.sleep(0)
            return [await self._reply() for _ in commands]

    async def send(self, *command: bytes | str) -> None:
        """Send a command; `message` returns its replies."""
        with _translated_errors():
            await self._connection.send_command(*command)

    async def message(self, timeout_s: float) -> tuple[bytes, Reply] | None:
        """Return kind and content of the next message, None if none arrives in time."""
        with _translated_errors():
            parts = await self._connection.read_response(disable_decoding=True, timeout=timeout_s)
            return None if parts is None else (parts[0], parts[-1])

    async def aclose(self) -> None:
        """Close at once, without waiting for the server."""
        await self._connection.disconnect(nowait=True)

    async def _reply(self) -> Reply:
        try:
            return await self._connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return _translated(error)


def _portions(packed: Sequence[bytes]) -> Iterator[list[Any]]:
    """Divide packed commands into lists of bytes-like objects, of at most `_PORTION` bytes."""
    portion: list[Any] = []
    free = _PORTION
    for piece in (memoryview(each) for each in packed):
        for start in range(0, len(piece), _PORTION):
            part = piece[start : start + _PORTION]
            if len(part) > free:
                yield portion
                portion, free = [], _PORTION
            portion.append(part)
            free -= len(part)
    yield portion


class _TlsConnection(redis.SSLConnection):
    """A connection with a given TLS context."""

    def __init__(self, *, context: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ssl_context.context = context


def _unopened(
    address: Address, credentials: Credentials, connect_timeout_s: float
) -> redis.Connection:
    """Return a connection that is not open yet."""
    host, port = address
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "username": credentials.username or None,
        "password": credentials.password or None,
        "socket_connect_timeout": connect_timeout_s,
        # The caller has one timeout for everything.
        "socket_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "client_name": "samserve",
        # Otherwise redis-py sends its own name too, which needs more permissions.
        "driver_info": None,
    }
    if credentials.tls is None:
        return redis.Connection(**options)
    return _TlsConnection(context=credentials.tls, **options)


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Translate the errors of redis-py."""
    try:
        yield
    except AuthenticationError as error:
        raise AuthenticationFailed(_reason(error)) from None
    except _FAILURES as error:
        raise ConnectionFailed(_reason(error)) from None


def _translated(error: ResponseError) -> ErrorReply | Redirect:
    text = str(error)
    if isinstance(error, AskError):  # `MovedError` is a subclass
        return Redirect((error.host, error.port), ask=not isinstance(error, MovedError))
    if isinstance(error, NoPermissionError):
        return ErrorReply(text, "denied")
    # Errors in scripts have texts of their own.
    if isinstance(error, _TRY_AGAIN) or "cluster is down" in text:
        return ErrorReply(text, "try again")
    if isinstance(error, OutOfMemoryError) or "OOM" in text:
        return ErrorReply(text, "full")
    return ErrorReply(text)


def _reason(error: BaseException) -> str:
    # A server repeats a command that it does not know, and that may contain a password.
    unsafe = isinstance(error, ResponseError) and not isinstance(error, NoPermissionError)
    if unsafe or isinstance(error, (InvalidResponse, *_PROTOCOL_ERRORS)):
        return f"{type(error).__name__}: not a valid response of a Redis or Valkey server"
    return " ".join(f"{type(error).__name__}: {error}".split())
