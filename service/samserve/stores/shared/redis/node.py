"""One node of the cluster: bounded connections, one deadline, and a circuit breaker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, aclosing, suppress

import structlog

from samserve.scheduling.fair_semaphore import FairSemaphore
from samserve.settings import CacheSettings
from samserve.stores.shared.base import Batch, Command, Reply
from samserve.stores.shared.redis.circuit_breaker import CircuitBreaker
from samserve.stores.shared.redis.connection import Connection, ConnectionFailed, WrongPassword
from samserve.stores.shared.redis.credentials import Credentials, NodeCredentials
from samserve.stores.shared.redis.slots import Address
from samserve.system.addresses import join
from samserve.telemetry.metrics.store import CacheMetrics

# A server that is silent for that long while it is listened to is sent a PING.
_SILENCE_S = 2.0
# Logged of one outage; a node could say something else each time.
_MAX_REASONS = 4
_LATE = "no answer in time"


class NodeUnavailable(Exception):
    """The node gave no answer; the text is for the log."""


class Node:
    """Sends commands to one address; used from one event loop.

    ``address`` is host and port as text.  *newest* returns the credentials, at each use: the first
    command after they have changed, if the node knows the newer ones, closes all idle connections
    that were made with older ones.
    """

    def __init__(
        self,
        address: Address,
        newest: Callable[[], Credentials],
        settings: CacheSettings,
        metrics: CacheMetrics,
    ) -> None:
        self.location = address
        self.address = join(*address)
        self.breaker = CircuitBreaker(settings.breaker_failures)
        self._credentials = NodeCredentials(newest)
        self._settings = settings
        self._log = structlog.get_logger("samserve.cache")
        self._logged: set[str] = set()
        self._seconds = metrics.node_seconds.labels(self.address)
        self._budget = FairSemaphore(settings.in_flight_bytes)
        self._permits = FairSemaphore(settings.connections)
        self._slow_permits = FairSemaphore(max(1, settings.connections // 2))
        # Counts, to tell a slow node from one that does not answer at all.
        self._answered = 0
        self._idle: list[tuple[Credentials, Connection]] = []
        self._closed = False

    async def run(self, batch: Batch) -> list[Reply]:
        """Send commands and return their replies, `Refused` and `Redirected` among them.

        Half of the connections are kept from batches with ``extra_s``.  Waits for the turn of the
        tenant, then ``cache.timeout_s`` and ``extra_s`` at most.  Raises `NodeUnavailable`, at once
        while the circuit is open.
        """
        self._check_circuit()
        tenant = batch.tenant
        async with AsyncExitStack() as stack:
            if batch.extra_s:
                await stack.enter_async_context(self._slow_permits.hold_for(tenant))
            await stack.enter_async_context(self._permits.hold_for(tenant))
            await stack.enter_async_context(self._budget.hold_for(tenant, weight=batch.nbytes))
            # Those before may have waited in vain.
            self._check_circuit()
            return await self._run_in_time(batch)

    async def _run_in_time(self, batch: Batch) -> list[Reply]:
        answered = self._answered
        try:
            async with asyncio.timeout(self._settings.timeout_s + batch.extra_s):
                return await self._exchange(batch)
        except TimeoutError:
            # A node that answers others is slow, or we are; either way it is there.
            if self._answered != answered:
                raise NodeUnavailable(f"{self.address}: {_LATE}") from None
            raise self._failed(_LATE, at_once=True) from None
        except ConnectionFailed as error:
            raise self._failed(str(error)) from None

    def _check_circuit(self) -> None:
        if self.breaker.open:
            raise NodeUnavailable(f"{self.address}: left alone since it does not answer")

    async def probe(self) -> str:
        """Ask the node whether it answers, also if the circuit is open; an answer closes it.

        Returns why it does not answer, empty if it does.
        """
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await self._exchange_on(*await self._authenticated(), [("PING",)])
        except (TimeoutError, ConnectionFailed) as error:
            reason = str(error) or _LATE
            self._failed(reason)
            return reason
        self._succeeded()
        return ""

    async def listen(
        self, channel: bytes, begun: Callable[[], None], heard: Callable[[bytes], None]
    ) -> str:
        """Call *heard* with what is published on *channel*; return why that has ended.

        *begun* is called once nothing is missed any more.
        """
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                credentials, connection = await self._authenticated()
            async with aclosing(connection):
                await connection.send("SUBSCRIBE", channel)
                await self._hear(credentials, connection, begun, heard)
        except (TimeoutError, ConnectionFailed) as error:
            return f"{self.address}: {str(error) or _LATE}"
        return f"{self.address}: newer credentials, or no member any more"

    async def _hear(
        self,
        credentials: Credentials,
        connection: Connection,
        begun: Callable[[], None],
        heard: Callable[[bytes], None],
    ) -> None:
        pinged = False
        while self._credentials.is_current(credentials) and not self._closed:
            message = await connection.message(_SILENCE_S)
            if message is None and pinged:
                raise ConnectionFailed("silent")
            pinged = message is None
            match message:
                case None:
                    await connection.send("PING")
                case (b"message", text):
                    heard(text)
                case (b"subscribe", _):
                    begun()

    async def aclose(self) -> None:
        """Close idle connections now, and others when they are not used any more."""
        self._closed = True
        idle, self._idle = self._idle, []
        for _, connection in idle:
            await connection.aclose()

    async def _exchange(self, batch: Batch) -> list[Reply]:
        started = time.monotonic()
        fresh = batch.fresh or self._credentials.retry_due()
        replies = None if fresh else await self._on_idle_connection(batch.commands)
        if replies is None:
            replies = await self._exchange_on(*await self._authenticated(), batch.commands)
        self._succeeded()
        self._seconds.observe(time.monotonic() - started)
        return replies

    async def _on_idle_connection(self, commands: Sequence[Command]) -> list[Reply] | None:
        """Return None if there is none that works: the node may have closed it meanwhile."""
        await self._close_outdated()
        while self._idle:
            with suppress(ConnectionFailed):
                return await self._exchange_on(*self._idle.pop(), commands)
        return None

    async def _close_outdated(self) -> None:
        """Close what was opened with older credentials, also below what is used first."""
        outdated = [each for each in self._idle if not self._credentials.is_current(each[0])]
        self._idle = [each for each in self._idle if each not in outdated]
        for _, connection in outdated:
            await connection.aclose()

    async def _exchange_on(
        self, credentials: Credentials, connection: Connection, commands: Sequence[Command]
    ) -> list[Reply]:
        """Exchange, and keep the connection for other calls unless that has failed."""
        try:
            replies = await connection.exchange(commands)
        except BaseException:
            # It may hold half a command, or a reply that is not read.
            await connection.aclose()
            raise
        if self._closed:
            await connection.aclose()
        else:
            self._idle.append((credentials, connection))
        return replies

    async def _authenticated(self) -> tuple[Credentials, Connection]:
        newest = self._credentials.newest()
        try:
            connection = await self._connect(newest)
        except WrongPassword as error:
            new = self._credentials.is_current(newest)
            before = self._credentials.refuse(newest)
            if before is None:
                raise
            if new:
                reason = str(error)
                self._log.warning("old password still used", node=self.address, reason=reason)
            return before, await self._connect(before)
        self._credentials.accept(newest)
        return newest, connection

    async def _connect(self, credentials: Credentials) -> Connection:
        return await Connection.open(self.location, credentials, self._settings.connect_s)

    def _succeeded(self) -> None:
        self._answered += 1
        self.breaker.succeeded()
        self._logged.clear()

    def _failed(self, reason: str, *, at_once: bool = False) -> NodeUnavailable:
        """Count a failure; log why, as soon as it has opened the circuit."""
        self.breaker.failed(at_once=at_once)
        if self.breaker.open:
            self._log_reason(reason)
        return NodeUnavailable(f"{self.address}: {reason}")

    def _log_reason(self, reason: str) -> None:
        """Log what was not logged yet of this outage."""
        if reason not in self._logged and len(self._logged) < _MAX_REASONS:
            self._logged.add(reason)
            self._log.warning("node left alone", node=self.address, reason=reason)
