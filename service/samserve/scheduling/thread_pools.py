"""Thread pools for work that would block the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from samserve.context import Priority, RequestContext
from samserve.scheduling.fair_semaphore import FairSemaphore
from samserve.scheduling.offload import Work

P = ParamSpec("P")
T = TypeVar("T")


class _Lane:
    """Threads that serve tenants round robin."""

    def __init__(self, threads: int, name: str) -> None:
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.semaphore = FairSemaphore(threads)

    async def run(self, context: RequestContext, function: Callable[[], T]) -> T:
        async with self.semaphore.acquire(context):
            return await asyncio.get_running_loop().run_in_executor(self.pool, function)


class Workers:
    """Threads for each priority, so that AutoMask's many small jobs never delay a Predict call.

    In each, tenants are served round robin.  Pillow, OpenCV, hashlib and large numpy operations
    release the GIL, so threads suffice.  Short jobs have a thread of their own, in which they do
    not wait for long ones, and only one of which competes with the event loop for the GIL.
    """

    def __init__(self, threads: int) -> None:
        self._lanes = {
            (priority, work): _Lane(count, f"{priority.name.lower()}_{work.value}")
            for priority in Priority
            for work, count in ((Work.SHORT, 1), (Work.LONG, threads))
        }

    def waiting(self, priority: Priority) -> int:
        """Return the number of jobs that wait for a thread."""
        lanes = (self._lanes[priority, Work.SHORT], self._lanes[priority, Work.LONG])
        return sum(lane.semaphore.waiting for lane in lanes)

    async def run(
        self, context: RequestContext, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call *function* in the threads of the context's priority.

        A job that is cancelled while it waits never starts; one that is cancelled while it runs
        ends without effect on the caller.
        """
        job = partial(function, *args, **kwargs)
        return await self.run_as(Work.LONG, context, job)

    async def run_all(
        self, context: RequestContext, functions: Iterable[Callable[[], T]]
    ) -> list[T]:
        """Call all *functions* on as many threads as are free; see `run`.

        The first error, or a cancellation, cancels those that have not started.
        """
        tasks = [asyncio.create_task(self.run(context, each)) for each in functions]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def run_as(self, work: Work, context: RequestContext, function: Callable[[], T]) -> T:
        """Call *function* where *work* says: on the event loop, or see `run`.

        For quick work the switch to a thread costs more than the work itself.
        """
        if work is Work.QUICK:
            return function()
        return await self._lanes[context.priority, work].run(context, function)

    async def run_unless(
        self, quick: bool, context: RequestContext, function: Callable[[], T]
    ) -> T:
        """Call *function* on the event loop if it is *quick* (`offload.is_quick`), or see `run`."""
        return await self.run_as(Work.QUICK if quick else Work.LONG, context, function)

    def close(self) -> None:
        """Cancel the waiting jobs, and end the threads when they are done."""
        for lane in self._lanes.values():
            lane.pool.shutdown(wait=False, cancel_futures=True)
