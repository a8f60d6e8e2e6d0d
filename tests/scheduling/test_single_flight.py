from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from samserve.scheduling.single_flight import SingleFlight

Flights = SingleFlight[str, str]


class Work:
    """A piece of work that waits to be told to finish, and counts what happened to it."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.counts: Counter[str] = Counter()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        self.counts["begun"] += 1
        try:
            await self.go.wait()
            self.counts["finished"] += 1
            yield "value"
        except asyncio.CancelledError:
            self.counts["cancelled"] += 1
            raise
        finally:
            self.counts["left"] += 1


async def join(flights: Flights, work: Work) -> tuple[str, bool]:
    async with flights.join("key", work.open) as joined:
        return joined


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def joined_by(
    count: int, flights: Flights, work: Work
) -> list[asyncio.Task[tuple[str, bool]]]:
    callers = [asyncio.create_task(join(flights, work)) for _ in range(count)]
    await turns()
    return callers


async def test_concurrent_callers_share_one_piece_of_work() -> None:
    flights, work = Flights(), Work()
    callers = await joined_by(100, flights, work)
    work.go.set()

    results = await asyncio.gather(*callers)

    assert work.counts["begun"] == 1
    assert {value for value, _ in results} == {"value"}
    assert sum(leads for _, leads in results) == 1


async def test_a_cancelled_caller_does_not_touch_the_others() -> None:
    flights, work = Flights(), Work()
    callers = await joined_by(4, flights, work)
    for caller in callers[:2]:
        caller.cancel()
    await turns()
    work.go.set()

    results = await asyncio.gather(*callers, return_exceptions=True)

    assert [isinstance(result, asyncio.CancelledError) for result in results[:2]] == [True, True]
    assert [result[0] for result in results[2:]] == ["value", "value"]
    assert work.counts == {"begun": 1, "finished": 1, "left": 1}


async def test_work_without_callers_is_cancelled() -> None:
    flights, work = Flights(), Work()
    callers = await joined_by(3, flights, work)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    await turns()

    assert work.counts == {"begun": 1, "cancelled": 1, "left": 1}


async def test_the_value_is_held_until_the_last_caller_leaves() -> None:
    flights, work = Flights(), Work()
    stay = asyncio.Event()

    async def hold() -> None:
        async with flights.join("key", work.open):
            await stay.wait()

    staying = asyncio.create_task(hold())
    await turns()
    assert flights.under_way("key")
    (leaving,) = await joined_by(1, flights, work)
    work.go.set()
    assert await leaving == ("value", False)
    await turns()
    held = work.counts["left"]
    stay.set()
    await staying
    await turns()

    assert held == 0
    assert work.counts["left"] == 1


async def test_work_that_is_done_is_not_joined_while_others_hold_it() -> None:
    flights, work = Flights(), Work()
    work.go.set()
    async with flights.join("key", work.open):
        assert not flights.under_way("key")
        async with flights.join("key", work.open) as (value, leads):
            assert (value, leads) == ("value", True)

    assert work.counts["begun"] == 2


async def test_existing_work_is_joined_and_its_failure_met() -> None:
    flights, work = Flights(), Work()
    (leading,) = await joined_by(1, flights, work)

    async def ride() -> str:
        async with flights.join_existing("key") as value:
            return value

    riding = asyncio.create_task(ride())
    await turns()
    leading.cancel()  # it goes on for the other
    work.go.set()
    assert await riding == "value"
    with pytest.raises(KeyError):
        await ride()
    assert work.counts == {"begun": 1, "finished": 1, "left": 1}


async def test_detached_work_goes_on_for_those_who_wait_and_takes_nobody_else() -> None:
    flights, work, other = Flights(), Work(), Work()
    (waiting,) = await joined_by(1, flights, work)
    flights.detach("key")
    flights.detach("key")
    (late,) = await joined_by(1, flights, other)
    work.go.set()
    assert await waiting == ("value", True)
    # The first one's end does not end the second's being joined.
    assert flights.under_way("key")
    other.go.set()
    assert await late == ("value", True)


async def test_a_failure_reaches_every_caller_and_is_not_kept() -> None:
    flights = Flights()
    attempts: list[int] = []

    @asynccontextmanager
    async def failing() -> AsyncIterator[str]:
        attempts.append(1)
        await asyncio.sleep(0)
        raise ValueError("broken")
        yield

    async def call() -> None:
        async with flights.join("key", failing):
            pass

    first = await asyncio.gather(call(), call(), return_exceptions=True)
    second = await asyncio.gather(call(), return_exceptions=True)

    assert [str(error) for error in first + second] == ["broken"] * 3
    assert len(attempts) == 2


async def test_a_new_caller_does_not_join_work_that_is_being_cancelled() -> None:
    flights, abandoned, fresh = Flights(), Work(), Work()
    fresh.go.set()
    (leaving,) = await joined_by(1, flights, abandoned)
    leaving.cancel()

    with pytest.raises(asyncio.CancelledError):
        await leaving
    value, leads = await join(flights, fresh)

    assert (value, leads) == ("value", True)
