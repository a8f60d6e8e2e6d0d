"""Waiting for a condition, with a timeout.

The timeout only limits the duration of a failing test: no result depends on speed.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

TIMEOUT_S = 60.0
POLL_S = 0.01


async def until(
    condition: Callable[[], Any | Awaitable[Any]],
    timeout_s: float = TIMEOUT_S,
    poll_s: float = POLL_S,
) -> Any:
    """Call a function, or a coroutine function, until its result is true; return the result.

    Raises AssertionError, with the last value, after *timeout_s*.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s; last: {value!r}"
        await asyncio.sleep(poll_s)


def until_sync(
    condition: Callable[[], Any], timeout_s: float = TIMEOUT_S, poll_s: float = POLL_S
) -> Any:
    """Wait like `until`, without an event loop."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s; last: {value!r}"
        time.sleep(poll_s)
    return value
