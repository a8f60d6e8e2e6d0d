"""Timeouts of calls, all on one timer of the event loop."""

from __future__ import annotations

import asyncio
import math
from typing import Any, cast

from samserve.errors import SamserveError


class Timeouts:
    """The timeouts that run, in one event loop.

    A call begins three and ends all of them in time, unless it or its client is slow.  The loop has
    one timer for them, which stays when its timeout ends, and then finds the next.  So most
    timeouts cost an entry in a set, a tenth of a timer.
    """

    def __init__(self) -> None:
        self._running: set[Timeout] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf

    def begin(self, timeout: Timeout, seconds: float) -> None:
        """Let *timeout* expire after *seconds*."""
        loop = asyncio.get_running_loop()
        when = timeout.when = loop.time() + seconds
        self._running.add(timeout)
        if when < self._next:
            self._set_timer(loop, when)

    def end(self, timeout: Timeout) -> None:
        """Forget *timeout*; without effect once it has expired."""
        self._running.discard(timeout)

    def _set_timer(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = when
        self._timer = loop.call_at(when, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        # A loop calls its timers early by the resolution of its clock.
        now = max(loop.time(), self._next)
        self._timer, self._next = None, math.inf
        due = [each for each in self._running if each.when <= now]
        # In their order: the first of two slow clients gets the last slot.
        for timeout in sorted(due, key=lambda each: each.when):
            self._running.discard(timeout)
            timeout.expire()
        first = min((each.when for each in self._running), default=math.inf)
        if first < self._next:
            self._set_timer(loop, first)


class Timeout:
    """Cancels the wait in its block after *seconds* and raises `error`, as `asyncio.timeout`."""

    __slots__ = ("_cancelled", "_cancelling", "_seconds", "_task", "_timeouts", "when")

    def __init__(self, timeouts: Timeouts, seconds: float) -> None:
        self._timeouts = timeouts
        self._seconds = seconds
        self._cancelled = False
        self.when = math.inf

    def error(self) -> SamserveError:
        """Return the error to raise; called once the block has ended."""
        raise NotImplementedError

    def expire(self) -> None:
        """Cancel the wait."""
        self._cancelled = True
        self._task.cancel()

    def __enter__(self) -> None:
        # The coroutines of a server run in tasks.
        task = self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancelling = task.cancelling()
        self._timeouts.begin(self, self._seconds)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timeouts.end(self)
        if not self._cancelled:
            return
        own_cancel = self._task.uncancel() <= self._cancelling
        if own_cancel and kind is asyncio.CancelledError:
            raise self.error() from None
