"""Graceful shutdown by SIGINT and SIGTERM."""

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
    """Whether a signal has requested the shutdown; ``cancels`` is the task to cancel, if any."""

    requested: asyncio.Event
    cancels: asyncio.Task[Any] | None


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Handle signals while the block runs: request the shutdown, and cancel the current task.

    A second signal has its default effect: it ends the process at once.
    """
    loop = asyncio.get_running_loop()
    stop = StopRequest(asyncio.Event(), asyncio.current_task())

    def remove_handlers() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    def request() -> None:
        remove_handlers()
        stop.requested.set()
        if stop.cancels is not None:
            stop.cancels.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, request)
    try:
        yield stop
    finally:
        remove_handlers()
