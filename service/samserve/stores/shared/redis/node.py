"""One node of the cluster: bounded connections, one deadline, and a breaker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NoReturn, TypeAlias

import structlog
from redis.asyncio import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    InvalidResponse,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from samserve.scheduling.byte_semaphore import ByteBudget
from samserve.scheduling.fair_semaphore import FairGate
from samserve.settings import CacheSettings
from samserve.stores.shared.redis.circuit_breaker import Breaker
from samserve.stores.shared.redis.credentials import Access, Entry
from samserve.system.addresses import join
from samserve.telemetry.metrics.store import CacheMetrics

Command: TypeAlias = tuple[bytes | str | int, ...]
Reply: TypeAlias = Any
"""What the node said: bytes, a number, a list of such, None, or a `ResponseError`."""

# Who says nothing for that long is asked whether it is there.
_SILENCE_S = 2.0
# What redis-py lets out when a node is gone, refuses us or talks nonsense.
_NONSENSE = (ValueError, TypeError, LookupError, AttributeError)
_FAILURES = (RedisError, OSError, EOFError, asyncio.IncompleteReadError, *_NONSENSE)
# Of one outage; a node could say something else each time.
_MOST_REASONS = 4


class NodeUnavailable(Exception):
    """The node gave no answer; the text is for the log."""


class _TlsConnection(SSLConnection):
    """A connection with a context that was made from checked contents."""

    def __init__(self, *, context: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ssl_context.context = context


class Node:
    """Sends commands to one address; used from one event loop.

    *access* is asked at each use: the first command after it has changed, if the node knows the
    newer credentials, closes all idle connections that were made with older ones.
    """

    def __init__(
        self,
        host: str,
        port: int,
        access: Callable[[], Access],
        settings: CacheSettings,
        metrics: CacheMetrics,
    ) -> None:
        self.host, self.port = host, port
        self.breaker = Breaker(settings.breaker_failures)
        self._entry = Entry(access)
        self._settings = settings
        self._log = structlog.get_logger("samserve.cache")
        self._said: set[str] = set()
        self._seconds = metrics.node_seconds.labels(self.address)
        self._budget = ByteBudget(settings.in_flight_bytes)
        self._places = FairGate(settings.connections)
        self._slow_places = FairGate(max(1, settings.connections // 2))
        # Counts, to tell a node that is slow from one that is not there.
        self._answered = 0
        self._idle: list[tuple[Access, Connection]] = []
        self._closed = False

    @property
    def address(self) -> str:
        """Host and port."""
        return join(self.host, self.port)

    async def run(
        self,
        commands: Sequence[Command],
        *,
        tenant: str = "",
        nbytes: int = 0,
        extra_s: float = 0.0,
        fresh: bool = False,
    ) -> list[Reply]:
        """Send *commands* over one connection and give their replies, errors among them.

        *nbytes* is what goes over the wire, about; *extra_s* is time that the node takes on
        purpose, which half of the connections are kept from.  A *fresh* one is opened for them,
        where an idle one would do.  Waits for the turn of *tenant*, then
        ``cache.timeout_s`` at most.  Raises `NodeUnavailable`, at once while the breaker is open.
        """
        self._check_breaker()
        async with AsyncExitStack() as held:
            if extra_s:
                await held.enter_async_context(self._slow_places.hold_for(tenant))
            await held.enter_async_context(self._places.hold_for(tenant))
            await held.enter_async_context(self._budget.hold(nbytes))
            # Those before may have waited in vain.
            self._check_breaker()
            answered = self._answered
            try:
                async with asyncio.timeout(self._settings.timeout_s + extra_s):
                    return await self._exchange(commands, fresh=fresh)
            except TimeoutError as error:
                # A node that answers others is slow, or we are; either way it is there.
                if self._answered != answered:
                    raise NodeUnavailable(f"{self.address}: {_reason(error)}") from None
                raise self._failed(_reason(error), surely=True) from None
            except _FAILURES as error:
                raise self._failed(_reason(error)) from None

    def _check_breaker(self) -> None:
        if self.breaker.open:
            raise NodeUnavailable(f"{self.address}: left alone since it does not answer")

    async def probe(self) -> None:
        """Ask a node whose breaker is open whether it answers again; closes the breaker then."""
        try:
            async with asyncio.timeout(self._settings.timeout_s), self._fresh() as connection:
                await _exchange(connection, [("PING",)])
        except (TimeoutError, *_FAILURES) as error:
            self._failed(_reason(error))
            return
        self._succeeded()

    async def listen(
        self, channel: bytes, begun: Callable[[], None], heard: Callable[[bytes], None]
    ) -> NoReturn:
        """Hand on what is published on *channel* for as long as the node answers and belongs.

        *begun* is called once nothing is missed any more.  Raises `NodeUnavailable`.
        """
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                access, connection = await self._opened()
        except (TimeoutError, *_FAILURES) as error:
            raise NodeUnavailable(f"{self.address}: {_reason(error)}") from None
        try:
            await connection.send_command("SUBSCRIBE", channel)
            asked = False
            while self._entry.holds(access) and not self._closed:
                message = await connection.read_response(disable_decoding=True, timeout=_SILENCE_S)
                if message is None and asked:
                    raise NodeUnavailable(f"{self.address}: silent")
                asked = message is None
                if asked:
                    await connection.send_command("PING")
                elif message[0] == b"message":
                    heard(message[2])
                elif message[0] == b"subscribe":
                    begun()
            raise NodeUnavailable(f"{self.address}: newer credentials, or no member any more")
        except (TimeoutError, *_FAILURES) as error:
            raise NodeUnavailable(f"{self.address}: {_reason(error)}") from None
        finally:
            await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close idle connections now, and others when they are not used any more."""
        self._closed = True
        idle, self._idle = self._idle, []
        for _, connection in idle:
            await connection.disconnect(nowait=True)

    async def _exchange(self, commands: Sequence[Command], *, fresh: bool) -> list[Reply]:
        started = time.monotonic()
        fresh = fresh or self._entry.to_be_tried()
        replies = None if fresh else await self._on_idle_connection(commands)
        if replies is None:
            async with self._fresh() as connection:
                replies = await _exchange(connection, commands)
        self._succeeded()
        self._seconds.observe(time.monotonic() - started)
        return replies

    async def _on_idle_connection(self, commands: Sequence[Command]) -> list[Reply] | None:
        """Give None if there is none that works: the node may have closed it meanwhile."""
        await self._drop_old()
        while self._idle:
            access, connection = self._idle.pop()
            try:
                async with self._kept(access, connection):
                    return await _exchange(connection, commands)
            except _FAILURES:
                continue
        return None

    async def _drop_old(self) -> None:
        """Close what was opened with older credentials, also below what is used first."""
        old = [connection for access, connection in self._idle if not self._entry.holds(access)]
        self._idle = [each for each in self._idle if self._entry.holds(each[0])]
        for connection in old:
            await connection.disconnect(nowait=True)

    @asynccontextmanager
    async def _fresh(self) -> AsyncIterator[Connection]:
        access, connection = await self._opened()
        async with self._kept(access, connection):
            yield connection

    async def _opened(self) -> tuple[Access, Connection]:
        newest = self._entry.newest()
        try:
            connection = await self._open(newest)
        except AuthenticationError as error:
            new = self._entry.holds(newest)
            before = self._entry.refuse(newest)
            if before is None:
                raise
            if new:
                reason = _reason(error)
                self._log.warning("old password still used", node=self.address, reason=reason)
            return before, await self._open(before)
        self._entry.accept(newest)
        return newest, connection

    async def _open(self, access: Access) -> Connection:
        connection = self._connection(access)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    @asynccontextmanager
    async def _kept(self, access: Access, connection: Connection) -> AsyncIterator[None]:
        """Keep the connection for others after the block, unless the block failed."""
        try:
            yield
        except BaseException:
            # It may hold half a command, or a reply that nobody reads.
            await connection.disconnect(nowait=True)
            raise
        if self._closed:
            await connection.disconnect(nowait=True)
        else:
            self._idle.append((access, connection))

    def _succeeded(self) -> None:
        self._answered += 1
        self.breaker.succeeded()
        self._said.clear()

    def _failed(self, reason: str, *, surely: bool = False) -> NodeUnavailable:
        """Count a failure; log why, as soon as the node is left alone for it."""
        self.breaker.failed(surely=surely)
        if self.breaker.open:
            self._say(reason)
        return NodeUnavailable(f"{self.address}: {reason}")

    def _say(self, reason: str) -> None:
        """Log what is new."""
        if reason not in self._said and len(self._said) < _MOST_REASONS:
            self._said.add(reason)
            self._log.warning("node left alone", node=self.address, reason=reason)

    def _connection(self, access: Access) -> Connection:
        options = self._options(access)
        if access.tls is None:
            return Connection(**options)
        return _TlsConnection(context=access.tls, **options)

    def _options(self, access: Access) -> dict[str, Any]:
        return {
            "host": self.host,
            "port": self.port,
            "username": access.username or None,
            "password": access.password or None,
            "socket_connect_timeout": self._settings.connect_s,
            # One deadline is around everything.
            "socket_timeout": None,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            "client_name": "samserve",
            # Otherwise it tells its own name too, which users of few rights may not.
            "driver_info": None,
        }


async def _exchange(connection: Connection, commands: Sequence[Command]) -> list[Reply]:
    await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    return [await _reply(connection) for _ in commands]


async def _reply(connection: Connection) -> Reply:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


def _reason(error: BaseException) -> str:
    """Give one line for the log."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    # A server repeats what it does not understand, and that may be a password.
    silent = isinstance(error, ResponseError) and not isinstance(error, NoPermissionError)
    if silent or isinstance(error, (InvalidResponse, *_NONSENSE)):
        return f"{type(error).__name__}: it does not answer as a server of Redis or Valkey does"
    return " ".join(f"{type(error).__name__}: {error}".split())
