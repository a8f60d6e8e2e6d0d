"""Threads for work that would block the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from samserve.context import Priority, RequestContext
from samserve.scheduling.fair_semaphore import FairSemaphore

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """Two pools, so that the many small pieces of AutoMask never queue before a click.

    In each, tenants take turns.  Pillow, OpenCV, hashlib and large numpy operations release the
    GIL, which makes threads enough.
    """

    def __init__(self, threads: int) -> None:
        self._pools = {
            priority: ThreadPoolExecutor(threads, thread_name_prefix=priority.name.lower())
            for priority in Priority
        }
        self._semaphores = {priority: FairSemaphore(threads) for priority in Priority}

    def waiting(self, priority: Priority) -> int:
        """How many pieces of work wait for a thread."""
        return self._semaphores[priority].waiting

    async def run(
        self, context: RequestContext, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call *function* in the pool of the context's priority.

        Cancelled while it waits, it never starts; cancelled while it runs, it ends unobserved.
        """
        async with self._semaphores[context.priority].hold(context):
            pool = self._pools[context.priority]
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(pool, lambda: function(*args, **kwargs))

    async def run_unless(
        self, quick: bool, context: RequestContext, function: Callable[[], T]
    ) -> T:
        """Call *function* right here if it is *quick*: going to a thread costs more than it does.

        Quick is what takes a fraction of a millisecond; see `run` for the rest.
        """
        return function() if quick else await self.run(context, function)

    def close(self) -> None:
        """Drop what waits and let go of the threads when they are done."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
