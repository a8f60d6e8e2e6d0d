"""Latency of point prompts on the default model, alone and beside an AutoMask of 1,024 points.

Clicks are due at fixed intervals, and timed from the moment at which they were due, so that one
that waits for an earlier one counts as late.
"""

from __future__ import annotations

import asyncio
import time

from samserve.client import Client, Embedding

from benchmarks.gateways import Gateway, Side, points
from benchmarks.parts import Plan
from benchmarks.photographs import coins, photograph
from benchmarks.results import Figure, Latencies, Result

INTERVAL_S = 0.1
ALONE_S = 10.0
BLOCKS = 4
ALONE, BESIDE = "click alone", "click beside an AutoMask"


def run(plan: Plan) -> Result:
    """Alternate between both kinds of blocks."""
    result = Result("clicks", latencies=[Latencies(ALONE), Latencies(BESIDE)])
    result.figures.append(Figure("AutoMask, 1800x1200, 1,024 points, beside clicks", "s"))
    with Gateway(plan.threads) as gateway:
        asyncio.run(_measure(gateway, plan, result))
    result.notes.append(
        f"One click on 640x480 is due every {INTERVAL_S:g} s; the gateway has two threads and "
        "default settings."
    )
    return result


async def _measure(gateway: Gateway, plan: Plan, result: Result) -> None:
    alone, beside = result.latencies
    size, side = ((160, 120), 8) if plan.toy else ((1800, 1200), 32)
    image = coins(*size)
    async with Client(gateway.target) as client:
        user = Side(client, gateway.pid)
        embedding = await client.embed(photograph(640, 480))
        await client.embed(image)
        await _clicks(user, embedding, 5, Latencies("warm-up"), asyncio.Event())
        for _ in range(plan.blocks(BLOCKS)):
            await _clicks(user, embedding, _count(plan), alone, asyncio.Event())
            started, over = time.perf_counter(), asyncio.Event()
            task = asyncio.create_task(_clicks(user, embedding, 10**6, beside, over))
            await client.automask_all(image, points_per_side=side)
            result.figures[0].values.append(time.perf_counter() - started)
            over.set()
            await task


def _count(plan: Plan) -> int:
    return 3 if plan.toy else round(ALONE_S / INTERVAL_S)


async def _clicks(
    user: Side, embedding: Embedding, count: int, into: Latencies, over: asyncio.Event
) -> None:
    """Send *count* clicks, or until *over* is set, without waiting for earlier ones."""
    started, where = time.perf_counter(), points(640, 480, 64)

    async def click(due: float, point: tuple[float, float]) -> None:
        await user.predict(embedding, point)
        into.values_ms.append(1e3 * (time.perf_counter() - due))

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            due = started + number * INTERVAL_S
            await asyncio.sleep(due - time.perf_counter())
            if over.is_set():
                break
            group.create_task(click(due, where[number % len(where)]))
