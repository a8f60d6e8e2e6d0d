"""Clocks that a test moves."""

from __future__ import annotations

import asyncio


class Clock:
    """Stands still until a test adds to ``now`` (seconds); call it as `time.monotonic`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


async def pass_on_the_loop(seconds: float) -> None:
    """Let so much time pass for the timers of the running event loop, without waiting for it.

    Those that are due have run, and what they wake has had its turn.  The loop's clock stays ahead
    from then on.
    """
    loop = asyncio.get_running_loop()
    time = loop.time
    loop.time = lambda: time() + seconds  # type: ignore[method-assign]
    for _ in range(20):
        await asyncio.sleep(0)
