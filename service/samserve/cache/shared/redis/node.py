"""The client of one node: limited connections, a timeout per batch, and a circuit breaker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, aclosing, suppress

import structlog

from samserve.cache.shared.base import Batch, Command, Reply
from samserve.cache.shared.redis.circuit_breaker import CircuitBreaker
from samserve.cache.shared.redis.connection import (
    AuthenticationFailed,
    Connection,
    ConnectionFailed,
)
from samserve.cache.shared.redis.credentials import Credentials, NodeCredentials
from samserve.cache.shared.redis.slots import Address
from samserve.scheduling.fair_semaphore import FairSemaphore
from samserve.settings import SharedCacheSettings
from samserve.system.addresses import join
from samserve.telemetry.metrics.cache import CacheMetrics

# Without a message for this long, a subscription sends a PING.
_PING_AFTER_S = 2.0
# Logged per outage, because each failure could have another text.
_MAX_REASONS = 4
_TIMEOUT = "no response in time"


class NodeUnavailable(Exception):
    """The node did not respond; the text is for the log."""


class Node:
    """Sends commands to one address; used from one event loop.

    ``address`` is host and port as text.  *newest* returns the credentials and is called for each
    use: after a change that the node accepts, the next command closes all idle connections that
    were opened with older credentials.
    """

    def __init__(
        self,
        address: Address,
        newest: Callable[[], Credentials],
        settings: SharedCacheSettings,
        metrics: CacheMetrics,
    ) -> None:
        self.location = address
        self.address = join(*address)
        self.breaker = CircuitBreaker(settings.circuit_breaker_failures)
        self._credentials = NodeCredentials(newest)
        self._settings = settings
        self._log = structlog.get_logger("samserve.cache")
        self._logged: set[str] = set()
        self._seconds = metrics.node_seconds.labels(self.address)
        self._budget = FairSemaphore(settings.max_in_flight_bytes)
        self._permits = FairSemaphore(settings.max_connections_per_node)
        self._slow_permits = FairSemaphore(max(1, settings.max_connections_per_node // 2))
        # Number of responses, to distinguish a slow node from one that does not respond at all.
        self._responses = 0
        self._idle: list[tuple[Credentials, Connection]] = []
        self._closed = False

    async def run(self, batch: Batch) -> list[Reply]:
        """Send commands and return their replies, including `ErrorReply` and `Redirect`.

        Batches with ``extra_s`` use at most half of the connections.  Waits for a connection,
        fairly between tenants, then at most ``cache.shared.timeout_s`` plus ``extra_s``.  Raises
        `NodeUnavailable`, at once while the circuit is open.
        """
        self._check_circuit()
        tenant = batch.tenant
        async with AsyncExitStack() as stack:
            if batch.extra_s:
                await stack.enter_async_context(self._slow_permits.acquire_for(tenant))
            await stack.enter_async_context(self._permits.acquire_for(tenant))
            await stack.enter_async_context(self._budget.acquire_for(tenant, weight=batch.nbytes))
            # The circuit may have opened while this batch waited.
            self._check_circuit()
            return await self._run_in_time(batch)

    async def _run_in_time(self, batch: Batch) -> list[Reply]:
        responses = self._responses
        try:
            async with asyncio.timeout(self._settings.timeout_s + batch.extra_s):
                return await self._exchange(batch)
        except TimeoutError:
            # A node that has responded to other batches is slow, but available.
            if self._responses != responses:
                raise NodeUnavailable(f"{self.address}: {_TIMEOUT}") from None
            raise self._record_failure(_TIMEOUT, at_once=True) from None
        except ConnectionFailed as error:
            raise self._record_failure(str(error)) from None

    def _check_circuit(self) -> None:
        if self.breaker.open:
            raise NodeUnavailable(f"{self.address}: circuit open, the node does not respond")

    async def probe(self) -> str:
        """Check whether the node responds, even if the circuit is open; a response closes it.

        Returns the reason why it does not respond, empty if it does.
        """
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await self._exchange_on(*await self._open_connection(), [("PING",)])
        except (TimeoutError, ConnectionFailed) as error:
            reason = str(error) or _TIMEOUT
            self._record_failure(reason)
            return reason
        self._record_success()
        return ""

    async def subscribe(
        self,
        channel: bytes,
        on_subscribed: Callable[[], None],
        on_message: Callable[[bytes], None],
    ) -> str:
        """Call *on_message* with each message on *channel*; return why the subscription ended.

        *on_subscribed* is called once the subscription is active.
        """
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                credentials, connection = await self._open_connection()
            async with aclosing(connection):
                await connection.send("SUBSCRIBE", channel)
                await self._receive(credentials, connection, on_subscribed, on_message)
        except (TimeoutError, ConnectionFailed) as error:
            return f"{self.address}: {str(error) or _TIMEOUT}"
        return f"{self.address}: the credentials have changed, or the node has left the cluster"

    async def _receive(
        self,
        credentials: Credentials,
        connection: Connection,
        on_subscribed: Callable[[], None],
        on_message: Callable[[bytes], None],
    ) -> None:
        pinged = False
        while self._credentials.is_current(credentials) and not self._closed:
            message = await connection.message(_PING_AFTER_S)
            if message is None and pinged:
                raise ConnectionFailed("no response to PING")
            pinged = message is None
            match message:
                case None:
                    await connection.send("PING")
                case (b"message", text):
                    on_message(text)
                case (b"subscribe", _):
                    on_subscribed()

    async def aclose(self) -> None:
        """Close idle connections now, and the others after their current use."""
        self._closed = True
        idle, self._idle = self._idle, []
        for _, connection in idle:
            await connection.aclose()

    async def _exchange(self, batch: Batch) -> list[Reply]:
        started = time.monotonic()
        fresh = batch.fresh or self._credentials.retry_due()
        replies = None if fresh else await self._exchange_on_idle(batch.commands)
        if replies is None:
            replies = await self._exchange_on(*await self._open_connection(), batch.commands)
        self._record_success()
        self._seconds.observe(time.monotonic() - started)
        return replies

    async def _exchange_on_idle(self, commands: Sequence[Command]) -> list[Reply] | None:
        """Return None if no idle connection works: the node may have closed them."""
        await self._close_outdated()
        while self._idle:
            with suppress(ConnectionFailed):
                return await self._exchange_on(*self._idle.pop(), commands)
        return None

    async def _close_outdated(self) -> None:
        """Close all idle connections that were opened with older credentials."""
        outdated = [each for each in self._idle if not self._credentials.is_current(each[0])]
        self._idle = [each for each in self._idle if each not in outdated]
        for _, connection in outdated:
            await connection.aclose()

    async def _exchange_on(
        self, credentials: Credentials, connection: Connection, commands: Sequence[Command]
    ) -> list[Reply]:
        """Exchange commands; keep the connection for other calls if that succeeds."""
        try:
            replies = await connection.exchange(commands)
        except BaseException:
            # A command may be sent in part, or a reply unread.
            await connection.aclose()
            raise
        if self._closed:
            await connection.aclose()
        else:
            self._idle.append((credentials, connection))
        return replies

    async def _open_connection(self) -> tuple[Credentials, Connection]:
        newest = self._credentials.newest()
        try:
            connection = await self._connect(newest)
        except AuthenticationFailed as error:
            first_rejection = self._credentials.is_current(newest)
            previous = self._credentials.reject(newest)
            if previous is None:
                raise
            if first_rejection:
                reason = str(error)
                self._log.warning(
                    "previous password still in use", node=self.address, reason=reason
                )
            return previous, await self._connect(previous)
        self._credentials.accept(newest)
        return newest, connection

    async def _connect(self, credentials: Credentials) -> Connection:
        return await Connection.open(self.location, credentials, self._settings.connect_timeout_s)

    def _record_success(self) -> None:
        self._responses += 1
        self.breaker.record_success()
        self._logged.clear()

    def _record_failure(self, reason: str, *, at_once: bool = False) -> NodeUnavailable:
        """Count a failure; log its reason while the circuit is open."""
        self.breaker.record_failure(at_once=at_once)
        if self.breaker.open:
            self._log_reason(reason)
        return NodeUnavailable(f"{self.address}: {reason}")

    def _log_reason(self, reason: str) -> None:
        """Log each reason once per outage."""
        if reason not in self._logged and len(self._logged) < _MAX_REASONS:
            self._logged.add(reason)
            self._log.warning("circuit opened", node=self.address, reason=reason)
