from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from samserve.context import Priority, RequestContext
from samserve.scheduling.fair_semaphore import MAX_SKIPS, FairSemaphore
from samserve.security.principal import Principal

BULK, INTERACTIVE = Priority.BULK, Priority.INTERACTIVE
Names = Iterable[tuple[str, Priority]]


async def run_loop(times: int = 5) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


class Holder:
    """Holds permits until ``go`` is set."""

    def __init__(self, semaphore: FairSemaphore, weight: int = 1, tenant: str = "a") -> None:
        self.acquired, self.go = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._hold(semaphore, weight, tenant))

    async def _hold(self, semaphore: FairSemaphore, weight: int, tenant: str) -> None:
        async with semaphore.acquire_for(tenant, weight=weight):
            self.acquired.set()
            await self.go.wait()


def acquired(*holders: Holder) -> list[bool]:
    return [holder.acquired.is_set() for holder in holders]


async def release_all(semaphore: FairSemaphore, *holders: Holder) -> None:
    """Release all permits; check that every permit is free afterwards."""
    for holder in holders:
        holder.go.set()
    await asyncio.wait([holder.task for holder in holders])
    async with asyncio.timeout(60), semaphore.acquire_for("a", weight=10**9):
        assert semaphore.waiting == 0


class Queue:
    """Calls that wait for one permit, and the order in which they acquired it."""

    def __init__(self) -> None:
        self.semaphore = FairSemaphore(1)
        self.order: list[str] = []
        self.waiting: list[asyncio.Task[None]] = []

    def add(self, tenant: str, priority: Priority = INTERACTIVE) -> asyncio.Task[None]:
        self.waiting.append(asyncio.create_task(self._call(tenant, priority)))
        return self.waiting[-1]

    async def _call(self, tenant: str, priority: Priority) -> None:
        async with self.semaphore.acquire(RequestContext(Principal(tenant), priority=priority)):
            self.order.append(tenant)
            await asyncio.sleep(0)

    async def served(self, calls: Names) -> list[str]:
        """Let calls wait while the permit is in use, then release it; return the order."""
        async with self.semaphore.acquire_for("first"):
            for tenant, priority in calls:
                self.add(tenant, priority)
            await asyncio.sleep(0)
        await asyncio.gather(*self.waiting)
        return self.order


async def test_waiters_are_served_by_priority_then_by_arrival() -> None:
    order = await Queue().served(
        [
            ("bulk 1", BULK),
            ("bulk 2", BULK),
            ("interactive 1", INTERACTIVE),
            ("interactive 2", INTERACTIVE),
        ]
    )

    assert order == ["interactive 1", "interactive 2", "bulk 1", "bulk 2"]


async def test_a_lower_priority_is_skipped_max_skips_times_at_most() -> None:
    order = await Queue().served([("bulk", BULK)] * 3 + [("interactive", INTERACTIVE)] * 40)

    bulk = [position for position, name in enumerate(order) if name == "bulk"]
    assert bulk == [MAX_SKIPS, 2 * MAX_SKIPS + 1, 3 * MAX_SKIPS + 2]


@pytest.mark.parametrize("storm", [1, 10, 1000])
async def test_tenants_are_served_round_robin(storm: int) -> None:
    tenants = ["a"] * storm + ["b"] * storm + ["c", "c"]
    order = await Queue().served((tenant, INTERACTIVE) for tenant in tenants)

    # At most one call of each other tenant is served before.
    assert order[:3] == ["a", "b", "c"]
    assert order.index("c", 3) <= 5
    assert len(order) == 2 * storm + 2


async def test_a_late_tenant_waits_for_one_call_of_each_other_tenant() -> None:
    queue = Queue()
    async with queue.semaphore.acquire_for("first"):
        for tenant in ("a", "b") * 20:
            queue.add(tenant)
        await asyncio.sleep(0)
    while len(queue.order) < 5:
        await asyncio.sleep(0)
    late = queue.add("late")
    await asyncio.sleep(0)
    before = len(queue.order)
    await late

    # The current holder, and one call of each other tenant.
    assert queue.order.index("late") - before <= 1 + 2
    await asyncio.gather(*queue.waiting)


async def test_a_tenant_with_cancelled_waiters_keeps_its_position() -> None:
    queue = Queue()
    async with queue.semaphore.acquire_for("first"):
        cancelled = [queue.add("a") for _ in range(50)]
        others = [queue.add("b") for _ in range(3)]
        await asyncio.sleep(0)
        for task in cancelled:
            task.cancel()
        await asyncio.sleep(0)
        others.append(queue.add("a"))
        await asyncio.sleep(0)
    await asyncio.gather(*others)

    assert queue.order[:2] == ["a", "b"]


async def test_the_total_weight_of_holders_is_at_most_the_permits() -> None:
    semaphore = FairSemaphore(10)
    holders = [Holder(semaphore, 4) for _ in range(4)]
    await run_loop()
    assert (acquired(*holders), semaphore.waiting) == ([True, True, False, False], 2)

    holders[0].go.set()
    await run_loop()

    assert (acquired(*holders), semaphore.waiting) == ([True, True, True, False], 1)
    await release_all(semaphore, *holders)


async def test_a_free_permit_can_be_acquired_while_another_is_granted() -> None:
    semaphore = FairSemaphore(2)
    holders = [Holder(semaphore) for _ in range(3)]
    await run_loop()
    for holder in holders[:2]:
        holder.go.set()
    while semaphore.waiting:
        await asyncio.sleep(0)
    late = Holder(semaphore)
    await run_loop()

    assert acquired(holders[2], late) == [True, True]
    await release_all(semaphore, *holders, late)


async def test_a_light_waiter_does_not_overtake_a_heavy_one() -> None:
    semaphore = FairSemaphore(10)
    first, heavy, light = Holder(semaphore, 6), Holder(semaphore, 8), Holder(semaphore, 1)
    await run_loop()
    assert acquired(heavy, light) == [False, False]

    first.go.set()
    await run_loop()

    assert acquired(heavy, light) == [True, True]
    await release_all(semaphore, heavy, light)


async def test_a_heavy_tenant_delays_another_by_one_holder() -> None:
    semaphore = FairSemaphore(10)
    holders = [Holder(semaphore, 10, "a") for _ in range(5)]
    other = Holder(semaphore, 10, "b")
    for holder in holders[:2]:
        await run_loop()
        assert not other.acquired.is_set()
        holder.go.set()
    await run_loop()

    assert other.acquired.is_set()
    await release_all(semaphore, *holders, other)


async def test_a_weight_above_the_permits_takes_all_of_them() -> None:
    semaphore = FairSemaphore(10)
    async with semaphore.acquire_for("a", weight=1000):
        other = Holder(semaphore, 1)
        await run_loop()
        assert not other.acquired.is_set()
    await run_loop()

    assert other.acquired.is_set()
    await release_all(semaphore, other)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("granted", [True, False])
async def test_cancellation_of_a_holder_or_waiter_loses_no_permit(
    which: int, granted: bool
) -> None:
    semaphore = FairSemaphore(10)
    holders = [Holder(semaphore, 10) for _ in range(3)]
    await run_loop()
    holders[0].go.set()
    if granted:
        # The first waiter has the permits now, but has not run yet.
        await asyncio.sleep(0)
    holders[which].task.cancel()

    await release_all(semaphore, *holders)


async def test_cancellation_of_a_heavy_waiter_admits_the_next_ones() -> None:
    semaphore = FairSemaphore(10)
    first, heavy, light = Holder(semaphore, 6), Holder(semaphore, 8), Holder(semaphore, 1)
    await run_loop()
    heavy.task.cancel()
    await run_loop()

    assert light.acquired.is_set()
    await release_all(semaphore, first, heavy, light)
