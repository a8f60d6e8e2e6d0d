"""Thread pools for work that would block the event loop."""

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
    """One thread pool per priority, so that AutoMask's many small jobs never delay a Predict call.

    In each, tenants are served round robin.  Pillow, OpenCV, hashlib and large numpy operations
    release the GIL, so threads suffice.
    """

    def __init__(self, threads: int) -> None:
        self._pools = {
            priority: ThreadPoolExecutor(threads, thread_name_prefix=priority.name.lower())
            for priority in Priority
        }
        self._semaphores = {priority: FairSemaphore(threads) for priority in Priority}

    def waiting(self, priority: Priority) -> int:
        """Return the number of jobs that wait for a thread."""
        return self._semaphores[priority].waiting

    async def run(
        self, context: RequestContext, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call *function* in the pool of the context's priority.

        A job that is cancelled while it waits never starts; one that is cancelled while it runs
        ends without effect on the caller.
        """
        async with self._semaphores[context.priority].acquire(context):
            pool = self._pools[context.priority]
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(pool, lambda: function(*args, **kwargs))

    async def run_unless(
        self, quick: bool, context: RequestContext, function: Callable[[], T]
    ) -> T:
        """Call *function* on the event loop if it is *quick* (`offload.is_quick`), else see `run`.

        For quick work the switch to a thread costs more than the work itself.
        """
        return function() if quick else await self.run(context, function)

    def close(self) -> None:
        """Cancel the waiting jobs, and end the threads when they are done."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
