"""A bound on concurrent work whose waiters go by priority, and tenant by tenant."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from samserve.context import Priority, RequestContext

_Waiters = deque[asyncio.Future[None]]


PATIENCE = 8


class FairGate:
    """Lets *permits* holders in at a time; the rest wait by priority, then in turns of tenants.

    Tenants are served round robin, and the waiters of one tenant in order of arrival.  So, within
    its priority, the first waiter of a tenant waits for one piece of work of each other tenant at
    most, and for those that are under way, however many waiters others have.  Who has been passed
    over `PATIENCE` times for a higher priority goes next, so that nothing waits for ever.
    """

    def __init__(self, permits: int) -> None:
        self._free = permits
        self._count = 0
        # Who waits, by tenant, the tenant whose turn it is first; cancelled ones stay until then.
        self._waiting: dict[Priority, OrderedDict[str, _Waiters]] = {
            priority: OrderedDict() for priority in sorted(Priority)
        }
        # How often the waiters of each priority have been passed over.
        self._passed_over = dict.fromkeys(self._waiting, 0)

    @property
    def waiting(self) -> int:
        """How many wait for a permit."""
        return self._count

    @asynccontextmanager
    async def hold(self, context: RequestContext) -> AsyncIterator[None]:
        """Wait for a permit, which is the stage ``queue``, and keep it while the block runs."""
        if not self._take():
            with context.clock.stage("queue"):
                await self._wait(context.tenant, context.priority)
        try:
            yield
        finally:
            self._release()

    @asynccontextmanager
    async def hold_for(
        self, tenant: str, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[None]:
        """See `hold`; for what belongs to no call, or has a stage of its own."""
        if not self._take():
            await self._wait(tenant, priority)
        try:
            yield
        finally:
            self._release()

    def _take(self) -> bool:
        if self._free == 0:
            return False
        self._free -= 1
        return True

    async def _wait(self, tenant: str, priority: Priority) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting[priority].setdefault(tenant, deque()).append(turn)
        self._count += 1
        try:
            await turn
        except asyncio.CancelledError:
            # The permit may have been handed over in the same turn of the loop.
            if turn.done() and not turn.cancelled():
                self._release()
            raise
        finally:
            self._count -= 1

    def _release(self) -> None:
        # A stable sort: those out of patience first, each group by priority.
        for priority in sorted(self._waiting, key=lambda each: self._passed_over[each] < PATIENCE):
            turn = _next_turn(self._waiting[priority])
            if turn is not None:
                self._note_turn_of(priority)
                turn.set_result(None)
                return
        self._free += 1

    def _note_turn_of(self, served: Priority) -> None:
        for priority, tenants in self._waiting.items():
            waits = priority is not served and bool(tenants)
            self._passed_over[priority] = self._passed_over[priority] + 1 if waits else 0


def _next_turn(tenants: OrderedDict[str, _Waiters]) -> asyncio.Future[None] | None:
    """Take out the waiter whose turn it is; its tenant goes to the end of the ring."""
    while tenants:
        tenant, waiters = tenants.popitem(last=False)
        turn = _first_that_waits(waiters)
        if waiters:
            tenants[tenant] = waiters
        if turn is not None:
            return turn
    return None


def _first_that_waits(waiters: _Waiters) -> asyncio.Future[None] | None:
    while waiters:
        turn = waiters.popleft()
        if not turn.done():
            return turn
    return None
