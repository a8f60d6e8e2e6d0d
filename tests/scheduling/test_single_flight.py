from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from samserve.scheduling.single_flight import SingleFlight

Flights = SingleFlight[str, str]


class Work:
    """Work that waits for ``go``, and counts its events."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.counts: Counter[str] = Counter()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        self.counts["started"] += 1
        try:
            await self.go.wait()
            self.counts["finished"] += 1
            yield "value"
        except asyncio.CancelledError:
            self.counts["cancelled"] += 1
            raise
        finally:
            self.counts["exited"] += 1


async def join(flights: Flights, work: Work) -> tuple[str, bool]:
    async with flights.join("key", work.open) as joined:
        return joined


async def run_loop(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def joined_by(
    count: int, flights: Flights, work: Work
) -> list[asyncio.Task[tuple[str, bool]]]:
    callers = [asyncio.create_task(join(flights, work)) for _ in range(count)]
    await run_loop()
    return callers


async def test_concurrent_callers_share_one_execution() -> None:
    flights, work = Flights(), Work()
    callers = await joined_by(100, flights, work)
    work.go.set()

    results = await asyncio.gather(*callers)

    assert work.counts["started"] == 1
    assert {value for value, _ in results} == {"value"}
    assert sum(started for _, started in results) == 1


async def test_cancellation_of_a_caller_does_not_affect_the_others() -> None:
    flights, work = Flights(), Work()
    callers = await joined_by(4, flights, work)
    for caller in callers[:2]:
        caller.cancel()
    await run_loop()
    work.go.set()

    results = await asyncio.gather(*callers, return_exceptions=True)

    assert [isinstance(result, asyncio.CancelledError) for result in results[:2]] == [True, True]
    assert [result[0] for result in results[2:]] == ["value", "value"]
    assert work.counts == {"started": 1, "finished": 1, "exited": 1}


async def test_work_without_callers_is_cancelled() -> None:
    flights, work = Flights(), Work()
    callers = await joined_by(3, flights, work)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    await run_loop()

    assert work.counts == {"started": 1, "cancelled": 1, "exited": 1}


async def test_the_work_is_exited_when_the_last_caller_leaves() -> None:
    flights, work = Flights(), Work()
    stay = asyncio.Event()

    async def hold() -> None:
        async with flights.join("key", work.open):
            await stay.wait()

    staying = asyncio.create_task(hold())
    await run_loop()
    assert flights.in_flight("key")
    (leaving,) = await joined_by(1, flights, work)
    work.go.set()
    assert await leaving == ("value", False)
    await run_loop()
    exited_before = work.counts["exited"]
    stay.set()
    await staying
    await run_loop()

    assert exited_before == 0
    assert work.counts["exited"] == 1


async def test_finished_work_is_not_joined_while_callers_still_use_it() -> None:
    flights, work = Flights(), Work()
    work.go.set()
    async with flights.join("key", work.open):
        assert not flights.in_flight("key")
        async with flights.join("key", work.open) as (value, started):
            assert (value, started) == ("value", True)

    assert work.counts["started"] == 2


async def test_join_existing_joins_work_in_flight_only() -> None:
    flights, work = Flights(), Work()
    (first,) = await joined_by(1, flights, work)

    async def join_existing() -> str:
        async with flights.join_existing("key") as value:
            return value

    second = asyncio.create_task(join_existing())
    await run_loop()
    first.cancel()  # the work continues for the second caller
    work.go.set()
    assert await second == "value"
    with pytest.raises(KeyError):
        await join_existing()
    assert work.counts == {"started": 1, "finished": 1, "exited": 1}


async def test_detached_work_continues_for_its_callers_and_cannot_be_joined() -> None:
    flights, work, other = Flights(), Work(), Work()
    (waiting,) = await joined_by(1, flights, work)
    flights.detach("key")
    flights.detach("key")
    (late,) = await joined_by(1, flights, other)
    work.go.set()
    assert await waiting == ("value", True)
    # The end of the first work does not detach the second.
    assert flights.in_flight("key")
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
    value, started = await join(flights, fresh)

    assert (value, started) == ("value", True)
