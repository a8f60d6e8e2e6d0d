"""A semaphore that serves its waiters by priority and fairly between tenants."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from samserve.context import Priority, RequestContext

MAX_SKIPS = 8

# The futures of a tenant's waiters and their weights, in order of arrival.
_Waiters = deque[tuple[asyncio.Future[None], int]]


class FairSemaphore:
    """A number of *permits*; waiters are served by priority, then round robin between tenants.

    A holder has one permit, or as many as its weight (bytes, for instance).  The waiters of one
    tenant are served in order of arrival.  So, within its priority, the first waiter of a tenant
    waits for at most one holder of each other tenant, and for the current holders, however many
    waiters other tenants have.  A priority that was skipped `MAX_SKIPS` times for a higher one is
    served next, and a light waiter does not overtake a heavy one, so that no waiter starves.
    """

    def __init__(self, permits: int) -> None:
        self._permits = self._free = permits
        self._count = 0
        # Waiters by tenant, in the order of service; cancelled waiters stay until they are first.
        self._waiting: dict[Priority, OrderedDict[str, _Waiters]] = {
            priority: OrderedDict() for priority in sorted(Priority)
        }
        # How often the waiters of each priority have been skipped.
        self._skips = dict.fromkeys(self._waiting, 0)

    @property
    def waiting(self) -> int:
        """Number of waiters."""
        return self._count

    @asynccontextmanager
    async def acquire(self, context: RequestContext) -> AsyncIterator[None]:
        """Wait for a permit, in the stage ``queue``, and keep it while the block runs."""
        if not self._take(1):
            with context.clock.stage("queue"):
                await self._wait(context.tenant, context.priority, 1)
        try:
            yield
        finally:
            self._release(1)

    @asynccontextmanager
    async def acquire_for(
        self, tenant: str, priority: Priority = Priority.INTERACTIVE, weight: int = 1
    ) -> AsyncIterator[None]:
        """See `acquire`; for work that belongs to no call, or has its own stage.

        A *weight* above the number of permits takes all of them, so that its holder is alone.
        """
        weight = min(weight, self._permits)
        if not self._take(weight):
            await self._wait(tenant, priority, weight)
        try:
            yield
        finally:
            self._release(weight)

    def _take(self, weight: int) -> bool:
        if self._count or weight > self._free:
            return False
        self._free -= weight
        return True

    async def _wait(self, tenant: str, priority: Priority, weight: int) -> None:
        granted = asyncio.get_running_loop().create_future()
        self._waiting[priority].setdefault(tenant, deque()).append((granted, weight))
        self._count += 1
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._count -= 1
                self._wake()  # the next waiter may have a lower weight
            else:
                # The permits were granted in the same iteration of the event loop.
                self._release(weight)
            raise

    def _release(self, weight: int) -> None:
        self._free += weight
        if self._count:
            self._wake()

    def _wake(self) -> None:
        """Grant free permits to the next waiters, until there are too few for the next one."""
        while self._free and (found := self._first()) is not None:
            priority, tenant, waiters = found
            granted, weight = waiters[0]
            if weight > self._free:
                return
            waiters.popleft()
            tenants = self._waiting[priority]
            if waiters:
                tenants.move_to_end(tenant)
            else:
                del tenants[tenant]
            self._count_skips(priority)
            self._count -= 1
            self._free -= weight
            granted.set_result(None)

    def _first(self) -> tuple[Priority, str, _Waiters] | None:
        """Return the priority and tenant that are next, and the waiters of that tenant."""
        # A stable sort: priorities skipped too often come first, each group by priority.
        for priority in sorted(self._waiting, key=lambda each: self._skips[each] < MAX_SKIPS):
            found = _first_tenant(self._waiting[priority])
            if found is not None:
                return priority, *found
        return None

    def _count_skips(self, served: Priority) -> None:
        for priority, tenants in self._waiting.items():
            skipped = priority is not served and bool(tenants)
            self._skips[priority] = self._skips[priority] + 1 if skipped else 0


def _first_tenant(tenants: OrderedDict[str, _Waiters]) -> tuple[str, _Waiters] | None:
    """Return the first tenant with a waiter that is not cancelled; remove cancelled ones before."""
    while tenants:
        tenant, waiters = next(iter(tenants.items()))
        while waiters and waiters[0][0].done():
            waiters.popleft()
        if waiters:
            return tenant, waiters
        del tenants[tenant]
    return None
