"""Clocks that are advanced by a test."""

from __future__ import annotations

import asyncio


class Clock:
    """A stopped clock; a test adds to ``now`` (seconds), and code calls it as `time.monotonic`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


async def advance_loop(seconds: float) -> None:
    """Advance the clock of the running event loop, without waiting.

    On return, the timers that are due and the tasks that they wake have run.  The clock of the loop
    stays ahead from then on.
    """
    loop = asyncio.get_running_loop()
    time = loop.time
    loop.time = lambda: time() + seconds  # type: ignore[method-assign]
    for _ in range(20):
        await asyncio.sleep(0)
