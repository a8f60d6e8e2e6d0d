from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from samserve.context import Priority, RequestContext
from samserve.scheduling.fair_semaphore import MAX_SKIPS, FairSemaphore
from samserve.security.principal import Principal

BULK, INTERACTIVE = Priority.BULK, Priority.INTERACTIVE
Names = Iterable[tuple[str, Priority]]


async def turns(times: int = 5) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


class Holder:
    """Holds permits until ``go`` is set."""

    def __init__(self, semaphore: FairSemaphore, weight: int = 1, tenant: str = "a") -> None:
        self.inside, self.go = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._hold(semaphore, weight, tenant))

    async def _hold(self, semaphore: FairSemaphore, weight: int, tenant: str) -> None:
        async with semaphore.hold_for(tenant, weight=weight):
            self.inside.set()
            await self.go.wait()


def inside(*holders: Holder) -> list[bool]:
    return [holder.inside.is_set() for holder in holders]


async def all_done(semaphore: FairSemaphore, *holders: Holder) -> None:
    """Let all go; afterwards every permit is free."""
    for holder in holders:
        holder.go.set()
    await asyncio.wait([holder.task for holder in holders])
    async with asyncio.timeout(60), semaphore.hold_for("a", weight=10**9):
        assert semaphore.waiting == 0


class Line:
    """Calls that wait for one permit, and the order in which they had it."""

    def __init__(self) -> None:
        self.semaphore = FairSemaphore(1)
        self.order: list[str] = []
        self.waiting: list[asyncio.Task[None]] = []

    def add(self, tenant: str, priority: Priority = INTERACTIVE) -> asyncio.Task[None]:
        self.waiting.append(asyncio.create_task(self._call(tenant, priority)))
        return self.waiting[-1]

    async def _call(self, tenant: str, priority: Priority) -> None:
        async with self.semaphore.hold(RequestContext(Principal(tenant), priority=priority)):
            self.order.append(tenant)
            await asyncio.sleep(0)

    async def served(self, calls: Names) -> list[str]:
        """Let calls wait while the permit is taken, then one after the other have it."""
        async with self.semaphore.hold_for("first"):
            for tenant, priority in calls:
                self.add(tenant, priority)
            await asyncio.sleep(0)
        await asyncio.gather(*self.waiting)
        return self.order


async def test_waiters_are_served_by_priority_then_by_arrival() -> None:
    order = await Line().served(
        [("bulk 1", BULK), ("bulk 2", BULK), ("click 1", INTERACTIVE), ("click 2", INTERACTIVE)]
    )

    assert order == ["click 1", "click 2", "bulk 1", "bulk 2"]


async def test_a_lower_priority_is_skipped_so_many_times_and_no_more() -> None:
    order = await Line().served([("bulk", BULK)] * 3 + [("click", INTERACTIVE)] * 40)

    bulk = [turn for turn, name in enumerate(order) if name == "bulk"]
    assert bulk == [MAX_SKIPS, 2 * MAX_SKIPS + 1, 3 * MAX_SKIPS + 2]


@pytest.mark.parametrize("storm", [1, 10, 1000])
async def test_tenants_take_turns_however_many_wait(storm: int) -> None:
    tenants = ["a"] * storm + ["b"] * storm + ["c", "c"]
    order = await Line().served((tenant, INTERACTIVE) for tenant in tenants)

    # Of each other tenant one piece of work at most, each time.
    assert order[:3] == ["a", "b", "c"]
    assert order.index("c", 3) <= 5
    assert len(order) == 2 * storm + 2


async def test_a_tenant_that_comes_late_is_behind_one_of_each_other() -> None:
    line = Line()
    async with line.semaphore.hold_for("first"):
        for tenant in ("a", "b") * 20:
            line.add(tenant)
        await asyncio.sleep(0)
    while len(line.order) < 5:
        await asyncio.sleep(0)
    late = line.add("late")
    await asyncio.sleep(0)
    before = len(line.order)
    await late

    # One that is under way, and one of each other.
    assert line.order.index("late") - before <= 1 + 2
    await asyncio.gather(*line.waiting)


async def test_waiters_that_were_cancelled_cost_their_tenant_no_turn() -> None:
    line = Line()
    async with line.semaphore.hold_for("first"):
        dropped = [line.add("a") for _ in range(50)]
        others = [line.add("b") for _ in range(3)]
        await asyncio.sleep(0)
        for task in dropped:
            task.cancel()
        await asyncio.sleep(0)
        others.append(line.add("a"))
        await asyncio.sleep(0)
    await asyncio.gather(*others)

    assert line.order[:2] == ["a", "b"]


async def test_no_more_weight_than_the_permits_is_inside() -> None:
    semaphore = FairSemaphore(10)
    holders = [Holder(semaphore, 4) for _ in range(4)]
    await turns()
    assert (inside(*holders), semaphore.waiting) == ([True, True, False, False], 2)

    holders[0].go.set()
    await turns()

    assert (inside(*holders), semaphore.waiting) == ([True, True, True, False], 1)
    await all_done(semaphore, *holders)


async def test_a_permit_that_is_free_is_had_while_another_is_handed_over() -> None:
    semaphore = FairSemaphore(2)
    holders = [Holder(semaphore) for _ in range(3)]
    await turns()
    for holder in holders[:2]:
        holder.go.set()
    while semaphore.waiting:
        await asyncio.sleep(0)
    late = Holder(semaphore)
    await turns()

    assert inside(holders[2], late) == [True, True]
    await all_done(semaphore, *holders, late)


async def test_a_light_one_does_not_pass_a_heavy_one_that_waits() -> None:
    semaphore = FairSemaphore(10)
    first, heavy, light = Holder(semaphore, 6), Holder(semaphore, 8), Holder(semaphore, 1)
    await turns()
    assert inside(heavy, light) == [False, False]

    first.go.set()
    await turns()

    assert inside(heavy, light) == [True, True]
    await all_done(semaphore, heavy, light)


async def test_a_heavy_tenant_delays_another_by_one_turn() -> None:
    semaphore = FairSemaphore(10)
    holders = [Holder(semaphore, 10, "a") for _ in range(5)]
    other = Holder(semaphore, 10, "b")
    for holder in holders[:2]:
        await turns()
        assert not other.inside.is_set()
        holder.go.set()
    await turns()

    assert other.inside.is_set()
    await all_done(semaphore, *holders, other)


async def test_what_is_heavier_than_all_is_inside_alone() -> None:
    semaphore = FairSemaphore(10)
    async with semaphore.hold_for("a", weight=1000):
        other = Holder(semaphore, 1)
        await turns()
        assert not other.inside.is_set()
    await turns()

    assert other.inside.is_set()
    await all_done(semaphore, other)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("waits", [True, False])
async def test_a_cancelled_holder_or_waiter_loses_no_permit(which: int, waits: bool) -> None:
    semaphore = FairSemaphore(10)
    holders = [Holder(semaphore, 10) for _ in range(3)]
    await turns()
    holders[0].go.set()
    if waits:
        # The first waiter has the permits now, and has not run yet.
        await asyncio.sleep(0)
    holders[which].task.cancel()

    await all_done(semaphore, *holders)


async def test_a_heavy_waiter_that_is_cancelled_lets_those_behind_it_in() -> None:
    semaphore = FairSemaphore(10)
    first, heavy, light = Holder(semaphore, 6), Holder(semaphore, 8), Holder(semaphore, 1)
    await turns()
    heavy.task.cancel()
    await turns()

    assert light.inside.is_set()
    await all_done(semaphore, first, heavy, light)
