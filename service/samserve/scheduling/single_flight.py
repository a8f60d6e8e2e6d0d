"""Single flight: concurrent callers with the same key share one task and its result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True, eq=False)
class _Flight(Generic[V]):
    result: asyncio.Future[V]
    released: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    waiters: int = 0


class SingleFlight(Generic[K, V]):
    """Runs one context manager per key, however many callers join it.

    The manager is entered once, in its own task.  All callers that joined get the value that it
    yields, and it is exited when the last of them has left.  The cancellation or failure of a
    caller does not affect the others; work without any caller left is cancelled.  Work that has
    produced its value cannot be joined any more, because the value may be outdated.
    """

    def __init__(self) -> None:
        # Flights that may still be joined, by key; used on the event loop only.
        self._flights: dict[K, _Flight[V]] = {}

    @asynccontextmanager
    async def join(
        self, key: K, open_work: Callable[[], AbstractAsyncContextManager[V]]
    ) -> AsyncIterator[tuple[V, bool]]:
        """Yield the shared value and whether this caller started the work.

        An exception of the work is raised for every caller that waits for it.
        """
        flight = self._flights.get(key)
        started = flight is None
        if flight is None:
            flight = self._start(key, open_work)
        async with self._attached(key, flight) as value:
            yield value, started

    @asynccontextmanager
    async def join_existing(self, key: K) -> AsyncIterator[V]:
        """Yield the value of work in flight.  Raises ``KeyError`` if there is none."""
        async with self._attached(key, self._flights[key]) as value:
            yield value

    def in_flight(self, key: K) -> bool:
        """Return whether there is work that a caller would join."""
        return key in self._flights

    def detach(self, key: K) -> None:
        """Let no more callers join the work in flight; later ones start new work."""
        self._flights.pop(key, None)

    @asynccontextmanager
    async def _attached(self, key: K, flight: _Flight[V]) -> AsyncIterator[V]:
        flight.waiters += 1
        try:
            # The shield keeps one caller's cancellation from cancelling the shared future.
            yield await asyncio.shield(flight.result)
        finally:
            flight.waiters -= 1
            if flight.waiters == 0:
                self._retire(key, flight)

    def _start(self, key: K, open_work: Callable[[], AbstractAsyncContextManager[V]]) -> _Flight[V]:
        flight: _Flight[V] = _Flight(asyncio.get_running_loop().create_future())
        self._flights[key] = flight
        flight.task = asyncio.create_task(self._run(key, flight, open_work))
        # Retrieve the exception here: asyncio logs exceptions that no caller retrieves.
        flight.result.add_done_callback(lambda done: done.cancelled() or done.exception())
        return flight

    async def _run(
        self,
        key: K,
        flight: _Flight[V],
        open_work: Callable[[], AbstractAsyncContextManager[V]],
    ) -> None:
        try:
            async with open_work() as value:
                self._close(key, flight)
                flight.result.set_result(value)
                await flight.released.wait()
        except asyncio.CancelledError:
            flight.result.cancel()
            raise
        except Exception as error:
            self._close(key, flight)
            if flight.result.done():
                raise
            flight.result.set_exception(error)

    def _close(self, key: K, flight: _Flight[V]) -> None:
        """Let no more callers join."""
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _retire(self, key: K, flight: _Flight[V]) -> None:
        self._close(key, flight)
        if flight.result.done():
            flight.released.set()
        elif flight.task is not None:
            flight.task.cancel()
