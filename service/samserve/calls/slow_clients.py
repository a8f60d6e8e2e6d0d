"""Timeouts and slots for clients that send or receive slowly (slow-loris protection)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, cast

from samserve.context import deadline_exceeded
from samserve.errors import SamserveError

SLOW_AFTER_S = 1.0
"""A client is slow if its request takes longer to arrive, or a message longer to send."""


class SlowClientTimeout:
    """Cancels the wait in its block and raises an error, as `asyncio.timeout` does.

    After `SLOW_AFTER_S` it enters the context that *slow_slot* returns, which may raise an error.
    After *seconds* more it raises `DeadlineExceeded`, which names the *stage*.  A timer is almost
    free; a task for every wait would cost a tenth of the smallest call.
    """

    def __init__(
        self, slow_slot: Callable[[], AbstractContextManager[None]], seconds: float, stage: str
    ) -> None:
        self._slow_slot = slow_slot
        self._seconds = seconds
        self._stage = stage
        self._loop = asyncio.get_running_loop()
        self._stack: ExitStack | None = None
        self._error: SamserveError | None = None

    def __enter__(self) -> None:
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancelling = self._task.cancelling()
        self._timer = self._loop.call_later(min(SLOW_AFTER_S, self._seconds), self._acquire_slot)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._stack is not None:
            self._stack.close()
        if self._error is None:
            return
        own_cancel = self._task.uncancel() <= self._cancelling
        if own_cancel and kind is asyncio.CancelledError:
            raise self._error from None

    def _acquire_slot(self) -> None:
        try:
            # Both the call and the entry may raise.
            self._stack = ExitStack()
            self._stack.enter_context(self._slow_slot())
        except SamserveError as error:
            self._end(error)
        else:
            self._timer = self._loop.call_later(self._seconds, self._expire)

    def _expire(self) -> None:
        self._end(deadline_exceeded(self._stage))

    def _end(self, error: SamserveError) -> None:
        self._error = error
        self._task.cancel()
