from __future__ import annotations

import asyncio

from samserve.context import Priority
from samserve.engines.gate import PriorityGate


async def test_waiters_are_served_by_priority_then_by_arrival() -> None:
    gate = PriorityGate(1)
    order: list[str] = []

    async def work(name: str, priority: Priority) -> None:
        async with gate.hold(priority):
            order.append(name)

    async with gate.hold(Priority.BULK):
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
    gate = PriorityGate(2)
    inside = most = 0

    async def work() -> None:
        nonlocal inside, most
        async with gate.hold(Priority.BULK):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(work() for _ in range(20)))

    assert most == 2


async def test_cancelled_waiters_lose_no_permit() -> None:
    gate = PriorityGate(1)
    async with gate.hold(Priority.BULK):
        waiting = [asyncio.create_task(_pass_through(gate)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        waiting[2].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)

    assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, False, True]
    await asyncio.wait_for(_pass_through(gate), 1)


async def test_a_waiter_cancelled_as_its_turn_comes_passes_the_permit_on() -> None:
    gate = PriorityGate(1)
    async with gate.hold(Priority.BULK):
        first = asyncio.create_task(_pass_through(gate))
        second = asyncio.create_task(_pass_through(gate))
        await asyncio.sleep(0)
    # The permit is now the first waiter's, but it has not run yet.
    first.cancel()

    await asyncio.wait_for(second, 1)
    assert first.cancelled()


async def _pass_through(gate: PriorityGate) -> None:
    async with gate.hold(Priority.BULK):
        pass
