from __future__ import annotations

import asyncio
import threading

from samserve.context import Priority, RequestContext
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
