from __future__ import annotations

import asyncio

import pytest
from samserve.context import Priority, RequestContext
from samserve.scheduling.fair_semaphore import PATIENCE, FairGate
from samserve.security.principal import Principal

BULK = RequestContext(priority=Priority.BULK)


def call_of(tenant: str, priority: Priority = Priority.INTERACTIVE) -> RequestContext:
    return RequestContext(Principal(tenant), priority=priority)


async def test_waiters_are_served_by_priority_then_by_arrival() -> None:
    gate = FairGate(1)
    order: list[str] = []

    async def work(name: str, priority: Priority) -> None:
        async with gate.hold(RequestContext(priority=priority)):
            order.append(name)

    async with gate.hold(BULK):
        waiting = [
            asyncio.create_task(work("bulk 1", Priority.BULK)),
            asyncio.create_task(work("bulk 2", Priority.BULK)),
            asyncio.create_task(work("click 1", Priority.INTERACTIVE)),
            asyncio.create_task(work("click 2", Priority.INTERACTIVE)),
        ]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)

    assert order == ["click 1", "click 2", "bulk 1", "bulk 2"]


async def test_no_more_than_the_permits_are_inside() -> None:
    gate = FairGate(2)
    inside = most = 0

    async def work() -> None:
        nonlocal inside, most
        async with gate.hold(BULK):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(work() for _ in range(20)))

    assert most == 2


async def test_cancelled_waiters_lose_no_permit() -> None:
    gate = FairGate(1)
    async with gate.hold(BULK):
        waiting = [asyncio.create_task(_pass_through(gate)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        waiting[2].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)

    assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, False, True]
    await asyncio.wait_for(_pass_through(gate), 60)


async def test_a_waiter_cancelled_as_its_turn_comes_passes_the_permit_on() -> None:
    gate = FairGate(1)
    async with gate.hold(BULK):
        first = asyncio.create_task(_pass_through(gate))
        second = asyncio.create_task(_pass_through(gate))
        await asyncio.sleep(0)
    # The permit is now the first waiter's, but it has not run yet.
    first.cancel()

    await asyncio.wait_for(second, 60)
    assert first.cancelled()


@pytest.mark.parametrize("storm", [1, 10, 1000])
async def test_tenants_take_turns_however_many_wait(storm: int) -> None:
    gate = FairGate(1)
    order: list[str] = []

    async def work(tenant: str) -> None:
        async with gate.hold(call_of(tenant)):
            order.append(tenant)
            await asyncio.sleep(0)

    async with gate.hold(call_of("a")):
        calls = ["a"] * storm + ["b"] * storm + ["c", "c"]
        waiting = [asyncio.create_task(work(tenant)) for tenant in calls]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)

    # Of each other tenant one piece of work at most, each time.
    assert order[:3] == ["a", "b", "c"]
    assert order.index("c", 3) <= 5
    assert len(order) == 2 * storm + 2


async def test_nobody_is_passed_over_for_ever() -> None:
    gate = FairGate(1)
    order: list[str] = []

    async def work(name: str, priority: Priority) -> None:
        async with gate.hold(RequestContext(priority=priority)):
            order.append(name)
            await asyncio.sleep(0)

    async with gate.hold(BULK):
        waiting = [asyncio.create_task(work("bulk", Priority.BULK)) for _ in range(3)]
        waiting += [asyncio.create_task(work("click", Priority.INTERACTIVE)) for _ in range(40)]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)

    bulk = [turn for turn, name in enumerate(order) if name == "bulk"]
    assert bulk == [PATIENCE, 2 * PATIENCE + 1, 3 * PATIENCE + 2]


async def test_a_tenant_that_comes_late_is_behind_one_of_each_other() -> None:
    gate = FairGate(1)
    order: list[str] = []

    async def work(tenant: str) -> None:
        async with gate.hold(call_of(tenant)):
            order.append(tenant)
            if len(order) == 5:
                waiting.append(asyncio.create_task(work("late")))
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    waiting: list[asyncio.Task[None]] = []
    async with gate.hold(call_of("a")):
        waiting += [asyncio.create_task(work(name)) for name in ("a", "b") * 20]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    await waiting[-1]

    assert order.index("late") - 5 <= 2


async def test_waiters_that_were_cancelled_cost_their_tenant_no_turn() -> None:
    gate = FairGate(1)
    order: list[str] = []

    async def work(tenant: str) -> None:
        async with gate.hold(call_of(tenant)):
            order.append(tenant)

    async with gate.hold(call_of("a")):
        dropped = [asyncio.create_task(work("a")) for _ in range(50)]
        others = [asyncio.create_task(work("b")) for _ in range(3)]
        await asyncio.sleep(0)
        for task in dropped:
            task.cancel()
        await asyncio.sleep(0)
        last = asyncio.create_task(work("a"))
        await asyncio.sleep(0)
    await asyncio.gather(*others, last)

    assert order[:2] == ["a", "b"]


async def _pass_through(gate: FairGate) -> None:
    async with gate.hold(BULK):
        pass
