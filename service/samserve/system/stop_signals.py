"""SIGINT and SIGTERM, which end the process in turn."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class StopRequest:
    """Whether a signal has asked for the end; ``cancels`` is the task that it cancels, if any."""

    requested: asyncio.Event
    cancels: asyncio.Task[Any] | None


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Have signals make the request while the block runs, and cancel its task.

    A second signal has its ordinary effect: it ends the process at once.
    """
    loop = asyncio.get_running_loop()
    stop = StopRequest(asyncio.Event(), asyncio.current_task())

    def forget() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    def request() -> None:
        forget()
        stop.requested.set()
        if stop.cancels is not None:
            stop.cancels.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, request)
    try:
        yield stop
    finally:
        forget()
