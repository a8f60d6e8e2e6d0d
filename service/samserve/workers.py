"""Threads for work that would block the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from samserve.context import Priority

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """Two pools, so that the many small pieces of AutoMask never queue before a click.

    Pillow, OpenCV, hashlib and large numpy operations release the GIL, which makes threads enough.
    """

    def __init__(self, threads: int) -> None:
        self._pools = {
            priority: ThreadPoolExecutor(threads, thread_name_prefix=priority.name.lower())
            for priority in Priority
        }

    async def run(
        self, priority: Priority, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call *function* in the pool of *priority*.

        Cancelled while it waits, it never starts; cancelled while it runs, it ends unobserved.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pools[priority], lambda: function(*args, **kwargs))

    async def run_unless(
        self,
        quick: bool,
        priority: Priority,
        function: Callable[[], T],
    ) -> T:
        """Call *function* right here if it is *quick*: going to a thread costs more than it does.

        Quick is what takes a fraction of a millisecond; see `run` for the rest.
        """
        return function() if quick else await self.run(priority, function)

    def close(self) -> None:
        """Drop what waits and let go of the threads when they are done."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
