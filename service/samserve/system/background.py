"""Background tasks that run while a block runs, and continue after unexpected exceptions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog


@asynccontextmanager
async def supervised(
    run: Callable[[], Awaitable[None]], failure: str, restart_s: float, log: str = "samserve"
) -> AsyncIterator[None]:
    """Run *run* in a task while the block runs, and cancel it at the end.

    After an exception, *failure* is logged to *log*, and *run* is called again *restart_s* later.
    *run* handles expected errors itself.
    """
    task = asyncio.create_task(_restarting(run, failure, restart_s, log))
    try:
        yield
    finally:
        task.cancel()
        # Unlike awaiting the task, this raises only if the caller is cancelled.
        await asyncio.wait([task])


@asynccontextmanager
async def periodic(
    step: Callable[[], Awaitable[None]], interval_s: float, failure: str, log: str = "samserve"
) -> AsyncIterator[None]:
    """Await *step* every *interval_s* while the block runs, first after one interval.

    After an exception, *failure* is logged to *log*; the next step follows after the interval.
    """

    async def run() -> None:
        while True:
            await asyncio.sleep(interval_s)
            await step()

    async with supervised(run, failure, 0.0, log):
        yield


async def _restarting(
    run: Callable[[], Awaitable[None]], failure: str, restart_s: float, log: str
) -> None:
    while True:
        try:
            await run()
            return
        except Exception:
            structlog.get_logger(log).exception(failure)
        await asyncio.sleep(restart_s)
