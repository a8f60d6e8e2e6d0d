from __future__ import annotations

import asyncio

import pytest
from samserve.scheduling.byte_semaphore import ByteBudget
from samserve.stores.shared.redis.circuit_breaker import Breaker


class Holder:
    """Holds bytes until it is told to let go."""

    def __init__(self, budget: ByteBudget, nbytes: int) -> None:
        self.inside, self.go = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._hold(budget, nbytes))

    async def _hold(self, budget: ByteBudget, nbytes: int) -> None:
        async with budget.hold(nbytes):
            self.inside.set()
            await self.go.wait()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_bytes_are_inside_than_there_may_be() -> None:
    budget = ByteBudget(10)
    holders = [Holder(budget, 4) for _ in range(4)]
    await turns()
    assert [holder.inside.is_set() for holder in holders] == [True, True, False, False]

    holders[0].go.set()
    await turns()

    assert [holder.inside.is_set() for holder in holders] == [True, True, True, False]
    for holder in holders:
        holder.go.set()
        await holder.task


async def test_a_small_one_does_not_pass_a_large_one_that_waits() -> None:
    budget = ByteBudget(10)
    first, large, small = Holder(budget, 6), Holder(budget, 8), Holder(budget, 1)
    await turns()
    assert (large.inside.is_set(), small.inside.is_set()) == (False, False)

    first.go.set()
    await turns()

    assert (large.inside.is_set(), small.inside.is_set()) == (True, True)
    for holder in (large, small):
        holder.go.set()
        await holder.task


async def test_what_is_larger_than_all_passes_alone() -> None:
    budget = ByteBudget(10)
    async with budget.hold(1000):
        other = Holder(budget, 1)
        await turns()
        assert not other.inside.is_set()
    await turns()
    assert other.inside.is_set()
    other.go.set()
    await other.task


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_who_gives_up_leaves_the_room_to_others(which: int) -> None:
    budget = ByteBudget(10)
    holders = [Holder(budget, 10), Holder(budget, 10), Holder(budget, 10)]
    await turns()
    # At the moment at which the room is handed over, too.
    holders[0].go.set()
    holders[which].task.cancel()
    for holder in holders:
        holder.go.set()
    await asyncio.wait([holder.task for holder in holders], timeout=60)

    assert [holder.task.done() for holder in holders] == [True, True, True]
    async with asyncio.timeout(60), budget.hold(10):
        pass


async def test_the_first_of_the_queue_that_gives_up_wakes_those_that_fit() -> None:
    budget = ByteBudget(10)
    first, large, small = Holder(budget, 6), Holder(budget, 8), Holder(budget, 1)
    await turns()
    large.task.cancel()
    await turns()

    assert small.inside.is_set()
    for holder in (first, small):
        holder.go.set()
        await holder.task


def test_a_breaker_opens_after_failures_in_a_row_and_closes_with_an_answer() -> None:
    breaker = Breaker(3)
    for _ in range(2):
        breaker.failed()
    breaker.succeeded()
    for _ in range(2):
        breaker.failed()
    assert not breaker.open
    breaker.failed()
    assert breaker.open
    breaker.succeeded()
    assert not breaker.open
