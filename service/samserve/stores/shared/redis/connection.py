"""Connections to a node.  The only module that knows redis-py and its errors."""

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

from samserve.stores.shared.base import Command, Refused, Reply
from samserve.stores.shared.redis.credentials import Credentials
from samserve.stores.shared.redis.slots import Address

# What redis-py raises when a node is gone, refuses us or answers nonsense.
_NONSENSE = (ValueError, TypeError, LookupError, AttributeError)
_FAILURES = (RedisError, OSError, EOFError, asyncio.IncompleteReadError, *_NONSENSE)
# A slot without an owner, or one that is about to change.
_NOT_NOW = (ClusterDownError, ReadOnlyError, TryAgainError)


class ConnectionFailed(Exception):
    """The node does not answer, or not as it should; the text is one line without secrets."""


class WrongPassword(ConnectionFailed):
    """The node does not know the credentials."""


@dataclass(frozen=True, slots=True)
class Redirected:
    """Another node owns the slot; with *ask* it has only those keys that were moved already."""

    address: Address
    ask: bool


def slot_of(key: bytes) -> int:
    """Return the hash slot of a key, 0 to 16383."""
    return key_slot(key)


class Connection:
    """An open connection; of no use after `ConnectionFailed` or a cancelled call."""

    def __init__(self, connection: redis.Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, address: Address, credentials: Credentials, connect_s: float) -> Self:
        """Connect and authenticate.  Raises `ConnectionFailed`, of it `WrongPassword`."""
        connection = cls(_describe(address, credentials, connect_s))
        try:
            with _failures():
                await connection._connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.aclose()
            raise
        return connection

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        """Send *commands* and return their replies, `Refused` and `Redirected` among them."""
        packed = self._connection.pack_commands(commands)
        with _failures():
            await self._connection.send_packed_command(packed, check_health=False)
            return [await self._reply() for _ in commands]

    async def send(self, *command: bytes | str) -> None:
        """Send a command whose replies `message` returns."""
        with _failures():
            await self._connection.send_command(*command)

    async def message(self, timeout_s: float) -> tuple[bytes, Reply] | None:
        """Return the kind of the next message and what it holds, None if none comes in time."""
        with _failures():
            parts = await self._connection.read_response(disable_decoding=True, timeout=timeout_s)
            return None if parts is None else (parts[0], parts[-1])

    async def aclose(self) -> None:
        """Close at once, without waiting for the other side."""
        await self._connection.disconnect(nowait=True)

    async def _reply(self) -> Reply:
        try:
            return await self._connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return _translated(error)


class _TlsConnection(redis.SSLConnection):
    """A connection with a context that was made from checked contents."""

    def __init__(self, *, context: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ssl_context.context = context


def _describe(address: Address, credentials: Credentials, connect_s: float) -> redis.Connection:
    """Return a connection that is not open yet."""
    host, port = address
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "username": credentials.username or None,
        "password": credentials.password or None,
        "socket_connect_timeout": connect_s,
        # The caller has one deadline around everything.
        "socket_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "client_name": "samserve",
        # Otherwise it sends its own name too, which users of few rights may not.
        "driver_info": None,
    }
    if credentials.tls is None:
        return redis.Connection(**options)
    return _TlsConnection(context=credentials.tls, **options)


@contextmanager
def _failures() -> Iterator[None]:
    """Translate what redis-py raises."""
    try:
        yield
    except AuthenticationError as error:
        raise WrongPassword(_reason(error)) from None
    except _FAILURES as error:
        raise ConnectionFailed(_reason(error)) from None


def _translated(error: ResponseError) -> Refused | Redirected:
    text = str(error)
    if isinstance(error, AskError):  # `MovedError` is one, too
        return Redirected((error.host, error.port), ask=not isinstance(error, MovedError))
    if isinstance(error, NoPermissionError):
        return Refused(text, "denied")
    # A script that may not write has texts of its own.
    if isinstance(error, _NOT_NOW) or "cluster is down" in text:
        return Refused(text, "not now")
    if isinstance(error, OutOfMemoryError) or "OOM" in text:
        return Refused(text, "full")
    return Refused(text)


def _reason(error: BaseException) -> str:
    # A server repeats what it does not understand, and that may be a password.
    silent = isinstance(error, ResponseError) and not isinstance(error, NoPermissionError)
    if silent or isinstance(error, (InvalidResponse, *_NONSENSE)):
        return f"{type(error).__name__}: it does not answer as a server of Redis or Valkey does"
    return " ".join(f"{type(error).__name__}: {error}".split())
