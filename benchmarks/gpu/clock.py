"""A limit of time for all parts together."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

GRACE = 15.0
"""Seconds after the limit at which a running part is interrupted."""


class OutOfTime(Exception):
    """The part that runs has exceeded the limit."""


@dataclass
class Clock:
    """Seconds since the start, and a *limit* for them."""

    limit: float
    started: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.started

    def allows(self, seconds: float) -> bool:
        """Return whether a part of about so many seconds ends within the limit."""
        return self.elapsed() + seconds <= self.limit

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise `OutOfTime` in the body once the limit and `GRACE` have passed.

        Only between two Python instructions, and only in the main thread; else without effect.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGALRM, _interrupt)
        # Repeated, since a compiler may report the first one as an error of its own.
        first = max(self.limit + GRACE - self.elapsed(), 0.01)
        signal.setitimer(signal.ITIMER_REAL, first, 5.0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise OutOfTime
