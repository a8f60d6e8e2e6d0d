"""A bound on concurrent work whose waiters go by priority, and tenant by tenant."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from samserve.context import Priority, RequestContext

MAX_SKIPS = 8


# The turns of a tenant's waiters and their weights, in order of arrival.
_Waiters = deque[tuple[asyncio.Future[None], int]]


class FairSemaphore:
    """Lets holders of *permits* in at a time; the rest wait by priority, then in turns of tenants.

    A holder takes one permit, or as many as its weight: bytes, for instance.  Tenants are served
    round robin, and the waiters of one tenant in order of arrival.  So, within its priority, the
    first waiter of a tenant waits for one piece of work of each other tenant at most, and for those
    that are under way, however many waiters others have.  A priority that was skipped `MAX_SKIPS`
    times for a higher one goes next, and a light waiter does not pass a heavy one whose turn it is,
    so that nothing waits for ever.
    """

    def __init__(self, permits: int) -> None:
        self._permits = self._free = permits
        self._count = 0
        # Waiters by tenant, the tenant whose turn it is first; cancelled ones stay until then.
        self._waiting: dict[Priority, OrderedDict[str, _Waiters]] = {
            priority: OrderedDict() for priority in sorted(Priority)
        }
        # How often the waiters of each priority have been skipped.
        self._skips = dict.fromkeys(self._waiting, 0)

    @property
    def waiting(self) -> int:
        """How many wait for a permit."""
        return self._count

    @asynccontextmanager
    async def hold(self, context: RequestContext) -> AsyncIterator[None]:
        """Wait for a permit, which is the stage ``queue``, and keep it while the block runs."""
        if not self._take(1):
            with context.clock.stage("queue"):
                await self._wait(context.tenant, context.priority, 1)
        try:
            yield
        finally:
            self._release(1)

    @asynccontextmanager
    async def hold_for(
        self, tenant: str, priority: Priority = Priority.INTERACTIVE, weight: int = 1
    ) -> AsyncIterator[None]:
        """See `hold`; for what belongs to no call, or has a stage of its own.

        A *weight* over all permits takes all of them, so that its holder is alone.
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
        turn = asyncio.get_running_loop().create_future()
        self._waiting[priority].setdefault(tenant, deque()).append((turn, weight))
        self._count += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._count -= 1
                self._wake()  # others may fit where this one did not
            else:
                # The permits were handed over in the same turn of the loop.
                self._release(weight)
            raise

    def _release(self, weight: int) -> None:
        self._free += weight
        if self._count:
            self._wake()

    def _wake(self) -> None:
        """Hand free permits to the waiters whose turn it is, until the next one does not fit."""
        while self._free and (found := self._first()) is not None:
            priority, tenant, waiters = found
            turn, weight = waiters[0]
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
            turn.set_result(None)

    def _first(self) -> tuple[Priority, str, _Waiters] | None:
        """Find the priority and the tenant whose turn it is, and the waiters of that tenant."""
        # A stable sort: those skipped too often first, each group by priority.
        for priority in sorted(self._waiting, key=lambda each: self._skips[each] < MAX_SKIPS):
            found = _first_tenant(self._waiting[priority])
            if found is not None:
                return priority, *found
        return None

    def _count_skips(self, served: Priority) -> None:
        for priority, tenants in self._waiting.items():
            waits = priority is not served and bool(tenants)
            self._skips[priority] = self._skips[priority] + 1 if waits else 0


def _first_tenant(tenants: OrderedDict[str, _Waiters]) -> tuple[str, _Waiters] | None:
    """Drop cancelled waiters until one comes first that still waits; its tenant keeps its turn."""
    while tenants:
        tenant, waiters = next(iter(tenants.items()))
        while waiters and waiters[0][0].done():
            waiters.popleft()
        if waiters:
            return tenant, waiters
        del tenants[tenant]
    return None
