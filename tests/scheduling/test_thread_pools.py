from __future__ import annotations

import asyncio
import threading

import pytest
from samserve.context import Priority, RequestContext
from samserve.scheduling.offload import Work
from samserve.scheduling.thread_pools import Workers
from samserve.security.principal import Principal


def call_of(tenant: str, priority: Priority = Priority.INTERACTIVE) -> RequestContext:
    return RequestContext(Principal(tenant), priority=priority)


async def test_tenants_are_served_round_robin() -> None:
    workers = Workers(1)
    order: list[str] = []
    busy = threading.Event()

    first = asyncio.create_task(workers.run(call_of("storm"), busy.wait, 20))
    await asyncio.sleep(0)
    waiting = [
        asyncio.create_task(workers.run(call_of(tenant), order.append, tenant))
        for tenant in ["storm"] * 50 + ["other"] * 2
    ]
    await asyncio.sleep(0)
    busy.set()
    await asyncio.gather(first, *waiting)
    workers.close()

    assert order[:4] == ["storm", "other", "storm", "other"]
    assert len(order) == 52


async def test_bulk_work_does_not_delay_interactive_work() -> None:
    workers = Workers(1)
    busy = threading.Event()
    bulk = asyncio.create_task(workers.run(call_of("a", Priority.BULK), busy.wait, 20))
    await asyncio.sleep(0)

    assert await asyncio.wait_for(workers.run(call_of("a"), lambda: "result"), 10) == "result"
    busy.set()
    await bulk
    workers.close()


async def test_a_job_that_is_cancelled_while_it_waits_never_starts() -> None:
    workers = Workers(1)
    busy, started = threading.Event(), []
    first = asyncio.create_task(workers.run(call_of("a"), busy.wait, 20))
    await asyncio.sleep(0)
    second = asyncio.create_task(workers.run(call_of("a"), started.append, 1))
    await asyncio.sleep(0)
    second.cancel()
    busy.set()
    await asyncio.gather(first, second, return_exceptions=True)
    workers.close()

    assert started == []


async def test_short_work_runs_in_one_thread_and_does_not_wait_for_long_work() -> None:
    workers = Workers(2)
    busy = threading.Event()
    long = [asyncio.create_task(workers.run(call_of("a"), busy.wait, 20)) for _ in range(2)]
    await asyncio.sleep(0)

    short = [workers.run_as(Work.SHORT, call_of("a"), threading.get_ident) for _ in range(20)]
    threads = await asyncio.wait_for(asyncio.gather(*short), 10)
    busy.set()
    await asyncio.gather(*long)
    workers.close()

    assert len(set(threads)) == 1


async def test_quick_work_runs_on_the_event_loop() -> None:
    workers = Workers(1)
    assert await workers.run_as(Work.QUICK, call_of("a"), threading.get_ident) == (
        threading.get_ident()
    )
    workers.close()


async def test_jobs_that_wait_in_either_lane_are_counted() -> None:
    workers = Workers(1)
    busy = threading.Event()
    jobs = [
        asyncio.create_task(workers.run_as(work, call_of("a"), busy.wait))
        for work in (Work.SHORT, Work.LONG)
        for _ in range(3)
    ]
    await asyncio.sleep(0)

    assert workers.waiting(Priority.INTERACTIVE) == 4
    assert workers.waiting(Priority.BULK) == 0
    busy.set()
    await asyncio.gather(*jobs)
    workers.close()


async def test_all_calls_run_at_the_same_time_and_keep_their_order() -> None:
    workers = Workers(2)
    both = threading.Barrier(2)

    waiting = [both.wait, both.wait, lambda: -1]
    order = await asyncio.wait_for(workers.run_all(call_of("a"), waiting), 20)
    workers.close()

    # Neither of the first two ends before the other has started.
    assert (sorted(order[:2]), order[2]) == ([0, 1], -1)


async def test_first_error_of_all_calls_cancels_those_that_have_not_started() -> None:
    workers, started = Workers(1), []

    def fails() -> None:
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        await workers.run_all(call_of("a"), [fails, *[lambda: started.append(1)] * 20])
    await workers.run(call_of("a"), bool)
    workers.close()

    assert len(started) <= 1


async def test_cancelled_calls_that_have_not_started_never_start() -> None:
    workers, started = Workers(1), []
    busy = threading.Event()
    jobs = [lambda: busy.wait(20), *[lambda: started.append(1)] * 20]
    running = asyncio.create_task(workers.run_all(call_of("a"), jobs))
    await asyncio.sleep(0.01)
    running.cancel()
    busy.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    await workers.run(call_of("a"), bool)
    workers.close()

    assert started == []
